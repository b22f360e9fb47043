"""Squeeze-and-excitation: scales channels by a gate of their global average.

"Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507:

  y = x * sigmoid(W2 relu(W1 mean_hw(x)))
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.layers.checks import check_count
from awconv_jax.ops.adaptive_pool import adaptive_average_pool


class SqueezeExcite(nn.Module):
  """Scales the channels of x.

  Attributes:
    reduction: r; the hidden layer has C // r channels, at least one.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  reduction: int = 16
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.nowrap
  def check(self) -> None:
    """Raises ValueError for a field that cannot be used, whatever the input."""
    check_count(self.reduction, 'SqueezeExcite: reduction')

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
      ValueError: the field or the shape of valid_size is impossible.
    """
    self.check()
    channels = x.shape[-1]
    dense = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    hidden = max(channels // self.reduction, 1)
    gate = adaptive_average_pool(x, (1, 1), valid_size=valid_size)
    gate = gate.astype(x.dtype)
    gate = nn.relu(nn.Dense(hidden, name='reduce', **dense)(gate))
    gate = nn.sigmoid(nn.Dense(channels, name='expand', **dense)(gate))
    return x * gate
