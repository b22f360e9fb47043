"""ResNet, ResNeXt and Wide-ResNet-50-2, plain or with AW-convolutions.

"Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385;
"Aggregated Residual Transformations for Deep Neural Networks" (ResNeXt),
https://arxiv.org/abs/1611.05431; "Wide Residual Networks",
https://arxiv.org/abs/1605.07146 (bottlenecks of twice the width inside). The AW
variants replace convolutions of the blocks by AW-convolutions and change
nothing else, https://arxiv.org/abs/2108.08205.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Annotated, Any

import flax.linen as nn
import jax

from awconv_jax.errors import InputError, look_up
from awconv_jax.models.network import (
    Network,
    attend_stage,
    check_places,
    classify,
    conv_of,
    convolve,
    convs_of,
    norm_of,
    parts_of,
    strided_size,
)
from awconv_jax.ops.valid_area import as_valid_size, mask_padding
from awconv_jax.options import Bound, OneOf, PositiveInt


class Block(nn.Module):
  """What both blocks have: their slots, and the shortcut.

  Attributes:
    width: channels inside; the output of a bottleneck has four times as many.
    stride: of the block.
    convs: the convolution of each slot, 'conv1' ... and 'downsample_conv'.
    norm: the norm; takes `name` and `scale_init`.
    attention: None, or what gates the last norm's output (SE, ...).
    drop: what drops the branch of some samples in training; takes `name`.
    last_scale_init: initializer of the last norm's scale.
    version: key of `VERSIONS`; a basic block is the same in all.
    groups, group_width: channel groups of a bottleneck's 3x3 convolution, and
      the channels of each where `width` is 64; a basic block has none.
  """

  width: int
  stride: int
  convs: Mapping[str, Callable[..., Any]]
  norm: Callable[..., Any]
  attention: Callable[..., Any] | None
  drop: Callable[..., Any]
  last_scale_init: Callable[..., jax.Array]
  version: str
  groups: int
  group_width: int

  def join(self, x, y, valid_size, out_valid_size):
    """Gates and drops the branch y, adds the shortcut of x, applies ReLU."""
    if self.attention is not None:
      y = self.attention(name='attention')(y, valid_size=out_valid_size)
    if x.shape != y.shape:
      x, _ = self.convs['downsample_conv'](
          x, y.shape[-1], 1, self.stride, valid_size
      )
      x = self.norm(name='downsample_norm')(x)
    return nn.relu(x + self.drop(name='stochastic_depth')(y))


class BasicBlock(Block):
  """Two 3x3 convolutions (ResNet-18 and -34)."""

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H / stride, W / stride, width] for x [N, H, W, C]."""
    y, size = self.convs['conv1'](x, self.width, 3, self.stride, valid_size)
    y = nn.relu(self.norm(name='norm1')(y))
    y, size = self.convs['conv2'](y, self.width, 3, 1, size)
    y = self.norm(name='norm2', scale_init=self.last_scale_init)(y)
    return self.join(x, y, valid_size, size)


