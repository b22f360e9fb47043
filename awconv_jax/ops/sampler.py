"""A random sample of anchors or proposals with a bounded share of positives.

"Faster R-CNN", https://arxiv.org/abs/1506.01497, section 3.1.3: the loss is
over `number` of them, positives up to a share of it and negatives for the rest.
"""

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.options import PositiveInt, UnitFloat


def _highest(order, eligible, number):
  """Returns the first rows by order, [number], and which of them exist."""
  order = jnp.where(eligible, order, -1)
  order, indices = lax.top_k(order, min(number, len(order)))
  missing = number - len(indices)
  return jnp.pad(indices, (0, missing)), jnp.pad(order >= 0, (0, missing))


def sample(
    label: jax.Array,
    key: jax.Array,
    *,
    number: PositiveInt,
    fraction: UnitFloat,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws from the labelled rows of one image, uniformly, each at most once.

  Args:
    label: int [A], 1 positive, 0 negative, anything else is never drawn.
    key: all that the draw depends on besides label.
    number: of rows wanted.
    fraction: largest share of positives. int(number * fraction) of them are
      drawn, or all if there are fewer, and negatives for what is left.

  Returns:
    indices: int32 [number], rows of label, the positives first.
    positive: bool [number].
    valid: bool [number], False where there was nothing left to draw, at the
      end; the index is then one of label's rows, but means nothing.
  """
  label = jnp.asarray(label)
  limit = int(number * fraction)
  # No row is both, so that one number for each is enough. Of integers fewer
  # would tie, but their top_k takes 100 times as long on CPU.
  order = jax.random.uniform(key, label.shape)
  positives, found = _highest(order, label == 1, limit)
  negatives, left = _highest(order, label == 0, number)
  count = found.sum()
  # Row i is the i-th positive, and from `count` on the next negative.
  row = jnp.arange(number)
  positive = row < count
  after = jnp.maximum(row - count, 0)
  positives = jnp.pad(positives, (0, number - limit))
  indices = jnp.where(positive, positives, negatives[after])
  return indices.astype(jnp.int32), positive, positive | left[after]
