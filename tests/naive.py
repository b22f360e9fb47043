"""Numpy float64 references for the tests, written from the papers' equations.

Nothing here calls JAX or the package: explicit loops over samples, positions,
taps and groups, so that a mistake in the package is not repeated here.
"""

import itertools

import numpy as np


def pads(padding, size, kernel_size, strides, dilation):
  """Returns (low, high) for both axes, for a string or explicit pairs."""
  if not isinstance(padding, str):
    return [tuple(p) for p in padding]
  if padding == 'VALID':
    return [(0, 0), (0, 0)]
  result = []
  for n, k, s, d in zip(size, kernel_size, strides, dilation, strict=True):
    out = -(-n // s)
    total = max((out - 1) * s + (k - 1) * d + 1 - n, 0)
    less, more = total // 2, total - total // 2
    result.append((less, more) if padding == 'SAME' else (more, less))
  return result


def expand(attention, c, d):
  """Returns maps [N, kh, kw, c, d] from the compact [N, kh, kw, G, D']."""
  g, p = attention.shape[3:]
  return attention.repeat(c // g, 3).repeat(d // p, 4)


def output_size(size, kernel_size, strides, window, dilation):
  return [
      (n + low + high - (k - 1) * d - 1) // s + 1
      for n, k, s, (low, high), d in zip(
          size, kernel_size, strides, window, dilation, strict=True
      )
  ]


def visits(size, kernel_size, strides, window, dilation):
  """Yields (y, z), (i, j), (row, column) where a tap sees a pixel.

  For the output at y, z the kernel's tap i, j lies on that row and column; what
  lies outside of the image is zero, and left out.
  """
  height, width = output_size(size, kernel_size, strides, window, dilation)
  for y, z in itertools.product(range(height), range(width)):
    for i, j in itertools.product(*map(range, kernel_size)):
      row = y * strides[0] + i * dilation[0] - window[0][0]
      column = z * strides[1] + j * dilation[1] - window[1][0]
      if 0 <= row < size[0] and 0 <= column < size[1]:
        yield (y, z), (i, j), (row, column)


def windows(x, kernel, strides=(1, 1), padding='SAME', dilation=(1, 1)):
  """Returns what `visits` and `output_size` want of a convolution."""
  size, kernel_size = x.shape[1:3], kernel.shape[:2]
  window = pads(padding, size, kernel_size, strides, dilation)
  return size, kernel_size, strides, window, dilation


def conv(x, kernel, strides=(1, 1), padding='SAME', dilation=(1, 1), groups=1):
  """Convolves x [N, H, W, C] with kernel [kh, kw, C/groups, D]."""
  c, d = kernel.shape[2:]
  places = windows(x, kernel, strides, padding, dilation)
  out = np.zeros((len(x), *output_size(*places), d))
  per = d // groups
  for (y, z), tap, (row, column) in visits(*places):
    for g in range(groups):
      seen, made = slice(g * c, (g + 1) * c), slice(g * per, (g + 1) * per)
      out[:, y, z, made] += x[:, row, column, seen] @ kernel[tap][:, made]
  return out


def aw_conv(x, kernel, attention, *, residual=True, **options):
  """O[n] = conv(I[n], K * (1 + A[n])), or K * A[n] without the residual."""
  x, kernel, attention = map(np.float64, (x, kernel, attention))
  maps = expand(attention, *kernel.shape[2:])
  outputs = []
  for image, own in zip(x, maps, strict=True):
    scaled = kernel + kernel * own if residual else kernel * own
    outputs.append(conv(image[None], scaled, **options)[0])
  return np.stack(outputs)


def aw_conv_gradients(
    x, kernel, attention, grad, *, groups=1, residual=True, **options
):
  """Returns dI, dK and dA of sum(grad * aw_conv(x, kernel, attention))."""
  x, kernel, attention, grad = map(np.float64, (x, kernel, attention, grad))
  c, d = kernel.shape[2:]
  places = windows(x, kernel, **options)
  dx, dkernel, dattention = map(np.zeros_like, (x, kernel, attention))
  scale = expand(attention, c, d) + (1 if residual else 0)
  per = d // groups
  for n in range(len(x)):
    own = kernel * scale[n]
    down = np.zeros_like(own)
    for at, tap, pixel in visits(*places):
      for g in range(groups):
        seen, made = slice(g * c, (g + 1) * c), slice(g * per, (g + 1) * per)
        dx[n][pixel][seen] += own[tap][:, made] @ grad[n][at][made]
        down[tap][:, made] += np.outer(x[n][pixel][seen], grad[n][at][made])
    dkernel += down * scale[n]
    # A value of the maps acts on its whole run of channels.
    *taps, g, p = attention.shape[1:]
    shares = (down * kernel).reshape(*taps, g, c // g, p, d // p)
    dattention[n] = shares.sum((3, 5))
  return dx, dkernel, dattention


def adaptive_pool(x, grid, valid_size=None):
  """Averages over bins floor(i n / k) to ceil((i + 1) n / k)."""
  x = np.asarray(x, np.float64)
  if valid_size is None:
    valid_size = [x.shape[1:3]] * len(x)
  out = np.zeros((len(x), *grid, x.shape[3]))
  bins = lambda n, k: [(i * n // k, -(-(i + 1) * n // k)) for i in range(k)]  # noqa: E731
  for image, means, size in zip(x, out, valid_size, strict=True):
    rows, columns = map(bins, size, grid)
    for i, (top, bottom) in enumerate(rows):
      for j, (left, right) in enumerate(columns):
        means[i, j] = image[top:bottom, left:right].mean((0, 1))
  return out


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


GATES = {
    'sigmoid': sigmoid,
    'tanh': np.tanh,
    'relu': lambda a: np.maximum(a, 0),
    'none': lambda a: a,
}


def normalize(x, params, kind, stats=None, epsilon=1e-5):
  """Batch norm (by stats, or by the batch for None), layer norm, or neither."""
  if kind == 'none':
    return x
  if kind == 'layer':
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  elif stats is None:
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
  else:
    mean, var = stats['mean'], stats['var']
  return (x - mean) / np.sqrt(var + epsilon) * params['scale'] + params['bias']


def dense(x, params):
  return x @ params['kernel'] + params.get('bias', 0)


def attention_maps(
    x, params, stats, kernel_size, groups_out, *, gate='sigmoid', norm='batch'
):
  """A in compact form from x; `params` and `stats` as the layer names them."""

  def norm_of(a, name):
    own = stats[name] if stats is not None and norm == 'batch' else None
    return normalize(a, params.get(name), norm, own)

  a = adaptive_pool(x, kernel_size)
  a = np.maximum(norm_of(dense(a, params['pointwise1']), 'norm1'), 0)
  a = GATES[gate](norm_of(dense(a, params['pointwise2']), 'norm2'))
  return a.reshape(*a.shape[:3], -1, groups_out)


def aw_conv_layer(
    x, variables, *, train, groups_out, gate='sigmoid', norm='batch', **options
):
  """The whole AWConv layer; `groups_out` is D' of the compact maps."""
  params = variables['params']
  stats = None if train else variables.get('batch_stats', {}).get('attention')
  kernel, branch = params['kernel'], params['attention']
  sizes = kernel.shape[:2], groups_out
  maps = attention_maps(x, branch, stats, *sizes, gate=gate, norm=norm)
  return aw_conv(x, kernel, maps, **options) + params.get('bias', 0)


def squeeze_excite(x, params):
  """1709.01507: y = x * sigmoid(W2 relu(W1 mean_hw(x)))."""
  x = np.asarray(x, np.float64)
  hidden = np.maximum(dense(x.mean((1, 2)), params['reduce']), 0)
  return x * sigmoid(dense(hidden, params['expand']))[:, None, None]


def directional(function, values, directions, step=1e-6):
  """Central difference of a scalar function along directions (dicts)."""

  above, below = (
      function({k: v + d * directions[k] for k, v in values.items()})
      for d in (step, -step)
  )
  return (above - below) / (2 * step)
