"""The residual blocks of ResNet, with slots for convolution, norm, attention.

"Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385.
Padding is explicit and symmetric as in torch, so that converted weights give
the same numbers: 'SAME' pads a convolution of stride 2 asymmetrically.

Every block has these fields:
  width: channels inside; the output of a bottleneck has four times as many.
  stride: of the block.
  convs: the convolution of each slot, 'conv1' ... and 'downsample_conv'.
  norm: the norm; takes `name` and `scale_init`.
  attention: None, or what gates the last norm's output (SE, ...).
  drop: what drops the branch of some samples in training; takes `name`.
  last_scale_init: initializer of the last norm's scale.
  version: 'v1.5' strides in the 3x3 convolution of a bottleneck, 'v1' in the
    first 1x1. A basic block is the same in both.
  groups, group_width: channel groups of a bottleneck's 3x3 convolution, and the
    channels of each where `width` is 64; a basic block has none.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from awconv_jax.ops.valid_area import mask_padding

Module = Callable[..., Any]


def strided_size(size: jax.Array | None, stride: int) -> jax.Array | None:
  """Returns the valid height and width after a layer of that stride."""
  return None if size is None else -(-size // stride)


class Padded(nn.Module):
  """A block with slots for convolutions, `convs`, padded as in torch."""

  def convolve(self, slot, x, features, size, stride, valid_size, **fields):
    """Applies the slot's convolution; returns it and its valid area."""
    if size > 1:
      # A norm and ReLU leave the padding as their bias, not as zero, and a
      # window at the edge of the image would see it.
      x = mask_padding(x, valid_size)
    conv = self.convs[slot](
        features,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        name=slot,
        **fields,
    )
    y = conv(x, valid_size=valid_size)
    return y, strided_size(valid_size, stride)


class Block(Padded):
  """What ResNet's blocks share: fields, and the shortcut."""

  width: int
  stride: int
  convs: Mapping[str, Module]
  norm: Module
  attention: Module | None
  drop: Module
  last_scale_init: Module
  version: str = 'v1.5'
  groups: int = 1
  group_width: int = 64

  def join(self, x, y, valid_size, out_valid_size):
    """Gates and drops the branch y, adds the shortcut of x, applies ReLU."""
    if self.attention is not None:
      y = self.attention(name='attention')(y, valid_size=out_valid_size)
    if x.shape != y.shape:
      x, _ = self.convolve(
          'downsample_conv', x, y.shape[-1], 1, self.stride, valid_size
      )
      x = self.norm(name='downsample_norm')(x)
    return nn.relu(x + self.drop(name='stochastic_depth')(y))


class BasicBlock(Block):
  """Two 3x3 convolutions (ResNet-18 and -34)."""

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H / stride, W / stride, width] for x [N, H, W, C]."""
    y, size = self.convolve('conv1', x, self.width, 3, self.stride, valid_size)
    y = nn.relu(self.norm(name='norm1')(y))
    y, size = self.convolve('conv2', y, self.width, 3, 1, size)
    y = self.norm(name='norm2', scale_init=self.last_scale_init)(y)
    return self.join(x, y, valid_size, size)


class Bottleneck(Block):
  """1x1, 3x3 and 1x1 convolutions (ResNet-50, -101 and -152)."""

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H / stride, W / stride, 4 * width] for x [N, H, W, C]."""
    width = self.width * self.group_width // 64 * self.groups
    first, second = (
        (self.stride, 1) if self.version == 'v1' else (1, self.stride)
    )
    # The field is named only where it is needed: not every layer has it.
    grouped = {}
    if self.groups > 1:
      grouped = dict(feature_group_count=self.groups)
    y, size = self.convolve('conv1', x, width, 1, first, valid_size)
    y = nn.relu(self.norm(name='norm1')(y))
    y, size = self.convolve('conv2', y, width, 3, second, size, **grouped)
    y = nn.relu(self.norm(name='norm2')(y))
    y, size = self.convolve('conv3', y, 4 * self.width, 1, 1, size)
    y = self.norm(name='norm3', scale_init=self.last_scale_init)(y)
    return self.join(x, y, valid_size, size)
