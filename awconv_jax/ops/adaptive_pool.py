"""Adaptive average pooling to a fixed grid, over the valid area of an image.

Bin i of k over n positions runs from floor(i * n / k) to ceil((i + 1) * n / k);
bins overlap where k does not divide n, and repeat where n is smaller than k.
"""

import jax
import jax.numpy as jnp

from awconv_jax.ops.valid_area import as_valid_size

_LANES = 128  # Of a TPU.


def _bins(size, length, bins):
  """Returns which positions lie in each bin: bool [..., bins, length]."""
  i = jnp.arange(bins)
  size = size[..., None]
  start = i * size // bins
  stop = -((-(i + 1) * size) // bins)  # ceil
  position = jnp.arange(length)
  return (position >= start[..., None]) & (position < stop[..., None])


def _sums(x, bins, axis):
  """Returns what bins [N, bins, ...] hold each, summed over an axis of x."""
  sums = [jnp.where(bins[:, i], x, 0).sum(axis) for i in range(bins.shape[1])]
  return jnp.stack(sums, axis)


def _einsum(pattern, bins, x):
  # Zeros and ones are exact in any dtype, so that x need not be widened.
  wide = jnp.promote_types(x.dtype, jnp.float32)
  how = dict(precision='highest', preferred_element_type=wide)
  return jnp.einsum(pattern, bins.astype(x.dtype), x, **how)


def _by_axes(x, rows, columns):
  # A batched product per sample, which reads x once and where it lies.
  rows, columns = (
      jnp.broadcast_to(bins, (x.shape[0], *bins.shape[1:]))
      for bins in (rows, columns)
  )
  total = _einsum('nih,nhwc->niwc', rows, x)
  return _einsum('njw,niwc->nijc', columns, total)


def _at_once(x, rows, columns):
  # On TPU, where positions are the outer axes of an image, one product. With
  # channels that leave lanes empty XLA would turn the image around for it.
  if rows.shape[0] != 1 or x.shape[3] % _LANES:  # It may be symbolic.
    return _by_axes(x, rows, columns)
  cells = rows[0, :, None, :, None] & columns[0, None, :, None, :]
  cells = cells.reshape(*cells.shape[:2], -1)
  places = jnp.moveaxis(x, 0, 2).reshape(-1, x.shape[0], x.shape[3])
  return _einsum('ijp,pnc->nijc', cells, places)


@jax.custom_jvp
def _totals(x, rows, columns):
  """Returns sums [N, rows, columns, C] for bins [N or 1, bins, length]."""
  forms = dict(tpu=_at_once, default=_by_axes)
  return jax.lax.platform_dependent(x, rows, columns, **forms)


@_totals.defjvp
def _totals_jvp(primals, tangents):
  # The same sums, so that their transpose is elementwise: XLA then adds the
  # gradient where the other gradient of x is computed, while that of a product
  # is an array of its own, of the size of x.
  x, rows, columns = primals
  total = _totals(x, rows, columns)
  tangent = tangents[0].astype(total.dtype)
  tangent = _sums(tangent, rows[..., None, None], 1)
  return total, _sums(tangent, columns[:, :, None, :, None], 2)


def adaptive_average_pool(
    x: jax.Array,
    grid: tuple[int, int],
    *,
    valid_size: jax.Array | None = None,
) -> jax.Array:
  """Averages x over a grid of bins that covers its valid area.

  Args:
    x: [N, H, W, C], of any H and W, also smaller than the grid.
    grid: rows and columns of the result.
    valid_size: int [N, 2], see `ops.valid_area`; the padding is left out.

  Returns:
    [N, rows, columns, C] in at least float32.
  """
  wide = jnp.promote_types(x.dtype, jnp.float32)
  if valid_size is None and grid == (1, 1):
    return x.mean((1, 2), wide, keepdims=True)
  if valid_size is None:
    valid_size = jnp.array([x.shape[1:3]])  # One for all.
  else:
    valid_size = as_valid_size(valid_size, x.shape)
  rows = _bins(valid_size[:, 0], x.shape[1], grid[0])
  columns = _bins(valid_size[:, 1], x.shape[2], grid[1])
  count = rows.sum(-1)[:, :, None] * columns.sum(-1)[:, None, :]
  return _totals(x, rows, columns) / count[..., None].astype(wide)
