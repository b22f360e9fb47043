"""ECA: scales channels by a gate of the averages of a few channels beside them.

"ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
https://arxiv.org/abs/1910.03151:

  y = x * sigmoid(conv1d(mean_hw(x)))  with a kernel of k channels,
  k = |log2(C) / gamma + b / gamma|, made odd (equation 12)
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.layers.checks import check_count, check_number
from awconv_jax.ops.adaptive_pool import adaptive_average_pool


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
    kernel_size: channels that a gate sees, odd; None for that rule.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  gamma: float = 2
  b: float = 1
  kernel_size: int | None = None
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.nowrap
  def check(self) -> None:
    """Raises ValueError for a field that cannot be used, whatever the input."""
    for name in ('gamma', 'b'):
      check_number(getattr(self, name), f'ECA: {name}')
    if not self.gamma > 0:
      raise ValueError(f'ECA: gamma must be above 0, not {self.gamma}')
    if self.kernel_size is not None:
      check_count(self.kernel_size, 'ECA: kernel_size')
      if self.kernel_size % 2 == 0:
        raise ValueError(
            f'ECA: kernel_size must be odd, not {self.kernel_size}'
        )

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
      ValueError: a field or the shape of valid_size is impossible.
    """
    self.check()
    size = self.kernel_size
    if size is None:
      size = adaptive_kernel_size(x.shape[-1], self.gamma, self.b)
    gate = adaptive_average_pool(x, (1, 1), valid_size=valid_size)
    gate = gate.astype(x.dtype)[:, 0, 0, :, None]  # The channels are a line.
    gate = nn.Conv(
        1,
        (size,),
        padding=size // 2,
        use_bias=False,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name='conv',
    )(gate)
    return x * nn.sigmoid(gate[:, None, None, :, 0])
