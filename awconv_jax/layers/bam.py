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
import jax
import jax.numpy as jnp

from awconv_jax.errors import look_up
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import (
    Dtype,
    NonNegativeFloat,
    OneOf,
    PositiveInt,
    UnitFloat,
)

COMBINE = {'product': operator.mul, 'sum': operator.add}


class BAM(nn.Module):
  """Scales every value of x; meant to stand once after each stage but the last.

  It trains at batch size 1, but the channel branch does not see the image then:
  a batch norm over one value per channel returns its bias.

  Attributes:
    reduction: r; both branches have C // r channels inside, at least one.
    dilation: of the two 3x3 convolutions.
    combine: how the branches are joined, 'product' or 'sum'.
    norm_momentum, norm_epsilon: of the norms (momentum: share of the old).
    train: whether batch statistics are used, in which padding counts, too.
      None: True if the call may update 'batch_stats'.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  reduction: PositiveInt = 16
  dilation: PositiveInt = 4
  combine: Annotated[str, OneOf(COMBINE)] = 'product'
  norm_momentum: UnitFloat = 0.9
  norm_epsilon: NonNegativeFloat = 1e-5
  train: bool | None = None
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32

  def _channel_branch(self, x, hidden, norm, valid_size):
    """Returns [N, 1, 1, C]."""
    dense = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    a = adaptive_average_pool(x, (1, 1), valid_size=valid_size).astype(x.dtype)
    a = nn.Dense(hidden, name='channel_reduce', **dense)(a)
    a = nn.relu(norm(name='channel_norm')(a))
    return nn.Dense(x.shape[-1], name='channel_expand', **dense)(a)

  def _spatial_branch(self, x, hidden, norm, valid_size):
    """Returns [N, H, W, 1]."""
    conv = functools.partial(
        nn.Conv, dtype=self.dtype, param_dtype=self.param_dtype
    )
    for i, size in enumerate((1, 3, 3), start=1):
      x = conv(
          hidden,
          (size, size),
          kernel_dilation=self.dilation,
          padding=size // 2 * self.dilation,
          name=f'spatial_conv{i}',
      )(mask_padding(x, valid_size))
      x = nn.relu(norm(name=f'spatial_norm{i}')(x))
    return conv(1, (1, 1), name='spatial_conv4')(x)

  @nn.compact
  def __call__(
      self, x: jax.Array, *, valid_size: jax.Array | None = None
  ) -> jax.Array:
    """Scales every value of each image by 1 to 2.

    Args:
      x: [N, H, W, C].
      valid_size: int [N, 2], height and width of the image from the top left
        where the rest of it is padding. With the running statistics the output
        in that area is that of the image alone.

    Returns:
      [N, H, W, C].

    Raises:
      ValueError: the name of combine is unknown, or the shape of valid_size
        does not fit.
    """
    train = self.train
    if train is None:
      train = self.is_mutable_collection('batch_stats')
    norm = functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=self.norm_momentum,
        epsilon=self.norm_epsilon,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )
    hidden = max(x.shape[-1] // self.reduction, 1)
    gate = look_up('combine', self.combine, COMBINE)(
        self._channel_branch(x, hidden, norm, valid_size),
        self._spatial_branch(x, hidden, norm, valid_size),
    )
    return x * (1 + nn.sigmoid(gate))
