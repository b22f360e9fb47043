"""The valid area of a padded image: the part from the top left that is image.

A batch of images of different sizes is padded on the right and below. What a
network computes from such an image is what it computes from the image alone, if
pools leave the padding out and convolutions find zeros in it.

Everywhere, `valid_size` is int [N, 2], height and width of the images in
positions of x [N, H, W, C], from the top left, clipped to 1 to H and 1 to W, or
None for all of x. The padding may hold anything, also NaN; where gradients are
taken it has to be finite. An array of another shape raises ValueError.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def as_valid_size(
    valid_size: jax.Array | Sequence | None, shape: Sequence[int]
) -> jax.Array:
  """Returns valid_size of images [..., H, W, C] as an array, and clipped.

  It is int [..., 2], or lists. An empty area would have no average.
  """
  *batch, height, width, _ = shape
  if valid_size is None:
    valid_size = jnp.broadcast_to(jnp.array([height, width]), (*batch, 2))
  valid_size = jnp.asarray(valid_size)
  if valid_size.shape != (*batch, 2):
    raise ValueError(
        f'valid_size {valid_size.shape} does not fit images {tuple(shape)}: '
        f'want {(*batch, 2)}, a height and width for each'
    )
  return jnp.clip(valid_size, 1, jnp.array([height, width]))


def mask_padding(
    x: jax.Array, valid_size: jax.Array | None, *, fill: float = 0
) -> jax.Array:
  """Returns x with zeros, or another value, outside of its valid area.

  Args:
    x: [N, H, W, C]; for a valid_size of None it is returned as it is.
    valid_size: see above.
    fill: the value there: zero for convolutions, -inf for a maximum.
  """
  if valid_size is None:
    return x
  valid_size = as_valid_size(valid_size, x.shape)
  rows = jnp.arange(x.shape[1]) < valid_size[:, :1]
  columns = jnp.arange(x.shape[2]) < valid_size[:, 1:]
  inside = rows[:, :, None] & columns[:, None, :]
  # A choice and not a product: the padding may hold anything, also NaN.
  return jnp.where(inside[..., None], x, fill)
