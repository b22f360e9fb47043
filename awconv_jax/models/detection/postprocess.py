"""From the outputs for an image's regions to its detections.

"Fast R-CNN", https://arxiv.org/abs/1504.08083, section 2.2: non-maximum
suppression for each class by itself, and the best of all classes.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.ops.boxes import Coder, clip, is_large
from awconv_jax.ops.nms import nms
from awconv_jax.options import NonNegativeFloat, PositiveInt, UnitFloat

# Classes whose pairs of boxes are in memory together.
CLASSES_AT_ONCE = 8


def detections(
    logits: jax.Array,
    deltas: jax.Array,
    rois: jax.Array,
    valid: jax.Array,
    size: jax.Array,
    *,
    coder: Coder,
    min_score: UnitFloat = 0.05,
    threshold: UnitFloat = 0.5,
    number: PositiveInt = 100,
    min_size: NonNegativeFloat = 0.0,
) -> dict[str, jax.Array]:
  """Returns the detections of one image.

  All regions of all classes compete: none is left out for speed, so that the
  result is that of the loops in other frameworks.

  Args:
    logits: [K, C + 1], the background last.
    deltas: [K, C, 4].
    rois: [K, 4].
    valid: bool [K].
    size: [2], height and width of the image, which boxes are clipped to.
    coder: of the deltas.
    min_score: probability that a class must exceed.
    threshold: IoU of non-maximum suppression within a class.
    number: detections at most, the best of all classes.
    min_size: boxes with a shorter side, in pixels, are left out, and empty ones
      in any case.

  Returns:
    boxes float32 [number, 4], scores float32 [number] from high to low, labels
    int32 [number], and valid bool [number]; zeros where there are no more.
  """
  scores = jax.nn.softmax(logits.astype(jnp.float32))[:, :-1]
  boxes = clip(coder.decode(deltas, rois[:, None]), size)
  some = valid[:, None] & (scores > min_score) & is_large(boxes, min_size)
  keep = lax.map(
      lambda of_class: nms(*of_class, threshold),
      jax.tree.map(
          functools.partial(jnp.swapaxes, axis1=0, axis2=1),
          (boxes, scores, some),
      ),
      batch_size=min(CLASSES_AT_ONCE, scores.shape[1]),
  ).T
  ranked = jnp.where(keep, scores, -1).reshape(-1)
  best, index = lax.top_k(ranked, min(number, len(ranked)))
  found = best >= 0
  missing = number - len(best)
  rows = dict(
      boxes=jnp.where(found[:, None], boxes.reshape(-1, 4)[index], 0),
      scores=jnp.where(found, best, 0),
      labels=jnp.where(found, index % scores.shape[1], 0),
      valid=found,
  )
  return {
      name: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
      for name, x in rows.items()
  }
