"""Which ground truth an anchor or a proposal is trained on, if any.

"Faster R-CNN", https://arxiv.org/abs/1506.01497, section 3.1.2: an anchor is
positive where its IoU with some ground truth is high, or where no anchor has a
higher IoU with that ground truth; it is negative where its IoU with all of it
is low; and the others are not trained on.
"""

from typing import Annotated

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.errors import InputError, look_up
from awconv_jax.ops.boxes import as_boxes, paired_iou
from awconv_jax.options import OneOf, UnitFloat

# What an anchor is assigned to, of the ground truth that it overlaps most, and
# the last ground truth whose best it is, or -1.
LOW_QUALITY = {
    'gt': lambda index, last: jnp.where(last >= 0, last, index),
    'own': lambda index, last: index,
}


def check_thresholds(name: str, positive: float, negative: float) -> None:
  """Raises InputError if an anchor could be both; `name` is whose they are."""
  if negative > positive:
    raise InputError(
        f'{name} has {negative=} above {positive=}; no anchor can be both'
    )


def match_boxes(
    gt_boxes: jax.Array,
    gt_valid: jax.Array,
    anchors: jax.Array,
    anchor_valid: jax.Array,
    *,
    positive: UnitFloat,
    negative: UnitFloat,
    min_positive: UnitFloat | None = None,
    low_quality: Annotated[str, OneOf(LOW_QUALITY)] = 'gt',
) -> tuple[jax.Array, jax.Array]:
  """Assigns ground truth to the anchors of one image.

  Ground truth is gone through row by row, so that beside the anchors a few
  numbers for each are held and never the IoU of all pairs.

  Args:
    gt_boxes: [G, 4].
    gt_valid: bool [G], False for padding, which nothing is assigned to.
    anchors: [A, 4].
    anchor_valid: bool [A], False for those that do not take part, such as
      anchors in the padding: nobody's best, and labelled -1.
    positive: an anchor whose highest IoU is at least this is positive.
    negative: one whose highest IoU is below this is negative; so are all where
      there is no ground truth.
    min_positive: if not None, the anchors of highest IoU with some ground truth
      (several, where they tie) are positive as well, if it is at least this and
      above 0.
    low_quality: which ground truth those are assigned to. 'gt': that one, even
      where the anchor overlaps another one more; the last, if it is the best of
      several (mmdetection). 'own': the one that the anchor overlaps most
      (torchvision, detectron2).

  Returns:
    index: int32 [A], the ground truth; of no meaning where label is not 1.
    label: int8 [A], 1 positive, 0 negative, -1 neither.

  Raises:
    ValueError: shapes or thresholds do not fit.
  """
  gt_boxes, anchors = as_boxes(gt_boxes, 'gt_boxes'), as_boxes(anchors)
  shapes = [x.shape for x in (gt_boxes, gt_valid, anchors, anchor_valid)]
  if shapes != [(*shapes[1], 4), shapes[1], (*shapes[3], 4), shapes[3]]:
    raise ValueError(f'want [G, 4], [G], [A, 4] and [A] of one image: {shapes}')
  check_thresholds('a matcher', positive, negative)
  gt_boxes, anchors = lax.stop_gradient((gt_boxes, anchors))

  def step(state, row):
    best, index, last = state
    g, box, is_valid = row
    overlap = jnp.where(anchor_valid, paired_iou(box, anchors), -1)
    # Once and for all: an equal number is looked for in it.
    overlap = lax.optimization_barrier(overlap)
    index = jnp.where(is_valid & (overlap > best), g, index)
    best = jnp.where(is_valid, jnp.maximum(overlap, best), best)
    if min_positive is not None:
      top = overlap.max()
      # Padding overlaps nothing: every anchor would be its best, at 0.
      counts = is_valid & (top >= min_positive) & (top > 0)
      last = jnp.where(counts & (overlap == top), g, last)
    return (best, index, last), None

  # Of each anchor the highest IoU, the first ground truth it is had with, and
  # the last ground truth whose best the anchor is.
  none = jnp.full(len(anchors), -1, jnp.int32)
  start = none.astype(gt_boxes.dtype), jnp.zeros_like(none), none
  numbers = jnp.arange(len(gt_boxes), dtype=jnp.int32)
  rows = numbers, gt_boxes, jnp.asarray(gt_valid, bool)
  (best, index, last), _ = lax.scan(step, start, rows)
  label = jnp.where(best < negative, 0, -1)
  label = jnp.where((best >= positive) | (last >= 0), 1, label)
  label = jnp.where(anchor_valid, label, -1).astype(jnp.int8)
  return look_up('low_quality', low_quality, LOW_QUALITY)(index, last), label
