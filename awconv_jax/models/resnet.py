"""ResNet-18 to -152 for ImageNet and CIFAR, plain or with AW-convolutions.

"Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385;
the AW variants replace convolutions of the blocks by AW-convolutions and
change nothing else, https://arxiv.org/abs/2108.08205.
"""

from collections.abc import Mapping, Sequence
import functools
import inspect
import numbers
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
from awconv_jax.ops.valid_area import as_valid_size, mask_padding

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
  """Raises InputError for options that are not a mapping of a layer's fields.

  Args:
    field: of the network, that holds the options.
    options: field names and values, or None.
    layer: class they are meant for.
    own: fields that the network sets by itself.
  """
  if options is not None and not isinstance(options, Mapping):
    raise errors.InputError(
        f'model.{field}={options!r} must hold fields by name, or be None'
    )
  known = set(inspect.signature(layer).parameters) - {'parent', 'name', *own}
  for option in options or ():
    if option not in known:
      raise errors.unknown_name(f'option in model.{field}', option, known)


def _check_count(field, value):
  """Raises InputError if a field's value is not an integer of at least 1."""
  if not isinstance(value, numbers.Integral) or value < 1:
    raise errors.InputError(
        f'model.{field}={value!r} must be an integer of at least 1'
    )


def _check_counts(field, values):
  """Raises InputError if a field's value is not a sequence of such integers."""
  if not isinstance(values, Sequence) or isinstance(values, str):
    raise errors.InputError(
        f'model.{field}={values!r} must be a sequence of integers'
    )
  for i, value in enumerate(values):
    _check_count(f'{field}[{i}]', value)


def _check_dtype(field, value):
  """Raises InputError if a field's value is not a floating dtype."""
  try:
    floating = jnp.issubdtype(jnp.dtype(value), jnp.floating)
  except TypeError:
    floating = False
  # Numpy takes None for float64.
  if value is None or not floating:
    raise errors.InputError(
        f"model.{field}={value!r} is not a floating dtype, such as 'bfloat16'"
    )


class ResNet(nn.Module):
  """ResNet over NHWC images.

  With `aw_conv=False` the other fields named aw_* have no effect. They are
  checked all the same, so that a config can hold them whole and switch the
  AW-convolutions on and off by that one field.

  Attributes:
    block: 'basic' or 'bottleneck'.
    stage_sizes: blocks in each stage.
    num_classes: size of the logits; None returns the stages' features.
    width: channels of the stem; doubled from stage to stage.
    stem: 'imagenet' (7x7 of stride 2, then max-pool) or 'cifar' (3x3).
    version: where a bottleneck strides, 'v1.5' (3x3) or 'v1' (first 1x1).
    attention: None or a name in `ATTENTION`, after every block's last norm.
    attention_options: fields of that layer; None or empty without one.
    aw_conv: whether convolutions become AW-convolutions.
    aw_where: which: '3x3', or 'first_3x3' (basic), 'all' (bottleneck).
    aw_stages: in which stages, counted from 1.
    aw_options: fields of `AWConv`, such as reduction and expansion. Those not
      named here have AWConv's defaults, but norm_momentum, norm_epsilon, dtype
      and param_dtype are the network's.
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
    _check_counts('stage_sizes', self.stage_sizes)
    self._check_aw_stages()
    _check_count('width', self.width)
    if self.num_classes is not None:
      _check_count('num_classes', self.num_classes)
    for field in ('norm_momentum', 'norm_epsilon'):
      value = getattr(self, field)
      if not isinstance(value, numbers.Real):
        raise errors.InputError(f'model.{field}={value!r} must be a number')
    for field in ('dtype', 'param_dtype'):
      _check_dtype(field, getattr(self, field))
    self._check_layers()

  @nn.nowrap
  def _check_aw_stages(self):
    """Raises InputError if aw_stages is not a sequence of stages."""
    stages = range(1, len(self.stage_sizes) + 1)
    own = self.aw_stages
    listed = isinstance(own, Sequence) and not isinstance(own, str)
    if not listed or not all(stage in stages for stage in own):
      raise errors.InputError(
          f'model.aw_stages={own!r} must be a sequence of stages, each from 1 '
          f'to {len(stages)}'
      )

  @nn.nowrap
  def _check_layers(self):
    """Raises InputError for options that a layer cannot have."""
    aw_options = self.aw_options
    _check_options('aw_options', aw_options, AWConv, AW_OWN)
    layers = dict(aw_options=functools.partial(AWConv, 1, 1))
    for field in ('dtype', 'param_dtype'):
      if field in (aw_options or {}):
        _check_dtype(f'aw_options.{field}', aw_options[field])
    if self.attention:
      layers['attention_options'] = layer = ATTENTION[self.attention]
      _check_options('attention_options', self.attention_options, layer)
    elif self.attention_options:
      raise errors.InputError(
          f'model.attention_options={dict(self.attention_options)} needs '
          'model.attention, which is None'
      )
    for field, layer in layers.items():
      try:
        layer(parent=None, **(getattr(self, field) or {})).check()
      except (TypeError, ValueError) as error:
        raise errors.InputError(f'model.{field}: {error}') from error

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
      norms = dict(
          norm_momentum=self.norm_momentum, norm_epsilon=self.norm_epsilon
      )
      aw_options = options | norms | dict(self.aw_options or {})
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
    )(mask_padding(x, valid_size))
    x = nn.relu(norm(name='stem_norm')(x))
    valid_size = strided_size(valid_size, stride)
    if self.stem == 'imagenet':
      # No value is negative after the ReLU, so that zeros in the padding are to
      # the maximum what the border's minus infinity is.
      x = mask_padding(x, valid_size)
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
        where the rest of it is padding, of any content. With `train=False`
        logits and features are those of the image alone; features outside of
        its area (whose size is rounded up at every stride) mean nothing. With
        `train=True` the padding still counts in the batch statistics. None
        means no padding, and costs nothing.

    Returns:
      Logits [N, num_classes] in float32, or {'c2': [N, H/4, W/4, ...], ...,
      'c5': [N, H/32, W/32, ...]} (strides are 1 to 8 with the CIFAR stem).

    Raises:
      ValueError: the shape of valid_size does not fit; says which.
    """
    if valid_size is not None:
      valid_size = as_valid_size(valid_size, images.shape)
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
