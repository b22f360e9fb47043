"""What anchors and regions are trained on, and how wrong they are.

In float32, or in the dtype of wider predictions.

"Fast R-CNN", https://arxiv.org/abs/1504.08083, section 2.3: a sample of the
boxes of an image, some of which overlap its ground truth, and equations 1 to 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from awconv_jax.ops.boxes import Coder


class Targets(NamedTuple):
  """A sample of S boxes of one image; ground truth is that of positives."""

  index: jax.Array  # int32 [S], which of the boxes.
  boxes: jax.Array  # float32 [S, 4], these.
  labels: jax.Array  # int32 [S], of the ground truth.
  deltas: jax.Array  # float32 [S, 4], that lead to the ground truth.
  positive: jax.Array  # bool [S].
  valid: jax.Array  # bool [S], False where there was nothing left to sample.


def choose_targets(
    boxes: jax.Array,
    valid: jax.Array,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    gt_valid: jax.Array,
    key: jax.Array,
    *,
    match: Callable[..., tuple[jax.Array, jax.Array]],
    sample: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
    coder: Coder,
) -> Targets:
  """Samples from boxes of one image, and says what they should be.

  Args:
    boxes: [A, 4].
    valid: bool [A]; what is not is nobody's best match, and never sampled.
    gt_boxes, gt_labels, gt_valid: [M, 4], int [M] and bool [M], False for rows
      that are padding.
    key: of the sample.
    match, sample: `match_boxes` and `sample` of `ops`, with their options.
    coder: of the deltas.
  """
  gt, label = match(gt_boxes, gt_valid, boxes, anchor_valid=valid)
  index, positive, found = sample(label, key)
  gt, boxes = gt[index], jnp.asarray(boxes)[index]
  deltas = coder.encode(gt_boxes[gt], boxes)
  return Targets(index, boxes, gt_labels[gt], deltas, positive, found)


class Sums(NamedTuple):
  """Losses of classes and of boxes, summed over the samples of each image.

  Divided only at the end by the samples of all images of a batch, and so of all
  devices: an image with few weighs little. With `accumulation_steps`, each part
  of a batch is by itself.
  """

  classes: jax.Array
  boxes: jax.Array
  samples: jax.Array

  def means(self) -> tuple[jax.Array, jax.Array]:
    """Returns both losses of a batch."""
    samples = jnp.maximum(self.samples.sum(), 1)
    return self.classes.sum() / samples, self.boxes.sum() / samples


def sum_losses(
    classes: jax.Array, deltas: jax.Array, targets: Targets, *, beta: float
) -> Sums:
  """Returns the sums for losses of classes [S] and predicted deltas [S, 4].

  That of deltas is smooth L1: |d| - beta / 2, or d^2 / (2 beta) below beta.
  """
  distance = jnp.abs(deltas - targets.deltas)
  if beta > 0:
    square = 0.5 * distance**2 / beta
    distance = jnp.where(distance < beta, square, distance - 0.5 * beta)
  boxes = targets.valid & targets.positive
  return Sums(
      jnp.where(targets.valid, classes, 0).sum(),
      jnp.where(boxes, distance.sum(-1), 0).sum(),
      targets.valid.sum(),
  )
