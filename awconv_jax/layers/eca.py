"""ECA: scales channels by a gate of the averages of a few channels beside them.

"ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
https://arxiv.org/abs/1910.03151:

  y = x * sigmoid(conv1d(mean_hw(x)))  with a kernel of k channels,
  k = |log2(C) / gamma + b / gamma|, made odd (equation 12)
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from awconv_jax.layers.checks import check_call
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.options import Dtype, Number, PositiveFloat, PositiveInt


class ECA(nn.Module):
  """Scales the channels of x; valid_size is as in `ops.valid_area`.

  Attributes:
    gamma, b: of the rule by which the kernel grows with the channels.
    kernel_size: k, channels that a gate sees; None for that rule, cut to an
      integer, and one more if that is even, as the authors' code does. The
      paper says the nearest odd number.
    dtype, param_dtype: of the computation, and of the parameters.
  """

  gamma: PositiveFloat = 2
  b: Number = 1
  kernel_size: PositiveInt | None = None
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    check_call(self, x)
    size = self.kernel_size
    if size is None:
      size = int(abs((math.log2(x.shape[-1]) + self.b) / self.gamma))
      size += size % 2 == 0
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    conv = nn.Conv(1, (size,), use_bias=False, name='conv', **dtypes)
    gate = adaptive_average_pool(x, (1, 1), valid_size=valid_size)
    # The channels are a line.
    gate = conv(gate.astype(x.dtype)[:, 0, 0, :, None])
    return x * nn.sigmoid(gate[:, None, None, :, 0])
