"""Bilinear upsampling by a whole factor, also of padded images."""

import jax
import jax.numpy as jnp

from awconv_jax.ops.valid_area import as_valid_size


def upsample(
    x: jax.Array, factor: int, valid_size: jax.Array | None = None
) -> jax.Array:
  """Returns [N, factor * H, factor * W, C] for x [N, H, W, C].

  Pixels are areas, as where `align_corners` is False: output j lies at
  (j + 0.5) / factor - 0.5, and beyond the edge is what lies at it.

  Args:
    x: float [N, H, W, C].
    factor: of both sides.
    valid_size: see `ops.valid_area`; the edge is then that of each image, so
      that what its area becomes is what becomes of the image alone.
  """
  size = as_valid_size(valid_size, x.shape)
  for axis in (1, 2):
    x = _along(x, factor, size[:, axis - 1], axis)
  return x


def _along(
    x: jax.Array, factor: int, length: jax.Array, axis: int
) -> jax.Array:
  """Upsamples along one axis, images of these lengths, int [N]."""
  place = jnp.arange(x.shape[axis])
  shape = [x.shape[0], 1, 1, 1]
  shape[axis] = x.shape[axis]
  # At the end of the image its last position stands for the one after it.
  inside = (place + 1 < length[:, None]).reshape(shape)
  after = jnp.where(inside, jnp.roll(x, -1, axis), x)
  first = (place < 1).reshape([1, *shape[1:]])
  before = jnp.where(first, x, jnp.roll(x, 1, axis))
  parts = []
  for j in range(factor):
    offset = (j + 0.5) / factor - 0.5
    neighbour = before if offset < 0 else after
    parts.append(x + abs(offset) * (neighbour - x))
  sides = [*x.shape]
  sides[axis] *= factor
  return jnp.stack(parts, axis + 1).reshape(sides)
