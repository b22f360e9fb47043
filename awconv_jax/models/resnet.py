"""ResNet-18 to -152 for ImageNet and CIFAR, plain or with AW-convolutions.

"Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385;
the AW variants replace convolutions of the blocks by AW-convolutions and
change nothing else, https://arxiv.org/abs/2108.08205.
"""

from collections.abc import Mapping, Sequence
import functools
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax import errors
from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.layers.conv import Conv
from awconv_jax.layers.squeeze_excite import SqueezeExcite
from awconv_jax.models.blocks import BasicBlock, Bottleneck, strided_size
from awconv_jax.ops.adaptive_pool import adaptive_average_pool

ATTENTION = {'se': SqueezeExcite}
STEMS = ('imagenet', 'cifar')
VERSIONS = ('v1.5', 'v1')
BLOCKS = {'basic': BasicBlock, 'bottleneck': Bottleneck}
# The slots whose convolution becomes an AW-convolution, by block and choice.
AW_WHERE = {
    'basic': {'3x3': ('conv1', 'conv2'), 'first_3x3': ('conv1',)},
    'bottleneck': {'3x3': ('conv2',), 'all': ('conv1', 'conv2', 'conv3')},
}
# The fields of an AW-convolution that its place in the network decides.
AW_OWN = ('features', 'kernel_size', 'strides', 'padding', 'train')
SLOTS = ('conv1', 'conv2', 'conv3', 'downsample_conv')

DEPTHS = {
    18: dict(block='basic', stage_sizes=(2, 2, 2, 2)),
    34: dict(block='basic', stage_sizes=(3, 4, 6, 3)),
    50: dict(block='bottleneck', stage_sizes=(3, 4, 6, 3)),
    101: dict(block='bottleneck', stage_sizes=(3, 4, 23, 3)),
    152: dict(block='bottleneck', stage_sizes=(3, 8, 36, 3)),
}

# He initialisation by fan-out, as torchvision's.
kernel_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def _check_options(field, options, layer, own=('dtype', 'param_dtype')):
  """Raises InputError for options other than a layer's fields.

  Args:
    field: of the network, that holds the options.
    options: field names and values, or None.
    layer: class they are meant for.
    own: fields that the network sets by itself.
  """
  known = set(inspect.signature(layer).parameters) - {'parent', 'name', *own}
  for option in options or ():
    if option not in known:
      raise errors.unknown_name(f'option in model.{field}', option, known)


