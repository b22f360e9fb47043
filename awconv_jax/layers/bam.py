"""BAM: scales every value by a gate of its channel and its position.

"BAM: Bottleneck Attention Module", https://arxiv.org/abs/1807.06514:

  y = x + x * M(x)                                          (equation 1)
  M(x) = sigmoid(Mc(x) * Ms(x)) or sigmoid(Mc(x) + Ms(x))   (equation 2)
  Mc(x) = W1 relu(norm(W0 mean_hw(x)))                      (equation 3)
  Ms(x) = f1x1(f3x3(f3x3(f1x1(x))))                         (equation 4)

where the f3x3 are dilated, and all f but the last have a norm and a ReLU. The
paper adds the branches and ends each with a norm; the authors' code multiplies
them and has the norms as above, and so have we.
"""

import functools
import operator
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp

from awconv_jax import options
from awconv_jax.errors import look_up
from awconv_jax.layers.checks import check_call
from awconv_jax.layers.conv import NORM_MOMENTUM, batch_norm
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.valid_area import mask_padding

COMBINE = {'product': operator.mul, 'sum': operator.add}


class BAM(nn.Module):
  """Scales every value of x by 1 to 2.

  Meant to stand once after each stage but the last. At batch size 1 the channel
  branch does not see the image: a norm over one value returns its bias.

  Attributes:
    reduction: r; both branches have C // r channels inside, at least one.
    dilation: of the two 3x3 convolutions.
    combine: how the branches are joined, 'product' or 'sum'.
    norm_momentum, norm_epsilon: of the norms (momentum: share of the old).
    train: whether batch statistics are used; None: if the call may update them.
    dtype, param_dtype: of the computation, and of the parameters.
  """

  place = 'stage'  # See `attention`.
  reduction: options.PositiveInt = 16
  dilation: options.PositiveInt = 4
  combine: Annotated[str, options.OneOf(COMBINE)] = 'product'
  norm_momentum: options.Fraction = NORM_MOMENTUM
  norm_epsilon: options.NonNegativeFloat = nn.BatchNorm.epsilon
  train: bool | None = None
  dtype: options.Dtype | None = None
  param_dtype: options.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    check_call(self, x)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dense = functools.partial(nn.Dense, **dtypes)
    conv, norm = functools.partial(nn.Conv, **dtypes), batch_norm(self)
    channels = x.shape[-1]
    hidden = max(channels // self.reduction, 1)
    a = adaptive_average_pool(x, (1, 1), valid_size=valid_size).astype(x.dtype)
    a = dense(hidden, name='channel_reduce')(a)
    a = nn.relu(norm(name='channel_norm')(a))
    of_channel = dense(channels, name='channel_expand')(a)

    a = x
    for i, size in enumerate((1, 3, 3), start=1):
      pads = size // 2 * self.dilation
      how = dict(kernel_dilation=self.dilation, padding=pads)
      layer = conv(hidden, (size, size), name=f'spatial_conv{i}', **how)
      a = layer(mask_padding(a, valid_size))
      a = nn.relu(norm(name=f'spatial_norm{i}')(a))
    of_position = conv(1, (1, 1), name='spatial_conv4')(a)

    combine = look_up('combine', self.combine, COMBINE)
    return x * (1 + nn.sigmoid(combine(of_channel, of_position)))
