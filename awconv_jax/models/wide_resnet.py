"""Wide-ResNet for CIFAR, with dropout, plain or with AW-convolutions.

"Wide Residual Networks", https://arxiv.org/abs/1605.07146. WRN-d-k has three
stages of (d - 4) / 6 blocks with 16 k, 32 k and 64 k channels. The blocks are
pre-activated: norm and ReLU come before each 3x3 convolution, and a last norm
and ReLU before the pooling.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, Literal

import flax.linen as nn

from awconv_jax.layers.conv import Conv
from awconv_jax.models import checks
from awconv_jax.models.blocks import Padded
from awconv_jax.models.network import Network
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import Fraction, PositiveInt

SIZES = {
    'wrn_16_4': dict(blocks=2, widen=4),
    'wrn_28_10': dict(blocks=4, widen=10),
    'wrn_40_4': dict(blocks=6, widen=4),
}


class WideBlock(Padded):
  """norm, ReLU, 3x3; norm, ReLU, dropout, 3x3; plus the shortcut.

  Attributes:
    features: output channels.
    stride: of the block.
    convs: the convolution of each slot, 'conv1', 'conv2', 'downsample_conv'.
    norm: the norm; takes `name`.
    attention: None, or what gates the branch.
    drop: what drops the branch of some samples in training; takes `name`.
    dropout: share of the values that is dropped between the convolutions.
    train: whether dropout is on.
  """

  features: int
  stride: int
  convs: Mapping[str, Callable[..., Any]]
  norm: Callable[..., Any]
  attention: Callable[..., Any] | None
  drop: Callable[..., Any]
  dropout: float
  train: bool

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H / stride, W / stride, features] for x [N, H, W, C]."""
    seen = nn.relu(self.norm(name='norm1')(x))
    y, size = self.convolve(
        'conv1', seen, self.features, 3, self.stride, valid_size
    )
    y = nn.relu(self.norm(name='norm2')(y))
    y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
    y, size = self.convolve('conv2', y, self.features, 3, 1, size)
    if self.attention is not None:
      y = self.attention(name='attention')(y, valid_size=size)
    if x.shape != y.shape:
      x, _ = self.convolve(
          'downsample_conv', seen, self.features, 1, self.stride, valid_size
      )
    return x + self.drop(name='stochastic_depth')(y)


class WideResNet(Network):
  """Wide-ResNet over NHWC images; the other fields are those of `Network`.

  Attributes:
    blocks: in each of the three stages.
    widen: k, how many times as wide as the original ResNet for CIFAR.
    width: channels of the stem.
    dropout: share of the values that is dropped inside of the blocks; needs an
      rng 'dropout' in training.
    aw_where: '3x3' or 'first_3x3' of each block.
  """

  blocks: PositiveInt = 4
  widen: PositiveInt = 10
  width: PositiveInt = 16
  dropout: Fraction = 0.0
  aw_where: Literal['3x3', 'first_3x3'] = '3x3'

  @nn.nowrap
  def slots(self) -> Sequence[str]:
    return ('conv1', 'conv2', 'downsample_conv')

  @nn.nowrap
  def aw_choices(self):
    return {'3x3': ('conv1', 'conv2'), 'first_3x3': ('conv1',)}

  @nn.nowrap
  def features(self, stage: int) -> int:
    return self.width * self.widen * 2 ** (stage - 1)

  @nn.nowrap
  def augmented_slots(self) -> Sequence[str]:
    return ('conv1',)

  @nn.nowrap
  def strides(self) -> Sequence[int]:
    return (1, 2, 2)

  @nn.nowrap
  def check(self) -> None:
    """Raises InputError for a field that cannot be used."""
    for field in ('blocks', 'widen', 'width'):
      checks.check_count(field, getattr(self, field))
    checks.check_fraction('dropout', self.dropout)
    super().check()

  @nn.nowrap
  def depths(self) -> Sequence[int]:
    return [self.blocks] * 3

  @nn.nowrap
  def create_block(self, stage, **fields):
    return functools.partial(
        WideBlock,
        features=self.features(stage),
        dropout=self.dropout,
        **fields,
    )

  def begin(self, x, train, valid_size):
    del train
    conv = Conv(
        self.width, (3, 3), padding=1, name='stem_conv', **self.conv_fields()
    )
    return conv(mask_padding(x, valid_size)), valid_size

  def end(self, x, train):
    return nn.relu(self.norms(train)(name='last_norm')(x))
