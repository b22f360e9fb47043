"""From a grid of positions to a coarser one and back, also of padded images.

Each treats an image on a canvas as the image alone; see `ops.valid_area`.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.ops.valid_area import as_valid_size, mask_padding


def _window_sums(x, size, strides, offsets):
  """Sums x over the windows of `strided_average`."""

  def pad(length, count, s, offset):
    low = s - 1 - offset
    return low, (count + 1) * s - 1 - low - length, 0

  pads = map(pad, x.shape[1:3], size, strides, offsets)
  # Unlike jnp.pad this can crop, for windows that start inside of the image.
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
  if tuple(strides) == (1, 1):
    return x
  window, steps = (1, *(2 * s - 1 for s in strides), 1), (1, *strides, 1)
  return lax.reduce_window(x, 0.0, lax.add, window, steps, 'VALID')


def strided_average(
    x: jax.Array,
    size: Sequence[int],
    strides: Sequence[int],
    *,
    offsets: Sequence[int] = (0, 0),
    valid_size: jax.Array | None = None,
) -> jax.Array:
  """Averages x around every s-th position, over windows of 2 s - 1.

  For a stride of 2 these are the 3x3 windows of the paper, and for 1 x itself.
  What lies outside of the image is left out of the average.

  Args:
    x: [N, H, W, C].
    size: H' and W' of the result.
    strides: s, vertical and horizontal.
    offsets: position of x that the first window is centred on; negative ones
      lie before the image.
    valid_size: see `ops.valid_area`.

  Returns:
    [N, H', W', C] in the dtype of x; zeros where a window misses the image.
  """
  n, height, width, _ = x.shape
  wide = jnp.promote_types(x.dtype, jnp.float32)
  ones = jnp.ones((1 if valid_size is None else n, height, width, 1), wide)
  counts = _window_sums(mask_padding(ones, valid_size), size, strides, offsets)
  x_wide = mask_padding(x, valid_size).astype(wide)
  sums = _window_sums(x_wide, size, strides, offsets)
  return (sums / jnp.maximum(counts, 1)).astype(x.dtype)


def _linear_weights(length, cells, factor, last, dtype):
  """Returns the share of every cell in every position, [N, length, cells]."""
  position = jnp.arange(length, dtype=dtype) / factor
  position = jnp.minimum(position, last[:, None])
  distance = jnp.abs(position[..., None] - jnp.arange(cells))
  return jnp.maximum(1 - distance, 0)


def _weighted(cells, rows, columns):
  """Sums cells by their shares [N, H, h] and [N, W, w] in each position."""
  einsum = functools.partial(jnp.einsum, precision='highest')
  out = einsum('nyi,nijc->nyjc', rows, cells)
  return einsum('nxj,nyjc->nyxc', columns, out)


def upsample_aligned(
    x: jax.Array,
    size: Sequence[int],
    factor: int,
    *,
    valid_size: jax.Array | None = None,
) -> jax.Array:
  """Interpolates bilinearly what `strided_average` gave for a stride.

  Cell i belongs to position i * factor, on which its window is centred. So the
  grid does not depend on the size of the image, or on its padding. Positions
  after the last cell take that cell.

  Args:
    x: [N, h, w, C].
    size: H and W of the result.
    factor: the stride.
    valid_size: see `ops.valid_area`, in cells.

  Returns:
    [N, H, W, C] in the dtype of x.
  """
  last = as_valid_size(valid_size, x.shape) - 1
  wide = jnp.promote_types(x.dtype, jnp.float32)
  rows, columns = (
      _linear_weights(size[i], x.shape[1 + i], factor, last[:, i], wide)
      for i in range(2)
  )
  return _weighted(x.astype(wide), rows, columns).astype(x.dtype)


def nearest(
    cells: jax.Array,
    shape: Sequence[int],
    extent: int,
    valid_size: jax.Array | None = None,
) -> jax.Array:
  """Enlarges cells [N, h, w, C] to a shape [N, H, W, C], each to its nearest.

  A valid area of H positions has the first ceil(H / extent) cells, and position
  i takes the cell floor(i * cells / H).
  """
  size = as_valid_size(valid_size, shape)
  count = -(-size // extent)

  def shares(axis):
    position = jnp.arange(shape[1 + axis]) * count[:, [axis]]
    cell = jnp.minimum(position // size[:, [axis]], count[:, [axis]] - 1)
    # By a product, whose gradient adds in one order on every device.
    return jax.nn.one_hot(cell, cells.shape[1 + axis], dtype=cells.dtype)

  return _weighted(cells, shares(0), shares(1))


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
