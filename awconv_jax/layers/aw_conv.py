"""AWConv: a drop-in for `nn.Conv` that recalibrates its kernel per sample.

"An Attention Module for Convolutional Neural Networks",
https://arxiv.org/abs/2108.08205:

  O[n] = conv(I[n], K * (1 + A[n]))
  A = expand(gate(norm(P2(relu(norm(P1(pool(I))))))))

where pool is average pooling to a grid of the kernel's size, P1 and P2 are
pointwise convolutions, and expand repeats each value along one axis.
"""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.errors import InputError, look_up
from awconv_jax.layers import attention
from awconv_jax.layers.checks import check_call
from awconv_jax.layers.conv import (
    NORM_MOMENTUM,
    BatchNorm,
    Kernel,
    ProductBatchNorm,
    pair,
)
from awconv_jax.layers.own_kernel import convolve, masked, refuse_fields
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.aw_conv import IMPLEMENTATIONS
from awconv_jax.ops.valid_area import as_valid_size
from awconv_jax.options import Fraction, NonNegativeFloat, OneOf, PositiveInt

GATES = {
    'sigmoid': jax.nn.sigmoid,
    'tanh': jnp.tanh,
    'relu': jax.nn.relu,
    'none': lambda a: a,
}
# Gates that are 0 at 0, and leave it: the gradient of a relu is 0 there.
IDENTITY_GATES = ('tanh', 'none')
NORMS = {
    'batch': BatchNorm,
    'layer': functools.partial(nn.LayerNorm, use_fast_variance=False),
    'none': None,
}
# Those that need the factors alone of a product that they are to normalise.
PRODUCT_NORMS = {'batch': ProductBatchNorm}
# Whether consecutive input, and output, channels share values of A.
EXPANSION_AXES = {'in': (1, 0), 'out': (0, 1), 'none': (0, 0)}


def expansion_factor(channels: int, expansion: int) -> int:
  """Returns the largest divisor of channels that is at most expansion."""
  return max(e for e in range(1, expansion + 1) if channels % e == 0)


@jax.custom_jvp
def _computed_once(x):
  """Returns x, which XLA computes once for all who use it, and by itself.

  It would else compute the norm and the relu before an AW-convolution twice, as
  to fuse them into the pooling and into a transposition for the kernels. It
  keeps them for the backward pass instead.
  """
  return jax.lax.optimization_barrier(x)


@_computed_once.defjvp
def _computed_once_jvp(primals, tangents):
  return _computed_once(*primals), *tangents  # Gradients may well be fused.


class AttentionMaps(nn.Module):
  """The branch `attention` of an `AWConv`, whose choices are its fields."""

  taps: tuple[int, int]  # kh, kw
  grid: tuple[int, int]
  values: tuple[int, int]  # G, D'
  hidden: int
  gate: Callable[[jax.Array], jax.Array]
  norm: Callable[..., nn.Module] | None
  product_norm: Callable[..., nn.Module] | None
  identity_start: bool
  dtypes: Mapping[str, Any]

  @nn.compact
  def __call__(self, x, valid_size=None):
    """Returns A [N, kh, kw, G, D'] for x [N, H, W, C]."""
    bias = self.norm is None
    dense = functools.partial(nn.Dense, use_bias=bias, **self.dtypes)
    norm = self.norm or (lambda **_: lambda a: a)
    # What an identity start has as zero: the last scale, or without a norm the
    # second convolution.
    kernel_init = nn.initializers.lecun_normal()
    scale_init = nn.initializers.ones
    if self.identity_start:
      scale_init = nn.initializers.zeros
      kernel_init = kernel_init if self.norm else nn.initializers.zeros
    a = adaptive_average_pool(x, self.grid, valid_size=valid_size)
    # By rows, and apart: XLA of jax 0.10 for GPU would transpose what is pooled
    # inside of the product, for which it then finds no tiles, and gives up.
    cells = a.astype(x.dtype).reshape(-1, a.shape[-1])
    a = _computed_once(cells).reshape(a.shape)
    a = dense(self.hidden, name='pointwise1')(a)
    a = nn.relu(norm(name='norm1')(a))
    second = dict(features=math.prod(self.values), kernel_init=kernel_init)
    norm2 = dict(scale_init=scale_init, name='norm2')
    if self.product_norm:
      kernel = Kernel(**second, **self.dtypes, name='pointwise2')(a)
      a = self.product_norm(**norm2)(a, kernel)
    else:
      a = norm(**norm2)(dense(**second, name='pointwise2')(a))
    a = self.gate(a)
    for axis, (cells, taps) in enumerate(zip(self.grid, self.taps), start=1):  # noqa: B905
      if cells != taps:
        # The cell that holds the tap's centre, (i + 1/2) / taps.
        index = (2 * jnp.arange(taps) + 1) * cells // (2 * taps)
        a = jnp.take(a, index, axis=axis)
    return a.reshape(*a.shape[:-1], *self.values)


