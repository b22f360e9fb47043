"""ResNet, ResNeXt and Wide-ResNet-50-2, plain or with AW-convolutions.

"Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385;
"Aggregated Residual Transformations for Deep Neural Networks" (ResNeXt),
https://arxiv.org/abs/1611.05431; "Wide Residual Networks",
https://arxiv.org/abs/1605.07146 (bottlenecks of twice the width inside).
"""

from functools import partial
from typing import Annotated

import flax.linen as nn
import jax

from awconv_jax.errors import InputError, look_up
from awconv_jax.models import network
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import Bound, OneOf, PositiveInt


class Block(network.Block):
  """What both blocks have beyond their slots.

  Attributes:
    width: channels inside; the output of a bottleneck has four times as many.
    stride: of the block.
    last_scale_init: initializer of the last norm's scale.
    strided: the slot of a bottleneck that strides.
    groups, group_width: channel groups of a bottleneck's 3x3 convolution, and
      the channels of each where `width` is 64; a basic block has none.
  """

  width: int
  stride: int
  last_scale_init: nn.initializers.Initializer
  strided: str
  groups: int
  group_width: int

  def join(self, x, y, valid_size, out_valid_size):
    """Gates and drops the branch y, adds the shortcut of x, applies ReLU."""
    y = self.gate(y, out_valid_size)
    if x.shape != y.shape:
      shape = y.shape[-1], 1, self.stride
      x, _ = self.conv('downsample_conv', x, *shape, valid_size)
      x = self.norm(name='downsample_norm')(x)
    return nn.relu(x + self.drop()(y))


class BasicBlock(Block):
  """Two 3x3 convolutions (ResNet-18 and -34)."""

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H / stride, W / stride, width] for x [N, H, W, C]."""
    y, size = self.conv('conv1', x, self.width, 3, self.stride, valid_size)
    y = nn.relu(self.norm(name='norm1')(y))
    y, size = self.conv('conv2', y, self.width, 3, 1, size)
    y = self.norm(name='norm2', scale_init=self.last_scale_init)(y)
    return self.join(x, y, valid_size, size)


class Bottleneck(Block):
  """1x1, 3x3 and 1x1 convolutions (ResNet-50, -101 and -152)."""

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H / stride, W / stride, 4 * width] for x [N, H, W, C]."""
    width = self.width * self.group_width // 64 * self.groups
    first = self.stride if self.strided == 'conv1' else 1
    y, size = self.conv('conv1', x, width, 1, first, valid_size)
    y = nn.relu(self.norm(name='norm1')(y))
    second = self.stride if self.strided == 'conv2' else 1
    y, size = self.conv('conv2', y, width, 3, second, size, self.groups)
    y = nn.relu(self.norm(name='norm2')(y))
    y, size = self.conv('conv3', y, 4 * self.width, 1, 1, size)
    y = self.norm(name='norm3', scale_init=self.last_scale_init)(y)
    return self.join(x, y, valid_size, size)


BLOCKS = {'basic': BasicBlock, 'bottleneck': Bottleneck}
# Kernel size, stride, and rows and columns that the max-pool adds.
STEMS = {'imagenet': (7, 2, (1, 1)), 'cifar': (3, 1, None)}
STEMS |= {'imagenet_ceil': (7, 2, (0, 1))}
VERSIONS = {'v1.5': 'conv2', 'v1': 'conv1'}  # Where a bottleneck strides.
# The slots whose convolution becomes an AW-convolution, by block and choice.
AW_WHERE = {
    'basic': {'3x3': ('conv1', 'conv2'), 'first_3x3': ('conv1',)},
    'bottleneck': {'3x3': ('conv2',), 'all': ('conv1', 'conv2', 'conv3')},
}
# The slot that is augmented by attention.
AUGMENTED = {'basic': 'conv1', 'bottleneck': 'conv2'}
StageSizes = Annotated[tuple[PositiveInt, ...], Bound(min_length=1)]


