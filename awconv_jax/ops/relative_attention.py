"""Self-attention over the positions of an image, with relative positions.

"Attention Augmented Convolutional Networks", https://arxiv.org/abs/1904.09925,
equations 1 and 3 to 5. For a head of d dimensions, a query at row y and column
x, and a key at row i and column j:

  logit = q[y, x] . (k[i, j] + R[i - y] + C[j - x]) / sqrt(d)

The rows of R and C stand for offsets, so that an image means the same wherever
it lies in its padding.
"""

import functools

import jax
import jax.numpy as jnp

from awconv_jax.ops.valid_area import mask_padding


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
