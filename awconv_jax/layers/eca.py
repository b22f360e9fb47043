"""ECA: scales channels by a gate of the averages of a few channels beside them.

"ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
https://arxiv.org/abs/1910.03151:

  y = x * sigmoid(conv1d(mean_hw(x)))  with a kernel of k channels,
  k = |log2(C) / gamma + b / gamma|, made odd (equation 12)
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.options import Dtype, PositiveFloat, PositiveInt


def adaptive_kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
  """Returns the odd size of the kernel for a number of channels.

  Args:
    channels: C.
    gamma, b: of the rule.

  Returns:
    |(log2(C) + b) / gamma|, cut to an integer; one more if that is even, as the
    authors' code does. The paper says the nearest odd number.
  """
  size = int(abs((math.log2(channels) + b) / gamma))
  return size if size % 2 else size + 1


class ECA(nn.Module):
  """Scales the channels of x; one small kernel goes over all channels.

  Attributes:
    gamma, b: of the rule by which the kernel grows with the channels.
    kernel_size: channels that a gate sees; None for that rule.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  gamma: PositiveFloat = 2
  b: float = 1
  kernel_size: PositiveInt | None = None
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
      self, x: jax.Array, *, valid_size: jax.Array | None = None
  ) -> jax.Array:
    """Scales the channels of each image.

    Args:
      x: [N, H, W, C].
      valid_size: int [N, 2], height and width of the image from the top left
        where the rest of it is padding, which is left out of the average.

    Returns:
      [N, H, W, C].

    Raises:
      ValueError: the shape of valid_size does not fit.
    """
    size = self.kernel_size
    if size is None:
      size = adaptive_kernel_size(x.shape[-1], self.gamma, self.b)
    gate = adaptive_average_pool(x, (1, 1), valid_size=valid_size)
    gate = gate.astype(x.dtype)[:, 0, 0, :, None]  # The channels are a line.
    gate = nn.Conv(
        1,
        (size,),
        use_bias=False,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name='conv',
    )(gate)
    return x * nn.sigmoid(gate[:, None, None, :, 0])
