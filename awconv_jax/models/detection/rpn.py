"""Region Proposal Network: which anchors hold an object, and its box.

"Faster R-CNN", https://arxiv.org/abs/1506.01497, section 3.1. The functions are
of one image and without parameters; anchors are numpy constants.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from awconv_jax.layers.conv import Conv
from awconv_jax.models.detection.losses import (
    Sums,
    binary_cross_entropy,
    smooth_l1,
)
from awconv_jax.ops import boxes as box_ops
from awconv_jax.ops.matcher import match_boxes
from awconv_jax.ops.nms import nms
from awconv_jax.ops.sampler import sample
from awconv_jax.ops.valid_area import mask_padding

Options = Mapping[str, Any]


class RPNHead(nn.Module):
  """A 3x3 convolution and two 1x1, the same ones for every level.

  Attributes:
    anchors: of each cell.
    features: channels between.
    dtype: of the computation, but for the predictions: in bfloat16 thousands of
      logits would be equal, and of equals the anchors at the top left go first.
    param_dtype: of the parameters.
  """

  anchors: int
  features: int = 256
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self):
    fields = dict(
        kernel_init=nn.initializers.normal(0.01),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )
    self.shared_conv = Conv(self.features, (3, 3), padding=1, **fields)
    fields['dtype'] = jnp.promote_types(self.dtype, jnp.float32)
    self.cls_logits = Conv(self.anchors, (1, 1), **fields)
    self.bbox_pred = Conv(4 * self.anchors, (1, 1), **fields)

  def __call__(
      self, x: jax.Array, valid_size: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Computes logits and deltas of one level's anchors.

    Args:
      x: [N, H, W, C].
      valid_size: int [N, 2], the image in x; None is all of it.

    Returns:
      float32 [N, H * W * anchors] and [N, H * W * anchors, 4], in the order of
      `ops.anchors`. In the padding they mean nothing.
    """
    hidden = nn.relu(self.shared_conv(mask_padding(x, valid_size)))
    logits = self.cls_logits(hidden).reshape(len(x), -1)
    deltas = self.bbox_pred(hidden).reshape(len(x), -1, 4)
    return logits, deltas


def anchors_inside(
    shape: Sequence[int], valid_size: jax.Array | None, anchors: int
) -> jax.Array:
  """Returns which anchors belong to a cell of the image and not of padding.

  Args:
    shape: N, H, W and more, of a level.
    valid_size: int [N, 2], the image in it; None is all of it.
    anchors: of each cell.

  Returns:
    bool [N, H * W * anchors].
  """
  ones = jnp.ones((*shape[:3], 1), bool)
  inside = mask_padding(ones, valid_size, fill=False)
  return inside.repeat(anchors, axis=-1).reshape(shape[0], -1)


def _best_of_level(
    logits,
    deltas,
    anchors,
    inside,
    *,
    size,
    coder,
    candidates,
    threshold,
    min_size,
):
  """Returns boxes of one level and their scores, -1 for what does not stay."""
  logits = jnp.where(inside, logits, -jnp.inf)
  logits, index = lax.top_k(logits, min(candidates, len(logits)))
  boxes = box_ops.decode(deltas[index], jnp.asarray(anchors)[index], **coder)
  boxes = box_ops.clip(boxes, size)
  scores = jax.nn.sigmoid(logits)
  sides = box_ops.sides(boxes)
  large = jnp.all((sides > 0) & (sides >= min_size), axis=-1)
  valid = large & (logits > -jnp.inf)
  keep = nms(boxes, scores, valid, threshold)
  return boxes, jnp.where(keep, scores, -1.0)


def propose(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[np.ndarray],
    inside: Sequence[jax.Array],
    size: jax.Array,
    *,
    coder: Options,
    candidates: int,
    number: int,
    threshold: float,
    min_size: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the proposals of one image; no gradient flows through them.

  Args:
    logits: [A] of each level.
    deltas: [A, 4] of each level.
    anchors: [A, 4] of each level.
    inside: bool [A] of each level, False in the padding.
    size: [2], height and width of the image, which boxes are clipped to.
    coder: options of `ops.boxes.decode`.
    candidates: best anchors of each level that go on.
    number: proposals at most, the best of all levels.
    threshold: IoU of non-maximum suppression within a level.
    min_size: boxes with a shorter side, in pixels, are left out, and empty ones
      in any case.

  Returns:
    boxes: float32 [K, 4], with K = number or all candidates, if they are fewer.
    scores: float32 [K], from high to low.
    valid: bool [K]; what is not valid means nothing.
  """
  logits, deltas = lax.stop_gradient((list(logits), list(deltas)))
  levels = [
      _best_of_level(
          *level,
          size=size,
          coder=coder,
          candidates=candidates,
          threshold=threshold,
          min_size=min_size,
      )
      for level in zip(logits, deltas, anchors, inside, strict=True)
  ]
  boxes, scores = map(jnp.concatenate, zip(*levels, strict=True))
  scores, index = lax.top_k(scores, min(number, len(scores)))
  valid = scores >= 0
  return boxes[index], jnp.where(valid, scores, 0), valid


def rpn_loss(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: np.ndarray,
    inside: jax.Array,
    gt_boxes: jax.Array,
    gt_valid: jax.Array,
    key: jax.Array,
    *,
    matcher: Options,
    sampler: Options,
    coder: Options,
    beta: float,
) -> Sums:
  """Returns the losses of a sample of one image's anchors (equation 1).

  Args:
    logits: [A], of all levels.
    deltas: [A, 4].
    anchors: [A, 4].
    inside: bool [A], False in the padding; those are never sampled.
    gt_boxes: [M, 4].
    gt_valid: bool [M], False for rows that are padding.
    key: of the sample.
    matcher: options of `ops.matcher.match_boxes`.
    sampler: options of `ops.sampler.sample`.
    coder: options of `ops.boxes.decode`.
    beta: of `smooth_l1`.
  """
  gt_boxes, anchors = jnp.asarray(gt_boxes), jnp.asarray(anchors)
  # An anchor in the padding must not be the best one of any ground truth.
  index, label = match_boxes(
      gt_boxes, gt_valid, anchors, anchor_valid=inside, **matcher
  )
  chosen, positive, valid = sample(label, key, **sampler)
  targets = box_ops.encode(
      gt_boxes[index[chosen]], anchors[chosen], coder['weights']
  )
  classes = binary_cross_entropy(logits[chosen], positive)
  boxes = smooth_l1(deltas[chosen], targets, beta)
  return Sums(
      jnp.where(valid, classes, 0).sum(),
      jnp.where(valid & positive, boxes, 0).sum(),
      valid.sum(),
  )
