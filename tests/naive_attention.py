"""Numpy float64 references of the attention layers, from the papers' equations.

As in `naive`: nothing here calls JAX or the package. Each reference takes x
[N, H, W, C], the layer's variables and its fields, and returns the output and
the mean and variance of the batch for each norm, as {name: {'mean', 'var'}}.
"""

import naive
import numpy as np


def norm_with_batch(x, name, variables, batch, train, epsilon):
  """Normalises, and notes the batch's statistics under `batch[name]`."""
  axes = tuple(range(x.ndim - 1))
  batch[name] = {'mean': x.mean(axes), 'var': x.var(axes)}
  stats = None if train else variables['batch_stats'][name]
  params = variables['params'][name]
  return naive.normalize(x, params, 'batch', stats, epsilon)


def se(x, variables, *, train):
  del train
  return naive.squeeze_excite(x, variables['params']), {}


def cbam(x, variables, *, train, epsilon=1e-5):
  """1807.06521, equations 2 and 3, with the norm of the authors' code."""
  x = np.asarray(x, np.float64)
  params, batch = variables['params'], {}

  def mlp(a):
    hidden = np.maximum(naive.dense(a, params['reduce']), 0)
    return naive.dense(hidden, params['expand'])

  gate = naive.sigmoid(mlp(x.mean((1, 2))) + mlp(x.max((1, 2))))
  y = x * gate[:, None, None]
  kernel = params['spatial_conv']['kernel']
  half = len(kernel) // 2
  maps = np.stack([y.max(-1), y.mean(-1)], -1)
  gate = naive.conv(maps, kernel, padding=((half, half), (half, half)))
  gate = norm_with_batch(gate, 'spatial_norm', variables, batch, train, epsilon)
  return y * naive.sigmoid(gate), batch


def bam(x, variables, *, train, dilation=4, combine='product', epsilon=1e-5):
  """1807.06514, equations 1 to 4, with the norms of the authors' code."""
  x = np.asarray(x, np.float64)
  params, batch = variables['params'], {}

  def relu_norm(a, name):
    a = norm_with_batch(a, name, variables, batch, train, epsilon)
    return np.maximum(a, 0)

  channel = naive.dense(x.mean((1, 2)), params['channel_reduce'])
  channel = relu_norm(channel, 'channel_norm')
  channel = naive.dense(channel, params['channel_expand'])[:, None, None]

  spatial = x
  for i in (1, 2, 3, 4):
    layer = params[f'spatial_conv{i}']
    pad = dilation if i in (2, 3) else 0
    spatial = layer['bias'] + naive.conv(
        spatial,
        layer['kernel'],
        padding=((pad, pad), (pad, pad)),
        dilation=(dilation, dilation),
    )
    if i < 4:
      spatial = relu_norm(spatial, f'spatial_norm{i}')
  joined = channel * spatial if combine == 'product' else channel + spatial
  return x * (1 + naive.sigmoid(joined)), batch


def eca(x, variables, *, train):
  """1910.03151: each channel's gate sees the averages of its neighbours."""
  del train
  x = np.asarray(x, np.float64)
  kernel = variables['params']['conv']['kernel'][:, 0, 0]
  half = len(kernel) // 2
  average = np.pad(x.mean((1, 2)), ((0, 0), (half, half)))
  total = sum(
      w * average[:, k:][:, : x.shape[-1]] for k, w in enumerate(kernel)
  )
  return x * naive.sigmoid(total)[:, None, None], {}