class ResNet(network.Network):
  """ResNet over NHWC images; the other fields are those of `Network`.

  Attributes:
    block: 'basic' or 'bottleneck'.
    stage_sizes: blocks in each stage.
    width: channels of the stem; doubled from stage to stage.
    groups, group_width: of a bottleneck's 3x3 convolution (ResNeXt), the width
      at 64 channels of the stem; not for basic blocks.
    stem: 'imagenet' (7x7 of stride 2, then max-pool), 'cifar' (3x3), or
      'imagenet_ceil' (the windows of the max-pool begin inside of the image).
    version: where a bottleneck strides, 'v1.5' (3x3) or 'v1' (first 1x1).
    aw_where: '3x3', or 'first_3x3' (basic), 'all' (bottleneck).
    zero_init_residual: start every block as the identity (last scale 0).
  """

  block: Annotated[str, OneOf(BLOCKS)] = 'bottleneck'
  stage_sizes: StageSizes = (3, 4, 6, 3)
  width: PositiveInt = 64
  groups: PositiveInt = 1
  group_width: PositiveInt = 64
  stem: Annotated[str, OneOf(STEMS)] = 'imagenet'
  version: Annotated[str, OneOf(VERSIONS)] = 'v1.5'
  aw_where: Annotated[
      str, OneOf(AW_WHERE['basic'] | AW_WHERE['bottleneck'])
  ] = '3x3'
  zero_init_residual: bool = True

  def __post_init__(self):
    super().__post_init__()
    grouped = (self.groups, self.group_width) != (1, 64)
    if grouped and self.block == 'basic':
      raise InputError(
          f'model.groups={self.groups}, model.group_width={self.group_width} '
          "need model.block='bottleneck'"
      )
    if self.width * self.group_width < 64:
      raise InputError(
          f'model.width={self.width} must be at least '
          f'{-(-64 // self.group_width)} for group_width={self.group_width}'
      )
    self.check_places(len(self.stage_sizes), dense_3x3=self.groups == 1)

  @nn.compact
  def __call__(
      self, images: jax.Array, *, train: bool, valid_size: network.Size = None
  ) -> network.Output:
    """Computes logits, or features for `num_classes=None`; see `Network`."""
    x, valid_size = self.start(images, valid_size)
    size, stride, pad = look_up('stem', self.stem, STEMS)
    stem = self.conv()
    x, valid_size = stem('stem_conv', x, self.width, size, stride, valid_size)
    x = nn.relu(self.norm(train)(name='stem_norm')(x))
    if pad:
      x = mask_padding(x, valid_size)  # Nothing is below 0 after a ReLU.
      x = nn.max_pool(x, (3, 3), (2, 2), (pad, pad))
      if valid_size is not None:
        valid_size = (valid_size + sum(pad) - 1) // 2

    last_scale = 0.0 if self.zero_init_residual else 1.0
    block = partial(
        look_up('block', self.block, BLOCKS),
        groups=self.groups,
        group_width=self.group_width,
        strided=look_up('version', self.version, VERSIONS),
        last_scale_init=nn.initializers.constant(last_scale),
    )
    parts = self.parts(sum(self.stage_sizes), train)
    features, stages = {}, len(self.stage_sizes)
    for stage, blocks in enumerate(self.stage_sizes, start=1):
      # A part of the outputs by attention, where they are no channel groups; at
      # half the resolution where the paper has 28x28 of 224x224.
      augment = stage > stages - 3
      conv = self.conv(
          stage,
          train,
          aw=look_up('aw_where', self.aw_where, AW_WHERE[self.block]),
          augmented=AUGMENTED[self.block] if augment else None,
          downsample=2 if pad and stage == 2 else 1,
      )
      for index in range(blocks):
        stride = 2 if stage > 1 and index == 0 else 1
        x = block(
            width=self.width * 2 ** (stage - 1),
            stride=stride,
            conv=conv,
            name=f'stage{stage}_block{index + 1}',
            **next(parts),
        )(x, valid_size=valid_size)
        valid_size = network.strided_size(valid_size, stride)
      if stage < stages:
        x = self.gate(f'stage{stage}_attention', train)(x, valid_size)
      features[f'c{stage + 1}'] = x

    if self.num_classes is None:
      return features
    return self.classify(x, train, valid_size)


_resnet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3))
_resnet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3))
# Of timm, from Caffe: another max-pool; without groups, strides in the 1x1.
_legacy = dict(attention='se', stem='imagenet_ceil')
_legacy_v1 = _legacy | dict(version='v1')
_legacy_x = _legacy | dict(groups=32, group_width=4)
MODELS = {
    'resnet18': partial(ResNet, block='basic', stage_sizes=(2, 2, 2, 2)),
    'resnet34': partial(ResNet, block='basic'),
    'resnet50': ResNet,
    'resnet101': _resnet101,
    'resnet152': _resnet152,
    'resnext50_32x4d': partial(ResNet, groups=32, group_width=4),
    'resnext101_32x4d': partial(_resnet101, groups=32, group_width=4),
    'resnext101_32x8d': partial(_resnet101, groups=32, group_width=8),
    'resnext101_64x4d': partial(_resnet101, groups=64, group_width=4),
    'wide_resnet50_2': partial(ResNet, group_width=128),
    'wide_resnet101_2': partial(_resnet101, group_width=128),
    'legacy_seresnet50': partial(ResNet, **_legacy_v1),
    'legacy_seresnet101': partial(_resnet101, **_legacy_v1),
    'legacy_seresnet152': partial(_resnet152, **_legacy_v1),
    'legacy_seresnext26_32x4d': partial(
        ResNet, stage_sizes=(2, 2, 2, 2), **_legacy_x
    ),
    'legacy_seresnext50_32x4d': partial(ResNet, **_legacy_x),
    'legacy_seresnext101_32x4d': partial(_resnet101, **_legacy_x),
}
