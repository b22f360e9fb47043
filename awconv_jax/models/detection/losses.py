"""What anchors and regions are trained on, and how wrong they are, in float32.

"Fast R-CNN", https://arxiv.org/abs/1504.08083, section 2.3: a sample of the
boxes of an image, some of which overlap its ground truth, and equations 1 to 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from awconv_jax.ops.boxes import Coder


class Targets(NamedTuple):
  """A sample of the boxes of one image.

  Attributes:
    index: int32 [S], which of the boxes.
    gt: int32 [S], the row of ground truth of a positive.
    deltas: float32 [S, 4], that lead from a positive to its ground truth.
    positive: bool [S].
    valid: bool [S], False where there was nothing left to sample.
  """

  index: jax.Array
  gt: jax.Array
  deltas: jax.Array
  positive: jax.Array
  valid: jax.Array


def choose_targets(
    boxes: jax.Array,
    valid: jax.Array,
    gt_boxes: jax.Array,
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
    gt_boxes: [M, 4].
    gt_valid: bool [M], False for rows that are padding.
    key: of the sample.
    match: `ops.matcher.match_boxes` with its options.
    sample: `ops.sampler.sample` with its options.
    coder: of the deltas.
  """
  gt, label = match(gt_boxes, gt_valid, boxes, anchor_valid=valid)
  index, positive, found = sample(label, key)
  gt = gt[index]
  deltas = coder.encode(gt_boxes[gt], jnp.asarray(boxes)[index])
  return Targets(index, gt, deltas, positive, found)


class Sums(NamedTuple):
  """Sums of the losses over the samples of an image, or of several.

  Divided by the number of samples only at the end, over all images of a batch
  and so over all devices: an image with few samples weighs little. Where a
  batch is computed in parts (`accumulation_steps`), each part is by itself.

  Attributes:
    classes: float32 [], of the classification.
    boxes: float32 [], of the regression.
    samples: int32 [], how many there were.
  """

  classes: jax.Array
  boxes: jax.Array
  samples: jax.Array

  def means(self) -> tuple[jax.Array, jax.Array]:
    """Returns both losses of a batch, each divided by all its samples.

    The boxes of negatives add nothing to the sum, but count among the samples.
    """
    samples = jnp.maximum(self.samples.sum(), 1)
    return self.classes.sum() / samples, self.boxes.sum() / samples


def sum_losses(
    classes: jax.Array, deltas: jax.Array, targets: Targets, *, beta: float
) -> Sums:
  """Returns the sums over what was sampled in one image.

  Args:
    classes: float32 [S], the losses of the classification.
    deltas: [S, 4], what was predicted.
    targets: S of them.
    beta: of `smooth_l1`.
  """
  boxes = smooth_l1(deltas, targets.deltas, beta)
  return Sums(
      jnp.where(targets.valid, classes, 0).sum(),
      jnp.where(targets.valid & targets.positive, boxes, 0).sum(),
      targets.valid.sum(),
  )


def smooth_l1(deltas: jax.Array, targets: jax.Array, beta: float) -> jax.Array:
  """Returns |d| - beta / 2, or d^2 / (2 beta) below beta, summed over a box.

  Args:
    deltas: [..., 4].
    targets: [..., 4].
    beta: from where on it is linear; 0 is L1.

  Returns:
    float32 [...].
  """
  distance = jnp.abs(deltas.astype(jnp.float32) - targets)
  if beta > 0:
    square = 0.5 * distance**2 / beta
    distance = jnp.where(distance < beta, square, distance - 0.5 * beta)
  return distance.sum(-1)
