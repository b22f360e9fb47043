"""Which ground truth an anchor or a proposal is trained on, if any.

"Faster R-CNN", https://arxiv.org/abs/1506.01497, section 3.1.2: an anchor is
positive where its IoU with some ground truth is high, or where no anchor has a
higher IoU with that ground truth; it is negative where its IoU with all of it
is low; and the others are not trained on.

Ground truth is gone through row by row, so that beside the anchors a few
numbers for each are held and never all pairs.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.ops.boxes import as_boxes, paired_iou


def _own(index, last):
  """torchvision, detectron2: the ground truth that the anchor overlaps most."""
  del last
  return index


def _gt(index, last):
  """mmdetection: the one whose best it is, the last of several."""
  return jnp.where(last >= 0, last, index)


# What an anchor is assigned to that is the best of some ground truth.
LOW_QUALITY = {'own': _own, 'gt': _gt}


def _scan(row_of, rows, gt_valid, number, min_positive):
  """Goes through the ground truth.

  Args:
    row_of: gives the IoU with all anchors, [A], from a row of rows.
    rows: [G, ...].
    gt_valid: bool [G].
    number: A.
    min_positive: that of `match`.

  Returns:
    best: [A], highest IoU of each anchor; -1 without ground truth.
    index: int32 [A], the first ground truth it is had with.
    last: int32 [A], the last ground truth whose best the anchor is, or -1.
  """

  def step(state, row):
    best, index, last = state
    g, values, is_valid = row
    # Once and for all: an equal number is looked for in it.
    own = lax.optimization_barrier(row_of(values))
    index = jnp.where(is_valid & (own > best), g, index)
    best = jnp.where(is_valid, jnp.maximum(own, best), best)
    if min_positive is not None:
      top = own.max()
      # Padding overlaps nothing: every anchor would be its best, at 0.
      counts = is_valid & (top >= min_positive) & (top > 0)
      last = jnp.where(counts & (own == top), g, last)
    return (best, index, last), None

  rows = lax.stop_gradient(rows)
  numbers = jnp.arange(len(rows), dtype=jnp.int32)
  none = jnp.full(number, -1, jnp.int32)
  start = jnp.full(number, -1, rows.dtype), jnp.zeros_like(none), none
  return lax.scan(step, start, (numbers, rows, jnp.asarray(gt_valid, bool)))[0]


def _match(
    row_of: Callable[[jax.Array], jax.Array],
    rows: jax.Array,
    gt_valid: jax.Array,
    number: int,
    *,
    positive: float,
    negative: float,
    min_positive: float | None = None,
    low_quality: str = 'gt',
    anchor_valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`match` with row_of, rows and number as of `_scan`."""
  if not negative <= positive:
    raise ValueError(f'{negative=} is above {positive=}: want it at most that')
  if low_quality not in LOW_QUALITY:
    raise ValueError(
        f'unknown {low_quality=}: known are {", ".join(LOW_QUALITY)}'
    )
  all_valid = anchor_valid is None
  if not all_valid and jnp.shape(anchor_valid) != (number,):
    raise ValueError(
        f'anchor_valid {jnp.shape(anchor_valid)} does not fit {number} anchors:'
        f' want ({number},)'
    )

  def masked(values):
    return values if all_valid else jnp.where(anchor_valid, values, -1)

  best, index, last = _scan(
      lambda row: masked(row_of(row)), rows, gt_valid, number, min_positive
  )
  label = jnp.where(best < negative, 0, -1)
  label = jnp.where((best >= positive) | (last >= 0), 1, label)
  label = masked(label).astype(jnp.int8)
  return LOW_QUALITY[low_quality](index, last), label


def match(
    iou: jax.Array,
    gt_valid: jax.Array,
    *,
    positive: float,
    negative: float,
    min_positive: float | None = None,
    low_quality: str = 'gt',
    anchor_valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Assigns ground truth to the anchors of one image.

  Args:
    iou: [G, A], of ground truth and anchors.
    gt_valid: bool [G], False for padding, which nothing is assigned to.
    positive: an anchor whose highest IoU is at least this is positive.
    negative: one whose highest IoU is below this is negative; so are all where
      there is no ground truth.
    min_positive: if not None, the anchors of highest IoU with some ground truth
      (several, where they tie) are positive as well, if it is at least this and
      above 0.
    low_quality: which ground truth those are assigned to. 'gt': that one, even
      where the anchor overlaps another one more; the last, if it is the best of
      several (mmdetection). 'own': the one that the anchor overlaps most
      (torchvision).
    anchor_valid: bool [A], False for those that do not take part, such as
      anchors in the padding; nobody's best, and labelled -1. None means all do.

  Returns:
    index: int32 [A], the ground truth; of no meaning where label is not 1.
    label: int8 [A], 1 positive, 0 negative, -1 neither.

  Raises:
    ValueError: shapes or thresholds do not fit, or low_quality is unknown.
  """
  iou = jnp.asarray(iou)
  if iou.ndim != 2 or jnp.shape(gt_valid) != iou.shape[:1]:
    raise ValueError(
        f'iou {iou.shape} and gt_valid {jnp.shape(gt_valid)} do not fit: want'
        ' [G, A] and [G]'
    )
  return _match(
      lambda row: row,
      iou,
      gt_valid,
      iou.shape[1],
      positive=positive,
      negative=negative,
      min_positive=min_positive,
      low_quality=low_quality,
      anchor_valid=anchor_valid,
  )


def match_boxes(
    gt_boxes: jax.Array,
    gt_valid: jax.Array,
    anchors: jax.Array,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
  """Does `match(iou(gt_boxes, anchors), ...)` without holding that matrix.

  Args:
    gt_boxes: [G, 4].
    gt_valid: bool [G], False for padding, which nothing is assigned to.
    anchors: [A, 4].
    **options: those of `match`.

  Returns:
    index: int32 [A], the ground truth; of no meaning where label is not 1.
    label: int8 [A], 1 positive, 0 negative, -1 neither.

  Raises:
    ValueError: as `match`, or these are no boxes.
  """
  gt_boxes, anchors = as_boxes(gt_boxes, 'gt_boxes'), as_boxes(anchors)
  if jnp.shape(gt_valid) != gt_boxes.shape[:1] or anchors.ndim != 2:
    raise ValueError(
        f'gt_boxes {gt_boxes.shape}, gt_valid {jnp.shape(gt_valid)} and anchors'
        f' {anchors.shape} do not fit: want [G, 4], [G] and [A, 4]'
    )
  anchors = lax.stop_gradient(anchors)
  return _match(
      lambda box: paired_iou(box, anchors),
      gt_boxes,
      gt_valid,
      len(anchors),
      **options,
  )
