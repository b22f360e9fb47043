"""Squeeze-and-excitation: scales channels by a gate of their global average.

"Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507:

  y = x * sigmoid(W2 relu(W1 mean_hw(x)))
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.options import Dtype, PositiveInt


class SqueezeExcite(nn.Module):
  """Scales the channels of x.

  Attributes:
    reduction: r; the hidden layer has C // r channels, at least one.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  reduction: PositiveInt = 16
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
    channels = x.shape[-1]
    dense = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    hidden = max(channels // self.reduction, 1)
    gate = adaptive_average_pool(x, (1, 1), valid_size=valid_size)
    gate = gate.astype(x.dtype)
    gate = nn.relu(nn.Dense(hidden, name='reduce', **dense)(gate))
    gate = nn.sigmoid(nn.Dense(channels, name='expand', **dense)(gate))
    return x * gate
