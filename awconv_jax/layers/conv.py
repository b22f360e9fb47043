"""The plain convolution, callable in every place an AWConv is."""

import flax.linen as nn
import jax


class Conv(nn.Conv):
  """`nn.Conv` that accepts, and has no use for, the image's valid area."""

  def __call__(
      self, inputs: jax.Array, *, valid_size: jax.Array | None = None
  ) -> jax.Array:
    """Returns [N, H', W', features] for inputs [N, H, W, C]."""
    del valid_size
    return super().__call__(inputs)