class Bottleneck(Block):
  """1x1, 3x3 and 1x1 convolutions (ResNet-50, -101 and -152)."""

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H / stride, W / stride, 4 * width] for x [N, H, W, C]."""
    width = self.width * self.group_width // 64 * self.groups
    strides = {look_up('version', self.version, VERSIONS): self.stride}
    # The field is named only where it is needed: not every layer has it.
    grouped = {}
    if self.groups > 1:
      grouped = dict(feature_group_count=self.groups)
    y, size = self.convs['conv1'](
        x, width, 1, strides.get('conv1', 1), valid_size
    )
    y = nn.relu(self.norm(name='norm1')(y))
    y, size = self.convs['conv2'](
        y, width, 3, strides.get('conv2', 1), size, **grouped
    )
    y = nn.relu(self.norm(name='norm2')(y))
    y, size = self.convs['conv3'](y, 4 * self.width, 1, 1, size)
    y = self.norm(name='norm3', scale_init=self.last_scale_init)(y)
    return self.join(x, y, valid_size, size)


BLOCKS = {'basic': BasicBlock, 'bottleneck': Bottleneck}
STEMS = {'imagenet': (7, 2), 'cifar': (3, 1)}  # Kernel size and stride.
VERSIONS = {'v1.5': 'conv2', 'v1': 'conv1'}  # Where a bottleneck strides.
# The slots whose convolution becomes an AW-convolution, by block and choice.
AW_WHERE = {
    'basic': {'3x3': ('conv1', 'conv2'), 'first_3x3': ('conv1',)},
    'bottleneck': {'3x3': ('conv2',), 'all': ('conv1', 'conv2', 'conv3')},
}
# The slot that is augmented by attention.
AUGMENTED = {'basic': 'conv1', 'bottleneck': 'conv2'}


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

  block: Annotated[str, OneOf(BLOCKS)] = 'bottleneck'
  stage_sizes: Annotated[tuple[PositiveInt, ...], Bound(min_length=1)] = (
      *(3, 4, 6, 3),
  )
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
          "need model.block='bottleneck', which is 'basic'"
      )
    if self.width * self.group_width < 64:
      raise InputError(
          f'model.width={self.width} leaves nothing to groups of group_width='
          f'{self.group_width} at 64; width must be at least '
          f'{-(-64 // self.group_width)}'
      )
    check_places(self, len(self.stage_sizes), dense_3x3=self.groups == 1)

  @nn.compact
  def __call__(
      self,
      images: jax.Array,
      *,
      train: bool,
      valid_size: jax.Array | None = None,
  ) -> jax.Array | dict[str, jax.Array]:
    """Computes logits, or features for `num_classes=None`; see `Network`.

    Raises:
      ValueError: the shape of valid_size does not fit; says which.
    """
    if valid_size is not None:
      valid_size = as_valid_size(valid_size, images.shape)
    size, stride = look_up('stem', self.stem, STEMS)
    x, valid_size = convolve(
        conv_of(self),
        'stem_conv',
        images.astype(self.dtype),
        self.width,
        size,
        stride,
        valid_size,
    )
    x = nn.relu(norm_of(self, train)(name='stem_norm')(x))
    if self.stem == 'imagenet':
      # No value is negative after the ReLU, so that zeros in the padding are to
      # the maximum what the border's minus infinity is.
      x = mask_padding(x, valid_size)
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
      valid_size = strided_size(valid_size, 2)

    block = functools.partial(
        look_up('block', self.block, BLOCKS),
        groups=self.groups,
        group_width=self.group_width,
        version=self.version,
        last_scale_init=(
            nn.initializers.zeros
            if self.zero_init_residual
            else nn.initializers.ones
        ),
    )
    parts = parts_of(self, sum(self.stage_sizes), train)
    features, stages = {}, len(self.stage_sizes)
    for stage, blocks in enumerate(self.stage_sizes, start=1):
      # A part of the outputs by attention, where they are no channel groups; at
      # half the resolution where the paper has 28x28 of 224x224.
      augment = stage > stages - 3
      convs = convs_of(
          self,
          stage,
          train,
          slots=('conv1', 'conv2', 'conv3', 'downsample_conv'),
          aw=look_up('aw_where', self.aw_where, AW_WHERE[self.block]),
          augmented=AUGMENTED[self.block] if augment else None,
          downsample=2 if self.stem == 'imagenet' and stage == 2 else 1,
      )
      for index in range(blocks):
        stride = 2 if stage > 1 and index == 0 else 1
        x = block(
            width=self.width * 2 ** (stage - 1),
            stride=stride,
            convs=convs,
            name=f'stage{stage}_block{index + 1}',
            **next(parts),
        )(x, valid_size=valid_size)
        valid_size = strided_size(valid_size, stride)
      if stage < stages:
        x = attend_stage(self, stage, x, train, valid_size)
      features[f'c{stage + 1}'] = x

    if self.num_classes is None:
      return features
    return classify(self, x, train, valid_size)


_resnet18 = functools.partial(ResNet, block='basic', stage_sizes=(2, 2, 2, 2))
_resnet34 = functools.partial(_resnet18, stage_sizes=(3, 4, 6, 3))
_resnet50 = functools.partial(
    ResNet, block='bottleneck', stage_sizes=(3, 4, 6, 3)
)
_resnet101 = functools.partial(_resnet50, stage_sizes=(3, 4, 23, 3))
_resnet152 = functools.partial(_resnet50, stage_sizes=(3, 8, 36, 3))
MODELS = {
    'resnet18': _resnet18,
    'resnet34': _resnet34,
    'resnet50': _resnet50,
    'resnet101': _resnet101,
    'resnet152': _resnet152,
    'resnext50_32x4d': functools.partial(_resnet50, groups=32, group_width=4),
    'resnext101_32x8d': functools.partial(_resnet101, groups=32, group_width=8),
    'wide_resnet50_2': functools.partial(_resnet50, group_width=128),
    'wide_resnet101_2': functools.partial(_resnet101, group_width=128),
}
