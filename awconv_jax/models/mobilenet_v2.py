"""MobileNetV2, whose depthwise convolutions can be AW-convolutions.

"MobileNetV2: Inverted Residuals and Linear Bottlenecks",
https://arxiv.org/abs/1801.04381. A block widens the channels by a 1x1
convolution, convolves each by itself (3x3), and narrows them by a 1x1
convolution without activation.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Annotated, Any, Literal

import flax.linen as nn

from awconv_jax import errors
from awconv_jax.layers.conv import Conv
from awconv_jax.models import checks
from awconv_jax.models.blocks import Padded, strided_size
from awconv_jax.models.network import Network
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import Bound, Fraction, PositiveFloat, PositiveInt

# Of each stage: factor of the widening, channels, blocks, stride.
Stage = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS, LAST_CHANNELS = 32, 1280
STEMS = {'imagenet': 2, 'cifar': 1}


def scaled(channels: int, factor: float) -> int:
  """Returns channels * factor as a multiple of 8, less by a tenth at most."""
  wanted = channels * factor
  result = max(8, int(wanted + 4) // 8 * 8)
  return result if result >= 0.9 * wanted else result + 8


class InvertedResidual(Padded):
  """1x1, depthwise 3x3 and linear 1x1, plus the input where shapes are equal.

  Attributes:
    features: output channels.
    widen: factor of the channels inside; 1 has no first convolution.
    stride: of the block.
    convs: the convolution of each slot, 'conv1' to 'conv3'.
    norm: the norm; takes `name`.
    attention: None, or what gates the last norm's output.
    drop: what drops the branch of some samples in training; takes `name`.
  """

  features: int
  widen: int
  stride: int
  convs: Mapping[str, Callable[..., Any]]
  norm: Callable[..., Any]
  attention: Callable[..., Any] | None
  drop: Callable[..., Any]

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H / stride, W / stride, features] for x [N, H, W, C]."""
    y, size = x, valid_size
    channels = x.shape[-1] * self.widen
    if self.widen > 1:
      y, size = self.convolve('conv1', y, channels, 1, 1, size)
      y = nn.relu6(self.norm(name='norm1')(y))
    y, size = self.convolve(
        'conv2',
        y,
        channels,
        3,
        self.stride,
        size,
        feature_group_count=channels,
    )
    y = nn.relu6(self.norm(name='norm2')(y))
    y, size = self.convolve('conv3', y, self.features, 1, 1, size)
    y = self.norm(name='norm3')(y)
    if self.attention is not None:
      y = self.attention(name='attention')(y, valid_size=size)
    # Without a shortcut nothing would be left.
    if x.shape != y.shape:
      return y
    return x + self.drop(name='stochastic_depth')(y)


class MobileNetV2(Network):
  """MobileNetV2 over NHWC images; the other fields are those of `Network`.

  Attributes:
    stages: factor of the widening, channels, blocks and stride of each.
    width_factor: of all channels.
    stem: 'imagenet' (stride 2) or 'cifar' (stride 1).
    dropout: share of the pooled features that is dropped; needs an rng
      'dropout' in training.
    aw_where: '3x3', the depthwise convolutions.
  """

  stages: Annotated[tuple[Stage, ...], Bound(min_length=1)] = STAGES
  width_factor: PositiveFloat = 1.0
  stem: Literal['imagenet', 'cifar'] = 'imagenet'
  dropout: Fraction = 0.2
  aw_where: Literal['3x3'] = '3x3'

  @nn.nowrap
  def slots(self) -> Sequence[str]:
    return ('conv1', 'conv2', 'conv3')

  @nn.nowrap
  def aw_choices(self):
    return {'3x3': ('conv2',)}

  @nn.nowrap
  def strides(self) -> Sequence[int]:
    return [stride for _, _, _, stride in self.stages]

  @nn.nowrap
  def check(self) -> None:
    """Raises InputError for a field that cannot be used."""
    checks.check_choice('stem', self.stem, tuple(STEMS))
    checks.check_positive('width_factor', self.width_factor)
    if not self.stages:
      raise errors.InputError('model.stages must not be empty')
    for i, stage in enumerate(self.stages):
      checks.check_counts(f'stages[{i}]', stage)
      if len(stage) != 4:
        raise errors.InputError(
            f'model.stages[{i}]={tuple(stage)} must hold four numbers: factor, '
            'channels, blocks and stride'
        )
    checks.check_fraction('dropout', self.dropout)
    super().check()

  def _conv_norm(self, x, features, size, stride, name, train, valid_size):
    """Returns relu6(norm(conv(x))) outside of the blocks."""
    conv = Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        name=f'{name}_conv',
        **self.conv_fields(),
    )
    x = conv(mask_padding(x, valid_size) if size > 1 else x)
    return nn.relu6(self.norms(train)(name=f'{name}_norm')(x))

  @nn.nowrap
  def depths(self) -> Sequence[int]:
    return [blocks for _, _, blocks, _ in self.stages]

  @nn.nowrap
  def create_block(self, stage, *, train, **fields):
    del train
    widen, width, _, _ = self.stages[stage - 1]
    return functools.partial(
        InvertedResidual,
        features=scaled(width, self.width_factor),
        widen=widen,
        **fields,
    )

  def begin(self, x, train, valid_size):
    stride = STEMS[self.stem]
    channels = scaled(STEM_CHANNELS, self.width_factor)
    x = self._conv_norm(x, channels, 3, stride, 'stem', train, valid_size)
    return x, strided_size(valid_size, stride)

  def classify(self, x, train, valid_size):
    channels = scaled(LAST_CHANNELS, max(1.0, self.width_factor))
    x = self._conv_norm(x, channels, 1, 1, 'last', train, valid_size)
    return super().classify(x, train, valid_size, self.dropout)
