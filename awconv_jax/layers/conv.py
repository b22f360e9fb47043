"""The plain convolution, callable in every place an AWConv is, and the norm."""

from collections.abc import Sequence
import functools
import operator
from typing import Any

import flax.linen as nn
from flax.linen.linear import canonicalize_padding
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import look_up

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
