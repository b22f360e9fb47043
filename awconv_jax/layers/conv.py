"""The plain convolution, callable in every place an AWConv is, and the norm."""

from collections.abc import Sequence
import functools
import operator
from typing import Any

import flax.linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.linen.linear import canonicalize_padding
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import look_up
from awconv_jax.ops.valid_area import as_valid_size

Axes = Sequence[int]
# Paddings by name: those of nn.Conv that XLA has not are modes of `jnp.pad`.
WRAPS = {'CIRCULAR': 'wrap', 'REFLECT': 'reflect'}
_PADDINGS = WRAPS | dict.fromkeys(('SAME', 'SAME_LOWER', 'VALID'))
NORM_MOMENTUM = 0.9  # Of batch norms: the share of the old statistics.


def pair(value: int | Sequence[int] | None) -> tuple[int, int]:
  """Returns (value, value) for a number, (1, 1) for None, else two values."""
  if value is None:
    return 1, 1
  entries = tuple(value) if np.ndim(value) else (value, value)
  if len(entries) != 2:
    raise ValueError(f'want a number for each of two axes, not {value!r}')
  return operator.index(entries[0]), operator.index(entries[1])


def explicit_padding(
    padding: Any, size: Axes, spans: Axes, strides: Axes
) -> Sequence[tuple[int, int]]:
  """Returns (low, high) for both axes, whatever padding `nn.Conv` was given.

  The image has that size; spans are from the first to the last tap of the
  kernel, in positions. ValueError if padding does not cover two axes, or is no
  name (in any case).
  """
  padding = canonicalize_padding(padding, 2)
  if not isinstance(padding, str):
    return padding
  if look_up('padding', padding.upper(), _PADDINGS):
    return [(span // 2, (span + 1) // 2) for span in spans]
  windows = [span + 1 for span in spans]
  return lax.padtype_to_pads(size, windows, strides, padding)


def spans_and_pads(
    layer: Any, size: Axes
) -> tuple[list[int], Sequence[tuple[int, int]]]:
  """Returns the spans of a layer's kernel and its paddings, of both axes.

  The layer has the fields of `nn.Conv`, and the image that size; see
  `explicit_padding`.
  """
  kernel, dilation = pair(layer.kernel_size), pair(layer.kernel_dilation)
  spans = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
  strides = pair(layer.strides)
  return spans, explicit_padding(layer.padding, size, spans, strides)


def valid_output(
    valid_size: jax.Array, pads: Any, spans: Axes, strides: Axes, shape: Axes
) -> jax.Array:
  """Returns the valid size of a convolution's output, int [N, 2].

  It has as many positions as for the image alone; see `ops.valid_area`.

  Args:
    valid_size: int [N, 2], of the input.
    pads, spans, strides: of both axes, as in `explicit_padding`.
    shape: of the output.
  """
  more = [sum(p) - s for p, s in zip(pads, spans, strict=True)]
  valid_size = (valid_size + jnp.array(more) - 1) // jnp.array(strides) + 1
  return as_valid_size(valid_size, shape)


class BatchNorm(nn.BatchNorm):
  """`nn.BatchNorm` with exact variances, and statistics as wide as its dtypes.

  Flax's, E[x^2] - E[x]^2, is nearly all rounding where the mean is a thousand
  times the standard deviation. In attention branches, whose activations are
  small, the exact one costs nothing.
  """

  use_fast_variance: bool = False

  @nn.nowrap
  def variable(self, col, name, init_fn: Any = None, *args, **kwargs):
    """Returns the variable, which Flax would make in float32."""
    own = self.param_dtype
    dtype = jnp.result_type(own, self.dtype or own, jnp.float32)
    wide = lambda *a: init_fn(*a).astype(dtype)  # noqa: E731
    return super().variable(col, name, wide, *args, **kwargs)


@jax.custom_jvp
def _dense(x, kernel, shift):
  """Returns x [..., C] times kernel [C, D], + shift [D]."""
  return x @ kernel + shift


@_dense.defjvp
def _dense_jvp(primals, tangents):
  # One product has both gradients, of the kernel and of the shift. A product's
  # operand is computed on the way; for a sum XLA would compute it once more.
  x, kernel, _ = primals
  ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
  wider = jnp.concatenate([x, ones], -1)
  both = jnp.concatenate([tangents[1], tangents[2][None]])
  return _dense(*primals), tangents[0] @ kernel + wider @ both


class Kernel(nn.Dense):
  """The kernel of a dense layer without a bias, for others to multiply by."""

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns [C, features] for inputs [..., C], as in the parameters."""
    shape = inputs.shape[-1], self.features
    return self.param('kernel', self.kernel_init, shape, self.param_dtype)


class ProductBatchNorm(BatchNorm):
  """`BatchNorm` of inputs @ kernel, folded into the kernel.

  The variance of a product is the diagonal of kernel^T cov(inputs) kernel. So
  neither pass reduces the product, which may be far larger than its factors.
  It is exact at any mean, and rounds by what float32 does to the largest of
  cov(inputs), times |kernel|^2: more than a variance that is 1e6 times smaller.
  Of Flax's fields those that `BatchNorm` is given here count.
  """

  @nn.compact
  def __call__(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns [..., D] for inputs [..., C] and a kernel [C, D]."""
    size = kernel.shape[-1:]
    dtype = canonicalize_dtype(inputs, kernel, dtype=self.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    inputs, kernel = inputs.astype(wide), kernel.astype(wide)
    scale = self.param('scale', self.scale_init, size, self.param_dtype)
    shift = self.param('bias', self.bias_init, size, self.param_dtype)
    running = [
        self.variable('batch_stats', name, init, size)
        for name, init in (('mean', jnp.zeros), ('var', jnp.ones))
    ]
    product = functools.partial(jnp.tensordot, precision='highest')
    average = self.use_running_average
    if nn.merge_param('use_running_average', average, None):
      mean, var = (statistic.value for statistic in running)
      scale = scale * lax.rsqrt(var + self.epsilon)
      # Of rounded factors these inputs' product would be off in its mean.
      out = product(inputs, kernel * scale, 1) + (shift - mean * scale)
      return out.astype(dtype)
    axes = tuple(range(inputs.ndim - 1))
    center = inputs.mean(axes)
    # A product of these has a mean of zero, however it is rounded.
    inputs = inputs - center
    covariance = product(inputs, inputs, (axes, axes))
    covariance /= inputs[..., 0].size
    var = (kernel * product(covariance, kernel, 1)).sum(0)
    var = jnp.maximum(var, 0)  # Rounding may take it below.
    scale = scale * lax.rsqrt(var + self.epsilon)
    if not self.is_initializing():
      seen = product(center, kernel, 1), var
      for statistic, new in zip(running, seen, strict=True):
        old = self.momentum * statistic.value
        statistic.value = old + (1 - self.momentum) * new
    kernel = (kernel * scale).astype(dtype)
    return _dense(inputs.astype(dtype), kernel, shift.astype(dtype))


def batch_norm(layer: Any, train: bool | None = None) -> functools.partial:
  """Returns the batch norm that a layer's fields (or `train`) describe."""
  train = layer.train if train is None else train
  if train is None:
    train = layer.is_mutable_collection('batch_stats')
  return functools.partial(
      BatchNorm,
      use_running_average=not train,
      momentum=layer.norm_momentum,
      epsilon=layer.norm_epsilon,
      dtype=layer.dtype,
      param_dtype=layer.param_dtype,
  )


class Conv(nn.Conv):
  """`nn.Conv` that accepts, and has no use for, the image's valid area."""

  @nn.nowrap  # Flax would record the output of a second method.
  def __call__(
      self, inputs: jax.Array, *, valid_size: jax.Array | None = None
  ) -> jax.Array:
    """Returns [N, H', W', features] for inputs [N, H, W, C]."""
    del valid_size
    return super().__call__(inputs)
