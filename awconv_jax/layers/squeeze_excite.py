"""Squeeze-and-excitation: scales channels by a gate of their global average.

"Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507:

  y = x * sigmoid(W2 relu(W1 mean_hw(x)))
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from awconv_jax.layers.checks import check_call
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.options import Dtype, PositiveInt


class SqueezeExcite(nn.Module):
  """Scales the channels of x; valid_size is as in `ops.valid_area`.

  Attributes:
    reduction: r; the hidden layer has C // r channels, at least one.
    dtype, param_dtype: of the computation, and of the parameters.
  """

  reduction: PositiveInt = 16
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    check_call(self, x)
    channels = x.shape[-1]
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dense = functools.partial(nn.Dense, **dtypes)
    hidden = max(channels // self.reduction, 1)
    gate = adaptive_average_pool(x, (1, 1), valid_size=valid_size)
    gate = dense(hidden, name='reduce')(gate.astype(x.dtype))
    return x * nn.sigmoid(dense(channels, name='expand')(nn.relu(gate)))
