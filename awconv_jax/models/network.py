"""What all networks share: their fields, and the layers made by these.

Every network is a file that reads from the stem to the head. The functions here
make, as partials, what it puts in the slots of its blocks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.errors import InputError, look_up
from awconv_jax.layers.attention import (
    AFTER_STAGE,
    AS_CONV,
    ATTENTION,
    IN_BLOCK,
    partial_of,
)
from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.layers.conv import Conv
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import (
    Dtype,
    Fraction,
    NonNegativeFloat,
    OneOf,
    Options,
    PositiveInt,
    UnitFloat,
)

# He initialisation by fan-out, as torchvision's.
kernel_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Network(nn.Module):
  """The fields of every network over NHWC images, and how it is called.

    network(images, *, train, valid_size=None)

    images: [N, H, W, 3] (or any channels), normalised.
    train: whether norms use (and update) the batch's statistics, and dropout
      and stochastic depth are on.
    valid_size: int [N, 2], height and width of each image from the top left
      where the rest of it is padding, of any content. With `train=False` logits
      and features are those of the image alone; features outside of its area
      (whose size is rounded up at every stride) mean nothing. With `train=True`
      the padding still counts in the batch statistics. None means no padding,
      and costs nothing.

  It returns logits [N, num_classes] in float32 or, for `num_classes=None`, the
  output of every stage, 'c2', 'c3', ...; of a ResNet {'c2': [N, H/4, W/4, ...],
  ..., 'c5': [N, H/32, W/32, ...]} (strides are 1 to 8 with the CIFAR stem).

  With `aw_conv=False` the other fields named aw_* have no effect, so that a
  config holds them whole and that one field switches AW-convolutions on.

  Attributes:
    num_classes: size of the logits; None returns the stages' features.
    attention: None or a name in `layers.attention.ATTENTION`.
    attention_options: fields of that layer; None or empty without one.
    aw_conv: whether convolutions become AW-convolutions
      (https://arxiv.org/abs/2108.08205).
    aw_where: which; see the network.
    aw_stages: in which stages, counted from 1; None is all.
    aw_options: fields of `AWConv`, such as reduction and expansion. Those not
      named here have AWConv's defaults, but norm_momentum, norm_epsilon, dtype
      and param_dtype are the network's.
    stochastic_depth: chance that a sample skips the branch of the last block in
      training (https://arxiv.org/abs/1603.09382); it grows linearly over all
      blocks from 0 at the first; needs an rng 'dropout' in training.
    norm_momentum: share of the old running statistics.
    norm_epsilon: of the norms.
    dtype: of the computation, such as 'bfloat16'; logits are float32.
    param_dtype: of the parameters.
  """

  num_classes: PositiveInt | None = 1000
  attention: Annotated[str, OneOf(ATTENTION)] | None = None
  attention_options: Annotated[
      Mapping[str, Any] | None,
      Options(
          ATTENTION,
          by='attention',
          given=('train', 'dtype', 'param_dtype', 'convolution', 'downsample'),
      ),
  ] = None
  aw_conv: bool = False
  aw_where: str = '3x3'
  aw_stages: tuple[PositiveInt, ...] | None = None
  aw_options: Annotated[
      Mapping[str, Any] | None,
      Options(AWConv, given=('train', 'norm_momentum', 'norm_epsilon')),
  ] = None
  stochastic_depth: Fraction = 0.0
  norm_momentum: UnitFloat = 0.9
  norm_epsilon: NonNegativeFloat = 1e-5
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32


def check_places(net: Network, stages: int, dense_3x3: bool) -> None:
  """Raises InputError where options name places that a network has not.

  Args:
    net: the network.
    stages: number of its stages.
    dense_3x3: whether there are 3x3 convolutions without groups.
  """
  if net.attention is not None:
    look_up('attention', net.attention, ATTENTION)
  if net.attention in AS_CONV and not dense_3x3:
    raise InputError(
        f'model.attention={net.attention!r} augments dense 3x3 convolutions, '
        'and this network has none; take another attention'
    )
  if not set(net.aw_stages or ()) <= set(range(1, stages + 1)):
    raise InputError(
        f'model.aw_stages={net.aw_stages} must be from 1 to {stages}, the '
        'stages of the network'
    )


def convolve(
    conv: Callable[..., Any],
    name: str,
    x: jax.Array,
    features: int,
    size: int,
    stride: int = 1,
    valid_size: jax.Array | None = None,
    **fields: Any,
) -> tuple[jax.Array, jax.Array | None]:
  """Convolves with padding as in torch, which converted weights need.

  It is explicit and symmetric: 'SAME' pads a stride of 2 on one side more.

  Args:
    conv: makes the convolution.
    name: of the convolution.
    x: [N, H, W, C].
    features: of the output.
    size: of the kernel, on both axes.
    stride: of both axes.
    valid_size: int [N, 2], the images' area in x, or None.
    **fields: others of the convolution.

  Returns:
    [N, H / stride, W / stride, features], and the images' area in that.
  """
  if size > 1:
    # A norm and ReLU leave the padding as their bias, not as zero, and a window
    # at the edge of the image would see it.
    x = mask_padding(x, valid_size)
  conv = conv(
      features,
      (size, size),
      strides=(stride, stride),
      padding=((size // 2, size // 2),) * 2,
      name=name,
      **fields,
  )
  return conv(x, valid_size=valid_size), strided_size(valid_size, stride)


def strided_size(size: jax.Array | None, stride: int) -> jax.Array | None:
  """Returns the valid height and width after a layer of that stride."""
  return None if size is None else -(-size // stride)


def conv_of(net: Network) -> functools.partial:
  """Returns the plain convolution of a network."""
  return functools.partial(
      Conv,
      use_bias=False,
      kernel_init=kernel_init,
      dtype=net.dtype,
      param_dtype=net.param_dtype,
  )


def convs_of(
    net: Network,
    stage: int,
    train: bool,
    *,
    slots: Sequence[str],
    aw: Sequence[str],
    augmented: str | None = None,
    downsample: int = 1,
) -> dict[str, functools.partial]:
  """Returns what convolves in every slot of a stage's blocks; see `convolve`.

  Args:
    net: the network.
    stage: counted from 1.
    train: whether norms use the batch's statistics.
    slots: names of the convolutions.
    aw: those of them that are AW-convolutions where the network has these.
    augmented: None, or the slot that attention in the place of a convolution
      takes, if it is the network's.
    downsample: by how much that attention shrinks the images.
  """
  plain = conv_of(net)
  convs = dict.fromkeys(slots, plain)
  if net.aw_conv and (net.aw_stages is None or stage in net.aw_stages):
    fields = plain.keywords | dict(
        norm_momentum=net.norm_momentum, norm_epsilon=net.norm_epsilon
    )
    fields |= net.aw_options or {}
    convs |= dict.fromkeys(aw, functools.partial(AWConv, train=train, **fields))
  if augmented and net.attention in AS_CONV:
    convs[augmented] = functools.partial(
        attention_of(net, AS_CONV, train),
        **plain.keywords,
        convolution=convs[augmented],
        downsample=downsample,
    )
  return {s: functools.partial(convolve, conv, s) for s, conv in convs.items()}


def norm_of(net: Network, train: bool) -> functools.partial:
  """Returns the batch norm of a network."""
  return functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=net.norm_momentum,
      epsilon=net.norm_epsilon,
      dtype=net.dtype,
      param_dtype=net.param_dtype,
  )


def attention_of(net: Network, place: Mapping[str, type], train: bool) -> Any:
  """Returns the attention layer of a network if it has that place, or None."""
  if net.attention not in place:
    return None
  return partial_of(
      place[net.attention],
      train=train,
      dtype=net.dtype,
      param_dtype=net.param_dtype,
      **net.attention_options or {},
  )


def attend_stage(
    net: Network, stage: int, x: jax.Array, train: bool, valid_size: Any
) -> jax.Array:
  """Returns the output x of a stage gated, if attention has its place there."""
  gate = attention_of(net, AFTER_STAGE, train)
  if gate is None:
    return x
  return gate(name=f'stage{stage}_attention')(x, valid_size=valid_size)


def parts_of(
    net: Network, blocks: int, train: bool
) -> Iterator[dict[str, functools.partial | None]]:
  """Yields norm, attention and drop of each block of a network.

  The drop leaves out the branch of whole samples at random. Those kept are
  divided by the chance of that, so that the expected value is the value in
  evaluation, which drops nothing. (The paper scales in evaluation instead,
  drops one layer for all of a batch, and begins with a small chance at the
  first block; the recipes that are in use do this.)

  Args:
    net: the network.
    blocks: number of its blocks.
    train: whether norms use the batch's statistics, and anything is dropped.
  """
  for before in range(blocks):
    yield dict(
        norm=norm_of(net, train),
        attention=attention_of(net, IN_BLOCK, train),
        drop=functools.partial(
            nn.Dropout,
            net.stochastic_depth * before / max(blocks - 1, 1),
            broadcast_dims=(1, 2, 3),
            deterministic=not train,
        ),
    )


def classify(
    net: Network,
    x: jax.Array,
    train: bool,
    valid_size: jax.Array | None,
    dropout: float = 0.0,
) -> jax.Array:
  """Returns float32 logits [N, num_classes] for features [N, H, W, C]."""
  x = adaptive_average_pool(x, (1, 1), valid_size=valid_size)[:, 0, 0]
  x = nn.Dropout(dropout, deterministic=not train)(x)
  head = nn.Dense(
      net.num_classes, dtype=net.dtype, param_dtype=net.param_dtype, name='head'
  )
  return head(x.astype(net.dtype)).astype(jnp.float32)
