"""Coordinate attention: scales by a gate of each row and one of each column.

"Coordinate Attention for Efficient Mobile Network Design",
https://arxiv.org/abs/2103.02907:

  f = h_swish(norm(F1 [mean_w(x); mean_h(x)]))        (equations 4 to 6)
  y = x * sigmoid(F_h f_h) * sigmoid(F_w f_w)         (equations 7 to 9)

where the means, one for each row and one for each column, share F1 and the
norm. The norm, h-swish and the least number of hidden channels are those of the
authors' code.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from awconv_jax import options
from awconv_jax.layers.checks import check_call
from awconv_jax.layers.conv import NORM_MOMENTUM, batch_norm
from awconv_jax.ops.valid_area import as_valid_size, mask_padding


class CoordinateAttention(nn.Module):
  """Scales every channel by row and by column; see `ops.valid_area`.

  Attributes:
    reduction: r; there are C // r hidden channels.
    min_hidden: the least number of these.
    norm_momentum, norm_epsilon: of the norm (momentum: share of the old).
    train: whether batch statistics are used; None: if the call may update them.
    dtype, param_dtype: of the computation, and of the parameters.
  """

  reduction: options.PositiveInt = 32
  min_hidden: options.PositiveInt = 8
  norm_momentum: options.Fraction = NORM_MOMENTUM
  norm_epsilon: options.NonNegativeFloat = nn.BatchNorm.epsilon
  train: bool | None = None
  dtype: options.Dtype | None = None
  param_dtype: options.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    check_call(self, x)
    channels = x.shape[-1]
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dense = functools.partial(nn.Dense, **dtypes)
    height, width = as_valid_size(valid_size, x.shape).T[..., None, None]
    inside = mask_padding(x, valid_size)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    means = inside.sum(2, wide) / width, inside.sum(1, wide) / height
    # As positions of one line, so that both share the layers.
    line = jnp.concatenate(means, axis=1).astype(x.dtype)
    hidden = max(channels // self.reduction, self.min_hidden)
    line = dense(hidden, name='reduce')(line)
    line = nn.hard_swish(batch_norm(self)(name='norm')(line))
    rows, columns = jnp.split(line, [x.shape[1]], axis=1)
    rows = nn.sigmoid(dense(channels, name='expand_rows')(rows))
    columns = nn.sigmoid(dense(channels, name='expand_columns')(columns))
    return x * rows[:, :, None] * columns[:, None]
