"""The valid area of a padded image: the part from the top left that is image.

A batch of images of different sizes is padded on the right and below. What a
network computes from such an image is what it computes from the image alone, if
pools leave the padding out and convolutions find zeros in it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def as_valid_size(
    valid_size: jax.Array | Sequence, shape: Sequence[int]
) -> jax.Array:
  """Returns valid_size as an array of sizes that the images can have.

  Args:
    valid_size: int [..., 2], height and width, also as lists.
    shape: of the images, [..., H, W, C].

  Returns:
    int [..., 2], clipped to 1 to H and 1 to W: an empty area has no average.

  Raises:
    ValueError: valid_size does not hold one height and width for each image.
  """
  valid_size = jnp.asarray(valid_size)
  *batch, height, width, _ = shape
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
    x: [N, H, W, C].
    valid_size: int [N, 2], height and width in positions of x. None means all
      of x, which is returned as it is.
    fill: the value there: zero for convolutions, -inf for a maximum.

  Returns:
    [N, H, W, C] in the dtype of x.

  Raises:
    ValueError: valid_size does not have that shape.
  """
  if valid_size is None:
    return x
  valid_size = as_valid_size(valid_size, x.shape)
  rows = jnp.arange(x.shape[1]) < valid_size[:, :1]
  columns = jnp.arange(x.shape[2]) < valid_size[:, 1:]
  inside = rows[:, :, None] & columns[:, None, :]
  # A choice and not a product: the padding may hold anything, also NaN.
  return jnp.where(inside[..., None], x, fill)
