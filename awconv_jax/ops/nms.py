"""Non-maximum suppression: of boxes that overlap, the best one.

"Rich feature hierarchies for accurate object detection and semantic
segmentation" (R-CNN), https://arxiv.org/abs/1311.2524, section 2.2. Greedily,
from the highest score down: box j stays unless a box i that stays is before it
and IoU(i, j) > threshold. With S[i, j] for "i would suppress j" this is

  keep[j] = valid[j] and not any over i of (S[i, j] and keep[i])

which holds for one `keep` alone, as no box is before itself. Iterated from
keep = valid it is reached exactly: after k rounds at the latest every box is
settled whose chain of suppressors is shorter than k.
"""

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.ops.boxes import iou


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    threshold: float,
    groups: jax.Array | None = None,
) -> jax.Array:
  """Returns which boxes of one image stay.

  Takes a few bytes for each of N x N pairs. Where groups lie in blocks of like
  size, such as the levels of a pyramid, a call for each takes less.

  Args:
    boxes: [N, 4].
    scores: [N]; of equal ones the lower index is before the other.
    valid: bool [N], False for boxes that are not there.
    threshold: IoU above which a box suppresses those after it.
    groups: int [N], such as classes; only boxes of one suppress each other.
      None means all do.

  Returns:
    bool [N], in the order of boxes.

  Raises:
    ValueError: the shapes do not fit.
  """
  boxes, scores, valid = map(jnp.asarray, (boxes, scores, valid))
  groups = jnp.zeros(len(boxes)) if groups is None else jnp.asarray(groups)
  shapes = [x.shape for x in (boxes, scores, valid, groups)]
  if shapes != [(len(boxes), 4)] + 3 * [(len(boxes),)]:
    raise ValueError(f'want [N, 4] and thrice [N] of one image: {shapes}')
  index = jnp.arange(len(boxes))
  ties = scores[:, None] == scores
  before = (scores[:, None] > scores) | ties & (index[:, None] < index)
  suppresses = (iou(boxes, boxes) > threshold) & before
  suppresses &= groups[:, None] == groups

  def step(state):
    keep, _ = state
    new = valid & ~jnp.any(suppresses & keep[:, None], axis=0)
    return new, jnp.any(new != keep)

  keep, _ = lax.while_loop(lambda state: state[1], step, (valid, True))
  return keep
