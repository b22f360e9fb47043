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


def squeeze_excite(x, variables, *, train):
  """As `naive.squeeze_excite`; there is no norm."""
  del train
  return naive.squeeze_excite(x, variables['params']), {}


def channel_pools(image):
  """Returns the average and the largest value of each channel of [H, W, C]."""
  height, width, channels = image.shape
  total = np.zeros(channels)
  largest = np.full(channels, -np.inf)
  for i in range(height):
    for j in range(width):
      total += image[i, j]
      largest = np.maximum(largest, image[i, j])
  return total / (height * width), largest


def cbam(x, variables, *, train, epsilon=1e-5):
  """1807.06521, equations 2 and 3, with the norm of the authors' code."""
  x = np.asarray(x, np.float64)
  params, batch = variables['params'], {}

  def mlp(a):
    hidden = np.maximum(naive.dense(a, params['reduce']), 0)
    return naive.dense(hidden, params['expand'])

  scaled = np.zeros_like(x)
  maps = np.zeros((*x.shape[:3], 2))
  for n, image in enumerate(x):
    average, largest = channel_pools(image)
    scaled[n] = image * naive.sigmoid(mlp(average) + mlp(largest))
    for i, row in enumerate(scaled[n]):
      for j, values in enumerate(row):
        maps[n, i, j] = max(values), sum(values) / len(values)
  kernel = params['spatial_conv']['kernel']
  half = len(kernel) // 2
  gate = naive.conv(maps, kernel, padding=((half, half), (half, half)))
  gate = norm_with_batch(gate, 'spatial_norm', variables, batch, train, epsilon)
  return scaled * naive.sigmoid(gate), batch


def bam(x, variables, *, train, dilation=4, combine='product', epsilon=1e-5):
  """1807.06514, equations 1 to 4, with the norms of the authors' code."""
  x = np.asarray(x, np.float64)
  params, batch = variables['params'], {}

  def relu_norm(a, name):
    a = norm_with_batch(a, name, variables, batch, train, epsilon)
    return np.maximum(a, 0)

  channel = np.stack([channel_pools(image)[0] for image in x])
  channel = naive.dense(channel, params['channel_reduce'])
  channel = relu_norm(channel, 'channel_norm')
  channel = naive.dense(channel, params['channel_expand'])

  spatial = relu_norm(naive.dense(x, _pointwise(params, 1)), 'spatial_norm1')
  for i in (2, 3):
    layer = params[f'spatial_conv{i}']
    spatial = naive.conv(
        spatial,
        layer['kernel'],
        padding=((dilation, dilation), (dilation, dilation)),
        dilation=(dilation, dilation),
    )
    spatial = relu_norm(spatial + layer['bias'], f'spatial_norm{i}')
  spatial = naive.dense(spatial, _pointwise(params, 4))

  out = np.zeros_like(x)
  for n, i, j, c in np.ndindex(*x.shape):
    own, here = channel[n, c], spatial[n, i, j, 0]
    joined = own * here if combine == 'product' else own + here
    out[n, i, j, c] = x[n, i, j, c] * (1 + naive.sigmoid(joined))
  return out, batch


def _pointwise(params, i):
  """Returns a 1x1 convolution as a matrix and a bias."""
  layer = params[f'spatial_conv{i}']
  return {'kernel': layer['kernel'][0, 0], 'bias': layer['bias']}


def eca(x, variables, *, train):
  """1910.03151: each channel's gate sees the averages of its neighbours."""
  del train
  x = np.asarray(x, np.float64)
  kernel = variables['params']['conv']['kernel'][:, 0, 0]
  half = len(kernel) // 2
  out = np.zeros_like(x)
  for n, image in enumerate(x):
    average, _ = channel_pools(image)
    for c in range(len(average)):
      total = 0.0
      for tap, weight in enumerate(kernel):
        neighbour = c + tap - half
        if 0 <= neighbour < len(average):
          total += weight * average[neighbour]
      out[n, :, :, c] = image[:, :, c] * naive.sigmoid(total)
  return out, {}