class AWConv(nn.Conv, kw_only=True):
  """A two-dimensional convolution with per-sample attention on its kernel.

  Takes the place of `nn.Conv`: the same fields, call and output shape, and
  `kernel` and `bias` under the same names, so that plain weights load. The
  attention branch lies under `attention`, with running statistics in the
  collection 'batch_stats'. The maps are sown as 'attention_maps' in
  'intermediates': pass `mutable=['intermediates']` to see them.

  It trains at batch size 1: batch statistics are then taken over the cells of
  the pooled grid. But where that is a single cell (a 1x1 kernel or pool_size=1)
  a batch norm in training returns its bias, and of the branch only the bias of
  `norm2` learns. Use norm='layer' there, which normalises over the channels.

  Fields of `nn.Conv` are as there, but kernel_size may be one number for both
  axes, names of paddings of any case, and input_dilation and
  conv_general_dilated must be left out.

  Attributes:
    reduction: r, by which pointwise convolution 1 reduces the channels.
    min_hidden: the least number of hidden channels.
    expansion: e, how many consecutive channels share one value of A; where it
      does not divide them, the largest divisor below it.
    expansion_axis: 'in' (input channels), 'out' (output channels) or 'none'.
    gate: 'sigmoid', 'tanh', 'relu' or 'none'; no text that we could reach says
      which, see docs/ambiguities.md. From random first values all but the first
      were far worse in docs/results.md.
    norm: 'batch', 'layer' or 'none', after both pointwise convolutions. Batch
      statistics are taken over the whole (also a sharded) batch.
    norm_momentum, norm_epsilon: of the norms (momentum: share of the old).
    residual: True for K * (1 + A), False for K * A.
    pool_size: rows and columns of the pooled input's grid, or a pair of them;
      None for the kernel's size.
    refinement: what refines the maps as if they were an activation of D'
      channels: a name in `attention.IN_BLOCK`, such as 'se', or 'module:Class';
      or what makes a module, called as `refinement(name=...)(maps)` with [N *
      G, kh, kw, D']. Its parameters lie under 'refinement'. None for none.
    identity_start: start with A = 0, so that the layer computes exactly what
      `nn.Conv` does (not in the paper); for the gates 'tanh' and 'none', with
      the residual.
    implementation, chunk: of `ops.aw_conv`.
    train: whether batch statistics are used; may be given in the call instead.
      None in both: True if the call may update 'batch_stats'.

  Where the paper's text leaves a choice open, it is a field here; see
  docs/ambiguities.md.
  """

  reduction: PositiveInt = 16
  min_hidden: PositiveInt = 4
  expansion: PositiveInt = 16
  expansion_axis: Annotated[str, OneOf(EXPANSION_AXES)] = 'in'
  gate: Annotated[str, OneOf(GATES)] = 'sigmoid'
  norm: Annotated[str, OneOf(NORMS)] = 'batch'
  norm_momentum: Fraction = NORM_MOMENTUM
  norm_epsilon: NonNegativeFloat = nn.BatchNorm.epsilon
  residual: bool = True
  pool_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
  refinement: (
      Annotated[str | Callable[..., Any], OneOf(attention.IN_BLOCK, own=True)]
      | None
  ) = None
  identity_start: bool = False
  implementation: Annotated[str, OneOf(IMPLEMENTATIONS)] = 'auto'
  chunk: PositiveInt | None = None
  train: bool | None = None

  def _maps(self, x, kernel_size, inputs, train, valid_size):
    """Returns A [N, kh, kw, G, D'] for so many input channels of the kernel."""
    shared = look_up('expansion_axis', self.expansion_axis, EXPANSION_AXES)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    norm = look_up('norm', self.norm, NORMS)
    product = PRODUCT_NORMS.get(self.norm)
    options = dict(epsilon=self.norm_epsilon, **dtypes)
    if self.norm == 'batch':
      options['use_running_average'] = not train
      options['momentum'] = self.norm_momentum
    maps = AttentionMaps(
        taps=kernel_size,
        grid=kernel_size if self.pool_size is None else pair(self.pool_size),
        values=tuple(
            n // expansion_factor(n, self.expansion if together else 1)
            for n, together in zip((inputs, self.features), shared, strict=True)
        ),
        hidden=max(x.shape[-1] // self.reduction, self.min_hidden),
        gate=look_up('gate', self.gate, GATES),
        norm=norm and functools.partial(norm, **options),
        product_norm=product and functools.partial(product, **options),
        identity_start=self.identity_start,
        dtypes=dtypes,
        name='attention',
    )(x, valid_size)
    if (make := self.refinement) is None:
      return maps
    if isinstance(make, str):
      layer = attention.find(make, 'refinement', (attention.BLOCK,))
      make = attention.partial_of(layer, dict(train=train, **dtypes))
    # The same module for every run of inputs; an activation has one axis less.
    n, kh, kw, groups, outputs = maps.shape
    seen = jnp.moveaxis(maps, 3, 1).reshape(n * groups, kh, kw, outputs)
    layer = make(name='refinement')
    refined = attention.call(layer, seen, None, kind='refinement')
    return jnp.moveaxis(refined.reshape(n, groups, kh, kw, outputs), 1, 3)

  @nn.compact
  def __call__(
      self,
      inputs: jax.Array,
      *,
      train: bool | None = None,
      valid_size: jax.Array | None = None,
  ) -> jax.Array:
    """Convolves every sample with its own kernel.

    Args:
      inputs: [..., H, W, C] with any number of leading (batch) axes.
      train: see the class.
      valid_size: int [..., 2], see `ops.valid_area`; A is computed from that
        area alone. The convolution sees the padding as it is: for the output
        of the image alone it must be zero.

    Returns:
      [..., H', W', features].

    Raises:
      ValueError: shapes do not fit, a name is unknown, or fields exclude each
        other; says which.
    """
    check_call(self, inputs, any_batch=True)
    keeps = self.residual and self.gate in IDENTITY_GATES
    if self.identity_start and not keeps:
      raise InputError(
          'model.aw_options.identity_start needs residual=True and a gate of '
          f'{IDENTITY_GATES}, not residual={self.residual}, gate={self.gate!r}'
      )
    refuse_fields(self)
    if self.train is not None or train is not None:
      train = nn.merge_param('train', self.train, train)
    else:
      train = self.is_mutable_collection('batch_stats')
    kernel_size = pair(self.kernel_size)
    channels = inputs.shape[-1] // self.feature_group_count
    shape = *kernel_size, channels, self.features
    kernel = self.param('kernel', self.kernel_init, shape, self.param_dtype)
    kernel = masked(self, kernel)
    bias = None
    if self.use_bias:
      shape = (self.features,)
      bias = self.param('bias', self.bias_init, shape, self.param_dtype)
    arrays = inputs, kernel, bias
    inputs, kernel, bias = self.promote_dtype(*arrays, dtype=self.dtype)
    x = inputs.reshape(-1, *inputs.shape[-3:])
    if valid_size is not None:
      valid_size = as_valid_size(valid_size, inputs.shape).reshape(-1, 2)
    x = _computed_once(x)
    maps = self._maps(x, kernel_size, channels, train, valid_size)
    self.sow('intermediates', 'attention_maps', maps)
    out = convolve(self, x, kernel, maps, self.residual)
    out = out if bias is None else out + bias
    return out.reshape(*inputs.shape[:-3], *out.shape[1:])
