"""What all networks share: fields, and methods that fill blocks' slots."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax import options
from awconv_jax.errors import InputError
from awconv_jax.layers import attention as layers
from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.layers.conv import Conv, batch_norm
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.valid_area import as_valid_size, mask_padding

# He initialisation by fan-out, as torchvision's.
kernel_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
Layer = Callable[..., Any]
Size = jax.Array | None  # See `valid_size` of `Network`.
Output = jax.Array | dict[str, jax.Array]  # Logits, or features of stages.


def strided_size(size: Size, stride: int) -> Size:
  """Returns the valid height and width after a layer of that stride."""
  return None if size is None else -(-size // stride)


def check_norms(backbone: nn.Module, norm_train: bool) -> None:
  """Raises InputError for a backbone that frozen norms would stop short."""
  depth = getattr(backbone, 'stochastic_depth', 0)
  if depth and not norm_train:
    raise InputError(
        f'model.backbone.stochastic_depth={depth} needs model.norm_train='
        'true: with frozen norms the backbone runs as in evaluation'
    )


class Block(nn.Module):
  """The slots that all blocks have."""

  conv: Layer  # See `Network.conv`; of the others, see `Network.parts`.
  norm: Layer
  gate: Layer
  drop: Layer


class Network(nn.Module):
  """The fields of every network over NHWC images, and how it is called.

    network(images, *, train, valid_size=None)

    images: [N, H, W, 3] (or any channels), normalised.
    train: whether norms use (and update) the batch's statistics, and dropout
      and stochastic depth are on.
    valid_size: see `ops.valid_area`. With `train=False` logits and features are
      those of the image alone; features outside of its area (whose size is
      rounded up at every stride) mean nothing. With `train=True` the padding
      still counts in the batch statistics.

  It returns logits [N, num_classes] in float32 at least or, for
  `num_classes=None`, the output of every stage, 'c2', 'c3', ...; of a ResNet
  {'c2': [N, H/4, W/4, ...], ..., 'c5': [N, H/32, W/32, ...]} (strides are 1 to
  8 with the CIFAR stem).

  With `aw_conv=False` the other fields named aw_* have no effect, so that a
  config holds them whole and that one field switches AW-convolutions on. But
  aw_where and aw_stages also tell where attention stands that takes the place
  of AW-convolutions, such as 'condconv'.

  Attributes:
    num_classes: size of the logits; None returns the stages' features.
    attention: None, a name in `layers.attention.ATTENTION`, or 'module:Class'
      of a layer of your own, which that file says how to write.
    attention_options: fields of that layer; None or empty without one.
    aw_conv: whether convolutions become AW-convolutions
      (https://arxiv.org/abs/2108.08205).
    aw_where: which, or which are of such an attention; see the network.
    aw_stages: in which stages these are, counted from 1; None is all.
    aw_options: fields of `AWConv`, such as reduction and expansion. Those not
      named here have AWConv's defaults, but norm_momentum, norm_epsilon, dtype
      and param_dtype are the network's.
    stochastic_depth: chance that a sample skips the branch of the last block in
      training (https://arxiv.org/abs/1603.09382); it grows linearly over all
      blocks from 0 at the first; needs an rng 'dropout' in training.
    norm_momentum: share of the old running statistics.
    norm_epsilon: of the norms.
    dtype: of the computation, such as 'bfloat16'; logits are float32 at least.
      'float64' needs JAX_ENABLE_X64=1 in the environment.
    param_dtype: of the parameters; running statistics have the widest of both
      and float32.
  """

  num_classes: options.PositiveInt | None = 1000
  attention: (
      Annotated[str, options.OneOf(layers.ATTENTION, own=True)] | None
  ) = None
  attention_options: Annotated[
      Mapping[str, Any] | None,
      options.Options(
          layers.find,
          by='attention',
          given=('train', 'dtype', 'param_dtype', 'convolution', 'downsample'),
      ),
  ] = None
  aw_conv: bool = False
  aw_where: str = '3x3'
  aw_stages: tuple[options.PositiveInt, ...] | None = None
  aw_options: Annotated[
      Mapping[str, Any] | None,
      options.Options(AWConv, given=('train', 'norm_momentum', 'norm_epsilon')),
  ] = None
  stochastic_depth: options.Fraction = 0.0
  norm_momentum: options.Fraction = AWConv.norm_momentum
  norm_epsilon: options.NonNegativeFloat = AWConv.norm_epsilon
  dtype: options.Dtype = jnp.float32
  param_dtype: options.Dtype = jnp.float32

  def check_places(self, stages: int, *, dense_3x3: bool) -> None:
    """Raises InputError where options name places that the network has not."""
    layer = self.attention and layers.find(self.attention)
    place = layer and layers.place_of(layer)
    if place == layers.CONV and not dense_3x3:
      raise InputError(
          f'model.attention={self.attention!r} augments dense 3x3 convolutions,'
          ' and this network has none'
      )
    if place == layers.AW_CONV and self.aw_conv:
      raise InputError(
          f'model.attention={self.attention!r} stands where AW-convolutions '
          'would: leave it out, or set model.aw_conv=False'
      )
    if not set(self.aw_stages or ()) <= set(range(1, stages + 1)):
      raise InputError(
          f'model.aw_stages={self.aw_stages} must be from 1 to {stages}'
      )

  def start(self, images: jax.Array, valid_size: Any) -> tuple[jax.Array, Size]:
    """Returns both as the arrays that the stem takes."""
    if valid_size is not None:
      valid_size = as_valid_size(valid_size, images.shape)
    return images.astype(self.dtype), valid_size

  def conv(
      self,
      stage: int = 0,
      train: bool = False,
      *,
      aw: Sequence[str] = (),
      augmented: str | None = None,
      downsample: int = 1,
  ) -> Layer:
    """Returns what convolves in the slots of a stage's blocks.

    It pads symmetrically, as torch does, which converted weights need.

    Args:
      stage: counted from 1.
      train: whether norms use the batch's statistics.
      aw: the slots of AW-convolutions, or of attention in their place, where
        the network has these.
      augmented: the slot of attention in the place of a convolution, likewise.
      downsample: by how much that attention shrinks the images.
    """
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    common = dict(use_bias=False, kernel_init=kernel_init) | dtypes
    plain, slots = partial(Conv, **common), {}
    if self.aw_stages is None or stage in self.aw_stages:
      if self.aw_conv:
        norms = ('norm_momentum', 'norm_epsilon')
        fields = common | {name: getattr(self, name) for name in norms}
        fields |= self.aw_options or {}
        slots = dict.fromkeys(aw, partial(AWConv, train=train, **fields))
      elif attend := self.attend(layers.AW_CONV, train):
        slots = dict.fromkeys(aw, partial(attend, **common))
    inner = slots.get(augmented or '', plain)
    given = dict(convolution=inner, downsample=downsample)
    if augmented and (attend := self.attend(layers.CONV, train, **given)):
      slots[augmented] = partial(attend, **common)

    def convolve(slot, x, features, size, stride=1, valid_size=None, groups=1):
      """Returns [N, H / stride, W / stride, features], and its valid size."""
      if size > 1:
        # A norm and ReLU leave the padding as their bias, not as zero, and a
        # window at the edge of the image would see it.
        x = mask_padding(x, valid_size)
      layer = slots.get(slot, plain)(
          features,
          (size, size),
          strides=(stride, stride),
          padding=((size // 2, size // 2),) * 2,
          feature_group_count=groups,
          name=slot,
      )
      height, width = (-(-side // stride) for side in x.shape[1:3])
      shape = x.shape[0], height, width, features
      out = layers.call(layer, x, valid_size, shape)
      return out, strided_size(valid_size, stride)

    return convolve

  def norm(self, train: bool) -> partial:
    """Returns the batch norm, with Flax's variance E[x^2] - E[x]^2.

    An exact one reads all activations once more: 8 % of a step of ResNet-50
    (H200, bfloat16), 7 % of one of ResNet-18 (16 cores). That of Flax is wrong
    where a mean is a thousand times its standard deviation.
    """
    return partial(batch_norm(self, train), use_fast_variance=True)

  def attend(self, place: str, train: bool, **given: Any) -> partial | None:
    """Returns the attention layer if it has that place, or None."""
    layer = self.attention and layers.find(self.attention)
    if not layer or layers.place_of(layer) != place:
      return None
    given |= dict(dtype=self.dtype, param_dtype=self.param_dtype, train=train)
    return layers.partial_of(layer, given, **self.attention_options or {})

  def gate(self, name: str, train: bool, place: str = layers.STAGE) -> Layer:
    """Returns what gates (x, valid_size) where attention has that place."""
    layer = self.attend(place, train)
    if layer is None:
      return lambda x, valid_size: x
    return lambda x, valid_size: layers.call(layer(name=name), x, valid_size)

  def parts(self, blocks: int, train: bool) -> Iterator[dict[str, Any]]:
    """Yields the norm, gate and drop of each of so many blocks.

    The drop leaves out the branch of whole samples at random, and divides those
    kept by the chance of that, as recipes in use do. (The paper scales in
    evaluation, drops for all of a batch, and at the first block, too.)
    """
    for before in range(blocks):
      yield dict(
          norm=self.norm(train),
          gate=self.gate('attention', train, layers.BLOCK),
          drop=partial(
              nn.Dropout,
              self.stochastic_depth * before / max(blocks - 1, 1),
              broadcast_dims=(1, 2, 3),
              deterministic=not train,
              name='stochastic_depth',
          ),
      )

  def classify(
      self, x: jax.Array, train: bool, valid_size: Size, dropout: float = 0.0
  ) -> jax.Array:
    """Returns logits [N, num_classes] for features [N, H, W, C]."""
    x = adaptive_average_pool(x, (1, 1), valid_size=valid_size)[:, 0, 0]
    x = nn.Dropout(dropout, deterministic=not train)(x).astype(self.dtype)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    head = nn.Dense(self.num_classes, name='head', **dtypes)
    return head(x).astype(jnp.promote_types(x.dtype, jnp.float32))
