"""A ResNet in float64 loops, from the arrays of torch's state dict."""

import re

import naive
import numpy as np


class Resnet:
  """A plain or SE-ResNet of either block.

  Attributes:
    state: arrays by the names of torchvision and timm.
    imagenet: whether the stem strides and has a max-pool.
    strided: the convolution of a bottleneck that strides.
    epsilon: of the norms.
    ceil: whether the max-pool begins inside of the image.
  """

  def __init__(self, state, imagenet=True, strided=2, epsilon=1e-5, ceil=False):
    self.state = {k: np.float64(v) for k, v in state.items()}
    self.imagenet = imagenet
    self.strided = strided
    self.epsilon = epsilon
    self.ceil = ceil

  def conv(self, name, x, stride):
    """Symmetric padding by hand: half the kernel on every side."""
    kernel = self.state[f'{name}.weight'].transpose(2, 3, 1, 0)
    pad = (kernel.shape[0] // 2,) * 2
    return naive.conv(x, kernel, (stride, stride), (pad, pad))

  def norm(self, name, x):
    own = {k: self.state.get(f'{name}.{k}') for k in ('weight', 'bias')}
    stats = {k: self.state[f'{name}.running_{k}'] for k in ('mean', 'var')}
    params = {'scale': own['weight'], 'bias': own['bias']}
    return naive.normalize(x, params, 'batch', stats, self.epsilon)

  def block(self, name, x, stride):
    count = sum(f'{name}.conv{i}.weight' in self.state for i in (1, 2, 3))
    strided, y = self.strided if count == 3 else 1, x
    for i in range(1, count + 1):
      y = self.conv(f'{name}.conv{i}', y, stride if i == strided else 1)
      y = self.norm(f'{name}.bn{i}', y)
      y = y if i == count else np.maximum(y, 0)
    if f'{name}.se.fc1.weight' in self.state:
      layers = ('reduce', f'{name}.se.fc1'), ('expand', f'{name}.se.fc2')
      params = {
          layer: {
              'kernel': self.state[f'{own}.weight'][:, :, 0, 0].T,
              'bias': self.state[f'{own}.bias'],
          }
          for layer, own in layers
      }
      y = naive.squeeze_excite(y, params)
    if f'{name}.downsample.0.weight' in self.state:
      x = self.conv(f'{name}.downsample.0', x, stride)
      x = self.norm(f'{name}.downsample.1', x)
    return np.maximum(x + y, 0)

  def max_pool(self, x):
    """3x3 of stride 2, minus infinity on every side, or where it ends alone."""
    low = 0 if self.ceil else 1
    pads = (0, 0), (low, 1), (low, 1), (0, 0)
    padded = np.pad(x, pads, constant_values=-np.inf)
    rows, columns = ((n - 2 + low) // 2 + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, x.shape[3]))
    for i, j in np.ndindex(rows, columns):
      window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
      out[:, i, j] = window.max((1, 2))
    return out

  def __call__(self, x):
    """Returns what the stem's norm, all blocks and the head put out."""
    x = self.norm('bn1', self.conv('conv1', x, 2 if self.imagenet else 1))
    seen = {'bn1': x}
    x = np.maximum(x, 0)
    if self.imagenet:
      x = self.max_pool(x)
    blocks = [re.match(r'layer(\d)\.(\d)', name) for name in self.state]
    for match in dict.fromkeys((m[0], m[1], m[2]) for m in blocks if m):
      name, stage, index = match
      x = self.block(name, x, 2 if stage > '1' and index == '0' else 1)
      seen[name] = x
    weight, bias = self.state['fc.weight'], self.state['fc.bias']
    return seen | {'fc': x.mean((1, 2)) @ weight.T + bias}
