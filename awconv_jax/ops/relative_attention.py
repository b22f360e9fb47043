"""Self-attention over the positions of an image, with relative positions.

"Attention Augmented Convolutional Networks", https://arxiv.org/abs/1904.09925,
equations 1 and 3 to 5. For a head of d dimensions, a query at row y and column
x, and a key at row i and column j:

  logit = q[y, x] . (k[i, j] + R[i - y] + C[j - x]) / sqrt(d)

The rows of R and C stand for offsets, so that an image means the same wherever
it lies in its padding. Beside it is what takes an image to the coarser grid
that attention runs on, and back.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.ops.valid_area import as_valid_size, mask_padding


def _by_offset(table: jax.Array, length: int) -> jax.Array:
  """Returns the embeddings of pairs of queries and keys on an axis, [n, n, d].

  Offsets that the table, of 1 - L to L - 1, does not reach take its outermost
  row, so that the row of an offset does not depend on the length.
  """
  reach = table.shape[0] // 2
  position = jnp.arange(length)
  offset = position - position[:, None]
  return table[jnp.clip(offset, -reach, reach) + reach]


def relative_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    rows: jax.Array | None = None,
    columns: jax.Array | None = None,
    *,
    valid_size: jax.Array | None = None,
) -> jax.Array:
  """Averages the values by the softmax, over all positions, of the logits.

  Nothing of the size of all pairs of positions times d is formed: the logits of
  rows and of columns are [N, heads, H, W, H] and [N, heads, H, W, W].

  Args:
    query: q, [N, H, W, heads, d].
    key: k, [N, H, W, heads, d].
    value: [N, H, W, heads, e]; finite, also in the padding.
    rows: R, [2 * L - 1, d] of any L, shared by the heads; or None for none.
    columns: C, likewise.
    valid_size: see `ops.valid_area`; no query looks at the padding.

  Returns:
    [N, H, W, heads, e] in the dtype of value.
  """
  n, height, width, _, dimensions = query.shape
  wide = jnp.promote_types(query.dtype, jnp.float32)
  einsum = functools.partial(jnp.einsum, preferred_element_type=wide)
  query = query * dimensions**-0.5
  logits = einsum('nyxhd,nijhd->nhyxij', query, key)
  if rows is not None:
    embedded = _by_offset(rows, height)
    logits += einsum('nyxhd,yid->nhyxi', query, embedded)[..., None]
  if columns is not None:
    embedded = _by_offset(columns, width)
    logits += einsum('nyxhd,xjd->nhyxj', query, embedded)[..., None, :]
  if valid_size is not None:
    inside = mask_padding(jnp.ones((n, height, width, 1)), valid_size) > 0
    inside = inside[:, None, None, None, :, :, 0]
    logits = jnp.where(inside, logits, -jnp.inf)
  weights = jax.nn.softmax(logits, axis=(-2, -1)).astype(value.dtype)
  return einsum('nhyxij,nijhe->nyxhe', weights, value).astype(value.dtype)


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


def upsample(
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
  einsum = functools.partial(jnp.einsum, precision='highest')
  out = einsum('nyi,nijc->nyjc', rows, x.astype(wide))
  return einsum('nxj,nyjc->nyxc', columns, out).astype(x.dtype)