class ResNet(nn.Module):
  """ResNet over NHWC images.

  Attributes:
    block: 'basic' or 'bottleneck'.
    stage_sizes: blocks in each stage.
    num_classes: size of the logits; None returns the stages' features.
    width: channels of the stem; doubled from stage to stage.
    stem: 'imagenet' (7x7 of stride 2, then max-pool) or 'cifar' (3x3).
    version: where a bottleneck strides, 'v1.5' (3x3) or 'v1' (first 1x1).
    attention: None or a name in `ATTENTION`, after every block's last norm.
    attention_options: fields of that layer.
    aw_conv: whether convolutions become AW-convolutions.
    aw_where: which: '3x3', or 'first_3x3' (basic), 'all' (bottleneck).
    aw_stages: in which stages, counted from 1.
    aw_options: fields of `AWConv`, such as reduction and expansion.
    zero_init_residual: start every block as the identity (last scale 0).
    norm_momentum: share of the old running statistics.
    norm_epsilon: of the norms.
    dtype: of the computation, such as 'bfloat16'; logits are float32.
    param_dtype: of the parameters.
  """

  block: str
  stage_sizes: Sequence[int]
  num_classes: int | None = 1000
  width: int = 64
  stem: str = 'imagenet'
  version: str = 'v1.5'
  attention: str | None = None
  attention_options: Mapping[str, Any] | None = None
  aw_conv: bool = False
  aw_where: str = '3x3'
  aw_stages: Sequence[int] = (1, 2, 3, 4)
  aw_options: Mapping[str, Any] | None = None
  zero_init_residual: bool = True
  norm_momentum: float = 0.9
  norm_epsilon: float = 1e-5
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.nowrap
  def check(self) -> None:
    """Raises InputError for a field that cannot be used."""
    for field, value, known in (
        ('block', self.block, BLOCKS),
        ('stem', self.stem, STEMS),
        ('version', self.version, VERSIONS),
        ('attention', self.attention, (None, *ATTENTION)),
        ('aw_where', self.aw_where, AW_WHERE.get(self.block, ())),
    ):
      if value not in known:
        raise errors.unknown_name(field, value, map(str, known))
    stages = range(1, len(self.stage_sizes) + 1)
    if not set(self.aw_stages) <= set(stages):
      raise errors.InputError(
          f'model.aw_stages={tuple(self.aw_stages)} names a stage outside 1 to '
          f'{len(stages)}'
      )
    classes = 1 if self.num_classes is None else self.num_classes
    if self.width < 1 or classes < 1:
      raise errors.InputError(
          f'model.width={self.width} and num_classes={self.num_classes} must '
          'be at least 1'
      )
    _check_options('aw_options', self.aw_options, AWConv, AW_OWN)
    if self.attention:
      layer = ATTENTION[self.attention]
      _check_options('attention_options', self.attention_options, layer)
    try:
      jnp.dtype(self.dtype), jnp.dtype(self.param_dtype)
      AWConv(1, 1, parent=None, **(self.aw_options or {})).check()
    except (TypeError, ValueError) as error:
      raise errors.InputError(f'model options: {error}') from error

  def _convs(self, stage: int, train: bool) -> dict[str, Any]:
    """Returns the convolution of every slot in a stage's blocks."""
    options = dict(
        use_bias=False,
        kernel_init=kernel_init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )
    convs = dict.fromkeys(SLOTS, functools.partial(Conv, **options))
    if self.aw_conv and stage in self.aw_stages:
      aw_options = options | dict(self.aw_options or {})
      aw_conv = functools.partial(AWConv, train=train, **aw_options)
      for slot in AW_WHERE[self.block][self.aw_where]:
        convs[slot] = aw_conv
    return convs

  def _stem(self, x, norm, valid_size):
    """Returns the stem's output and its valid area."""
    size, stride = (7, 2) if self.stem == 'imagenet' else (3, 1)
    x = Conv(
        self.width,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=kernel_init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name='stem_conv',
    )(x)
    x = nn.relu(norm(name='stem_norm')(x))
    valid_size = strided_size(valid_size, stride)
    if self.stem == 'imagenet':
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
      valid_size = strided_size(valid_size, 2)
    return x, valid_size

  @nn.compact
  def __call__(
      self,
      images: jax.Array,
      *,
      train: bool,
      valid_size: jax.Array | None = None,
  ) -> jax.Array | dict[str, jax.Array]:
    """Computes logits, or features for `num_classes=None`.

    Args:
      images: [N, H, W, 3] (or any channels), normalised.
      train: whether norms use (and update) the batch's statistics.
      valid_size: int [N, 2], height and width of each image from the top left
        where the rest of it is padding. None means no padding.

    Returns:
      Logits [N, num_classes] in float32, or {'c2': [N, H/4, W/4, ...], ...,
      'c5': [N, H/32, W/32, ...]} (strides are 1 to 8 with the CIFAR stem).
    """
    norm = functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=self.norm_momentum,
        epsilon=self.norm_epsilon,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )
    attention = None
    if self.attention:
      attention = functools.partial(
          ATTENTION[self.attention],
          dtype=self.dtype,
          param_dtype=self.param_dtype,
          **(self.attention_options or {}),
      )
    init = nn.initializers
    x, valid_size = self._stem(images.astype(self.dtype), norm, valid_size)
    features = {}
    for stage, blocks in enumerate(self.stage_sizes, start=1):
      for block in range(1, blocks + 1):
        stride = 2 if stage > 1 and block == 1 else 1
        x = BLOCKS[self.block](
            width=self.width * 2 ** (stage - 1),
            stride=stride,
            convs=self._convs(stage, train),
            norm=norm,
            attention=attention,
            last_scale_init=init.zeros
            if self.zero_init_residual
            else init.ones,
            version=self.version,
            name=f'stage{stage}_block{block}',
        )(x, valid_size=valid_size)
        valid_size = strided_size(valid_size, stride)
      features[f'c{stage + 1}'] = x
    if self.num_classes is None:
      return features
    x = adaptive_average_pool(x, (1, 1), valid_size=valid_size)[:, 0, 0]
    head = nn.Dense(
        self.num_classes,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name='head',
    )
    return head(x.astype(self.dtype)).astype(jnp.float32)
