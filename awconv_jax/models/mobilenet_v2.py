"""MobileNetV2, whose depthwise convolutions can be AW-convolutions.

"MobileNetV2: Inverted Residuals and Linear Bottlenecks",
https://arxiv.org/abs/1801.04381. A block widens the channels by a 1x1
convolution, convolves each by itself (3x3), and narrows them by a 1x1
convolution without activation.
"""

from typing import Annotated

import flax.linen as nn
import jax

from awconv_jax import options
from awconv_jax.errors import look_up
from awconv_jax.models import network

STEMS = {'imagenet': 2, 'cifar': 1}  # Strides.
# The slots whose convolution becomes an AW-convolution.
AW_WHERE = {'3x3': ('conv2',)}
Stage = tuple[
    options.PositiveInt,  # Factor of the widening.
    options.PositiveInt,  # Channels.
    options.PositiveInt,  # Blocks.
    options.PositiveInt,  # Stride.
]


def scaled(channels: int, factor: float) -> int:
  """Returns channels * factor as a multiple of 8, less by a tenth at most."""
  wanted = channels * factor
  result = max(8, int(wanted + 4) // 8 * 8)
  return result if result >= 0.9 * wanted else result + 8


class InvertedResidual(network.Block):
  """1x1, depthwise 3x3 and linear 1x1, plus the input of equal shape."""

  features: int  # Output channels.
  widen: int  # Factor of the channels inside; 1 has no first convolution.
  stride: int

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H / stride, W / stride, features] for x [N, H, W, C]."""
    y, size, channels = x, valid_size, x.shape[-1] * self.widen
    if self.widen > 1:
      y, size = self.conv('conv1', y, channels, 1, 1, size)
      y = nn.relu6(self.norm(name='norm1')(y))
    y, size = self.conv('conv2', y, channels, 3, self.stride, size, channels)
    y = nn.relu6(self.norm(name='norm2')(y))
    y, size = self.conv('conv3', y, self.features, 1, 1, size)
    y = self.gate(self.norm(name='norm3')(y), size)
    # Without a shortcut nothing would be left.
    return x + self.drop()(y) if x.shape == y.shape else y


class MobileNetV2(network.Network):
  """MobileNetV2 over NHWC images; the other fields are those of `Network`.

  Attributes:
    stages: factor of the widening, channels, blocks and stride of each.
    width_factor: of all channels.
    stem: 'imagenet' (stride 2) or 'cifar' (stride 1).
    dropout: share of the pooled features that is dropped; needs an rng
      'dropout' in training.
    aw_where: '3x3', the depthwise convolutions.
  """

  stages: Annotated[tuple[Stage, ...], options.Bound(min_length=1)] = (
      (1, 16, 1, 1),
      (6, 24, 2, 2),
      (6, 32, 3, 2),
      (6, 64, 4, 2),
      (6, 96, 3, 1),
      (6, 160, 3, 2),
      (6, 320, 1, 1),
  )
  width_factor: options.PositiveFloat = 1.0
  stem: Annotated[str, options.OneOf(STEMS)] = 'imagenet'
  dropout: options.Fraction = 0.2
  aw_where: Annotated[str, options.OneOf(AW_WHERE)] = '3x3'

  def __post_init__(self):
    super().__post_init__()
    self.check_places(len(self.stages), dense_3x3=False)

  @nn.compact
  def __call__(
      self, images: jax.Array, *, train: bool, valid_size: network.Size = None
  ) -> network.Output:
    """Computes logits, or features for `num_classes=None`; see `Network`."""
    x, valid_size = self.start(images, valid_size)
    plain, norm = self.conv(), self.norm(train)
    stride = look_up('stem', self.stem, STEMS)
    channels = scaled(32, self.width_factor)
    x, valid_size = plain('stem_conv', x, channels, 3, stride, valid_size)
    x = nn.relu6(norm(name='stem_norm')(x))

    parts = self.parts(sum(stage[2] for stage in self.stages), train)
    strides = [stage[3] for stage in self.stages]
    aw, features = look_up('aw_where', self.aw_where, AW_WHERE), {}
    for stage, (widen, width, blocks, _) in enumerate(self.stages, start=1):
      for index in range(blocks):
        stride = 1 if index else strides[stage - 1]
        x = InvertedResidual(
            features=scaled(width, self.width_factor),
            widen=widen,
            stride=stride,
            conv=self.conv(stage, train, aw=aw),
            name=f'stage{stage}_block{index + 1}',
            **next(parts),
        )(x, valid_size=valid_size)
        valid_size = network.strided_size(valid_size, stride)
      if strides[stage:] and strides[stage] > 1:
        x = self.gate(f'stage{stage}_attention', train)(x, valid_size)
      features[f'c{stage + 1}'] = x

    if self.num_classes is None:
      return features
    x, _ = plain('last_conv', x, scaled(1280, max(1.0, self.width_factor)), 1)
    x = nn.relu6(norm(name='last_norm')(x))
    return self.classify(x, train, valid_size, self.dropout)


MODELS = {'mobilenet_v2': MobileNetV2}
