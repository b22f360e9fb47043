"""Numpy float64 references of layers that take a convolution's place.

As in `naive_attention`, from the papers' equations: one sample after the other,
whose kernel is written out in full.
"""

import naive
from naive_attention import norms
import numpy as np


def softmax(x, axis=-1):
  x = np.exp(x - x.max(axis, keepdims=True))
  return x / x.sum(axis, keepdims=True)


def per_sample(x, variables, kernels, weights, **fields):
  """Convolves sample n with kernels[n]; a bias is mixed by weights [N, E]."""
  options = dict(
      strides=np.broadcast_to(fields.get('strides', 1), 2),
      padding=fields.get('padding', 'SAME'),
      groups=fields.get('feature_group_count', 1),
  )
  bias = variables['params'].get('bias')
  outs = []
  for n, kernel in enumerate(kernels):
    out = naive.conv(x[n : n + 1], kernel, **options)[0]
    for e, share in enumerate(weights[n]):
      out = out + (0 if bias is None else share * bias[e])
    outs.append(out)
  return np.stack(outs)


def mixtures(kernels, weights):
  """Returns each sample's sum of kernels [E, kh, kw, C, D] by [N, E]."""
  return [sum(a * k for a, k in zip(own, kernels)) for own in weights]  # noqa: B905


def condconv(x, variables, **fields):
  """1904.04971: r(x) = sigmoid(GlobalAveragePool(x) R)."""
  x, params = np.asarray(x, np.float64), variables['params']
  weights = naive.sigmoid(naive.dense(x.mean((1, 2)), params['routing']))
  kernels = mixtures(params['kernel'], weights)
  return per_sample(x, variables, kernels, weights, **fields), {}


def dynamic(x, variables, *, temperature=30, **fields):
  """1912.03458, equation 3."""
  x, params = np.asarray(x, np.float64), variables['params']
  hidden = np.maximum(naive.dense(x.mean((1, 2)), params['squeeze']), 0)
  weights = softmax(naive.dense(hidden, params['score']) / temperature)
  kernels = mixtures(params['kernel'], weights)
  return per_sample(x, variables, kernels, weights, **fields), {}


def odconv(
    x,
    variables,
    *,
    train=False,
    temperature=30,
    norm_momentum=0.9,
    **fields,
):
  """2209.07947, equation 2; what a shape leaves out is 1."""
  x, params = np.asarray(x, np.float64), variables['params']
  norm, moved = norms(variables, train, momentum=norm_momentum)
  hidden = naive.dense(x.mean((1, 2)), params['squeeze'])
  hidden = np.maximum(norm(hidden, 'norm'), 0)

  def gates(name, shape, function=naive.sigmoid):
    if name not in params:
      return np.ones((len(x), *shape))
    logits = naive.dense(hidden, params[name]) / temperature
    return function(logits).reshape(-1, *shape)

  experts, *taps, inputs, outputs = params['kernel'].shape
  of_kernel = gates('of_kernel', (experts,), softmax)
  of_position = gates('of_position', taps)
  of_input = gates('of_input', x.shape[-1:])
  of_output = gates('of_output', (outputs,))
  groups = fields.get('feature_group_count', 1)
  kernels = mixtures(params['kernel'], of_kernel)
  for n, kernel in enumerate(kernels):
    for i, j, c, d in np.ndindex(kernel.shape):
      seen = d // (outputs // groups) * inputs + c
      scale = of_position[n, i, j] * of_input[n, seen] * of_output[n, d]
      kernel[i, j, c, d] *= scale
  bare = {'params': params | {'bias': None}}
  out = per_sample(x, bare, kernels, of_kernel, **fields)
  if 'bias' in params:
    out += ((of_kernel @ params['bias']) * of_output)[:, None, None]
  return out, {'batch_stats': moved}


def sk(
    x,
    variables,
    *,
    train=False,
    branches=2,
    norm_momentum=0.9,
    **fields,
):
  """1903.06586, equations 1 to 6."""
  x, params = np.asarray(x, np.float64), variables['params']
  norm, moved = norms(variables, train, momentum=norm_momentum)
  strides = np.broadcast_to(fields.get('strides', 1), 2)
  own = fields.get('kernel_dilation', 1)
  seen = []
  for b in range(1, branches + 1):
    layer = params[f'branch{b}_conv']
    size = layer['kernel'].shape[:2]
    padding = fields.get('padding', 'SAME')
    window = naive.pads(padding, x.shape[1:3], size, strides, (own, own))
    more = (b - 1) * own
    u = naive.conv(
        x,
        layer['kernel'],
        strides=strides,
        dilation=(b * own, b * own),
        # A 3x3 sees one more position on each side for every dilation.
        padding=[(low + more, high + more) for low, high in window],
        groups=fields.get('feature_group_count', 1),
    )
    u = norm(u + layer.get('bias', 0), f'branch{b}_norm')
    seen.append(np.maximum(u, 0))
  average = sum(seen).mean((1, 2))
  z = naive.dense(average, params['squeeze'])
  z = np.maximum(norm(z, 'norm'), 0)
  scores = naive.dense(z, params['score']).reshape(len(x), branches, -1)
  share = softmax(scores, axis=1)
  out = sum(share[:, b, None, None] * u for b, u in enumerate(seen))
  return out, {'batch_stats': moved}
