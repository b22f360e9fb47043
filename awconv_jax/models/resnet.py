"""ResNet and ResNeXt for ImageNet and CIFAR, plain or with AW-convolutions.

"Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385;
"Aggregated Residual Transformations for Deep Neural Networks" (ResNeXt),
https://arxiv.org/abs/1611.05431. The AW variants replace convolutions of the
blocks by AW-convolutions and change nothing else,
https://arxiv.org/abs/2108.08205.
"""

from collections.abc import Sequence
import functools
from typing import Annotated, Literal

import flax.linen as nn

from awconv_jax import errors
from awconv_jax.layers.conv import Conv
from awconv_jax.models import checks
from awconv_jax.models.blocks import BasicBlock, Bottleneck, strided_size
from awconv_jax.models.network import Network
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import Bound, PositiveInt

STEMS = ('imagenet', 'cifar')
VERSIONS = ('v1.5', 'v1')
BLOCKS = {'basic': BasicBlock, 'bottleneck': Bottleneck}
# The slots whose convolution becomes an AW-convolution, by block and choice.
AW_WHERE = {
    'basic': {'3x3': ('conv1', 'conv2'), 'first_3x3': ('conv1',)},
    'bottleneck': {'3x3': ('conv2',), 'all': ('conv1', 'conv2', 'conv3')},
}
AUGMENTED = {'basic': ('conv1',), 'bottleneck': ('conv2',)}
SLOTS = ('conv1', 'conv2', 'conv3', 'downsample_conv')

DEPTHS = {
    18: dict(block='basic', stage_sizes=(2, 2, 2, 2)),
    34: dict(block='basic', stage_sizes=(3, 4, 6, 3)),
    50: dict(block='bottleneck', stage_sizes=(3, 4, 6, 3)),
    101: dict(block='bottleneck', stage_sizes=(3, 4, 23, 3)),
    152: dict(block='bottleneck', stage_sizes=(3, 8, 36, 3)),
}
RESNEXT = {
    'resnext50_32x4d': DEPTHS[50] | dict(groups=32, group_width=4),
    'resnext101_32x8d': DEPTHS[101] | dict(groups=32, group_width=8),
}


class ResNet(Network):
  """ResNet over NHWC images; the other fields are those of `Network`.

  Attributes:
    block: 'basic' or 'bottleneck'.
    stage_sizes: blocks in each stage.
    width: channels of the stem; doubled from stage to stage.
    groups, group_width: of a bottleneck's 3x3 convolution (ResNeXt), the width
      at 64 channels of the stem; not for basic blocks.
    stem: 'imagenet' (7x7 of stride 2, then max-pool) or 'cifar' (3x3).
    version: where a bottleneck strides, 'v1.5' (3x3) or 'v1' (first 1x1).
    aw_where: '3x3', or 'first_3x3' (basic), 'all' (bottleneck).
    zero_init_residual: start every block as the identity (last scale 0).
  """

  block: Literal['basic', 'bottleneck'] = 'bottleneck'
  stage_sizes: Annotated[tuple[PositiveInt, ...], Bound(min_length=1)] = (
      *(3, 4, 6, 3),
  )
  width: PositiveInt = 64
  groups: PositiveInt = 1
  group_width: PositiveInt = 64
  stem: Literal['imagenet', 'cifar'] = 'imagenet'
  version: Literal['v1.5', 'v1'] = 'v1.5'
  aw_where: Literal['3x3', 'first_3x3', 'all'] = '3x3'
  zero_init_residual: bool = True

  @nn.nowrap
  def slots(self) -> Sequence[str]:
    return SLOTS

  @nn.nowrap
  def aw_choices(self):
    return AW_WHERE[self.block]

  @nn.nowrap
  def augmented_slots(self) -> Sequence[str]:
    # A part of the outputs is none of whole channel groups.
    return AUGMENTED[self.block] if self.groups == 1 else ()

  @nn.nowrap
  def features(self, stage: int) -> int:
    return self.width * 2 ** (stage - 1)

  @nn.nowrap
  def augmented_downsample(self, stage: int) -> int:
    # The paper's, where the images are 28x28 of 224x224.
    return 2 if self.stem == 'imagenet' and stage == 2 else 1

  @nn.nowrap
  def strides(self) -> Sequence[int]:
    return [1] + [2] * (len(self.stage_sizes) - 1)

  @nn.nowrap
  def check(self) -> None:
    """Raises InputError for a field that cannot be used."""
    checks.check_choice('block', self.block, tuple(BLOCKS))
    checks.check_choice('stem', self.stem, STEMS)
    checks.check_choice('version', self.version, VERSIONS)
    checks.check_counts('stage_sizes', self.stage_sizes)
    for field in ('width', 'groups', 'group_width'):
      checks.check_count(field, getattr(self, field))
    grouped = (self.groups, self.group_width) != (1, 64)
    if grouped and self.block == 'basic':
      raise errors.InputError(
          f'model.groups={self.groups}, model.group_width={self.group_width} '
          "need model.block='bottleneck', which is 'basic'"
      )
    if self.width * self.group_width < 64:
      raise errors.InputError(
          f'model.width={self.width} leaves nothing to groups of group_width='
          f'{self.group_width} at 64; width must be at least '
          f'{-(-64 // self.group_width)}'
      )
    super().check()

  @nn.nowrap
  def depths(self) -> Sequence[int]:
    return self.stage_sizes

  @nn.nowrap
  def create_block(self, stage, *, train, **fields):
    del train
    init = nn.initializers
    return functools.partial(
        BLOCKS[self.block],
        width=self.features(stage),
        groups=self.groups,
        group_width=self.group_width,
        last_scale_init=init.zeros if self.zero_init_residual else init.ones,
        version=self.version,
        **fields,
    )

  def begin(self, x, train, valid_size):
    size, stride = (7, 2) if self.stem == 'imagenet' else (3, 1)
    x = Conv(
        self.width,
        (size, size),
        strides=stride,
        padding=size // 2,
        name='stem_conv',
        **self.conv_fields(),
    )(mask_padding(x, valid_size))
    x = nn.relu(self.norms(train)(name='stem_norm')(x))
    valid_size = strided_size(valid_size, stride)
    if self.stem == 'imagenet':
      # No value is negative after the ReLU, so that zeros in the padding are to
      # the maximum what the border's minus infinity is.
      x = mask_padding(x, valid_size)
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
      valid_size = strided_size(valid_size, 2)
    return x, valid_size
