"""Region Proposal Network: which anchors hold an object, and its box.

"Faster R-CNN", https://arxiv.org/abs/1506.01497, section 3.1. The functions are
of one image and without parameters; anchors are numpy constants.
"""

from collections.abc import Mapping, Sequence
import functools
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
from awconv_jax.ops.boxes import Coder, clip, is_large
from awconv_jax.ops.matcher import match_boxes
from awconv_jax.ops.nms import nms
from awconv_jax.ops.sampler import sample
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import NonNegativeFloat, PositiveInt, UnitFloat

match_anchors = functools.partial(
    match_boxes, positive=0.7, negative=0.3, min_positive=0.3
)
sample_anchors = functools.partial(sample, number=256, fraction=0.5)


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
  features: int
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


def propose(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    inside: Sequence[jax.Array],
    size: jax.Array,
    *,
    anchors: Sequence[np.ndarray],
    coder: Coder,
    train: bool,
    train_candidates: PositiveInt = 2000,
    candidates: PositiveInt = 1000,
    train_number: PositiveInt = 1000,
    number: PositiveInt = 1000,
    threshold: UnitFloat = 0.7,
    min_size: NonNegativeFloat = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the proposals of one image; no gradient flows through them.

  Args:
    logits: [A] of each level.
    deltas: [A, 4] of each level.
    inside: bool [A] of each level, False in the padding.
    size: [2], height and width of the image, which boxes are clipped to.
    anchors: [A, 4] of each level.
    coder: of the deltas.
    train: whether they are to be trained on.
    train_candidates, candidates: best anchors of each level that go on, in
      training and otherwise.
    train_number, number: proposals at most, the best of all levels.
    threshold: IoU of non-maximum suppression within a level.
    min_size: boxes with a shorter side, in pixels, are left out, and empty ones
      in any case.

  Returns:
    boxes: float32 [K, 4], with K = number or all candidates, if they are fewer.
    scores: float32 [K], from high to low.
    valid: bool [K]; what is not valid means nothing.
  """
  if train:
    candidates, number = train_candidates, train_number
  levels = []
  for of_level in zip(logits, deltas, inside, anchors, strict=True):
    logit, delta, is_inside, anchor = lax.stop_gradient(of_level)
    logit = jnp.where(is_inside, logit, -jnp.inf)
    logit, index = lax.top_k(logit, min(candidates, len(logit)))
    boxes = coder.decode(delta[index], jnp.asarray(anchor)[index])
    boxes, scores = clip(boxes, size), jax.nn.sigmoid(logit)
    valid = is_large(boxes, min_size) & (logit > -jnp.inf)
    keep = nms(boxes, scores, valid, threshold)
    levels.append((boxes, jnp.where(keep, scores, -1.0)))
  boxes, scores = map(jnp.concatenate, zip(*levels, strict=True))
  scores, index = lax.top_k(scores, min(number, len(scores)))
  valid = scores >= 0
  return boxes[index], jnp.where(valid, scores, 0), valid


def rpn_loss(
    logits: jax.Array,
    deltas: jax.Array,
    inside: jax.Array,
    gt_boxes: jax.Array,
    gt_valid: jax.Array,
    key: jax.Array,
    *,
    anchors: np.ndarray,
    matcher: Mapping[str, Any],
    sampler: Mapping[str, Any],
    coder: Coder,
    beta: float,
) -> Sums:
  """Returns the losses of a sample of one image's anchors (equation 1).

  Args:
    logits: [A], of all levels.
    deltas: [A, 4].
    inside: bool [A], False in the padding; those are never sampled.
    gt_boxes: [M, 4].
    gt_valid: bool [M], False for rows that are padding.
    key: of the sample.
    anchors: [A, 4].
    matcher: options of `match_anchors`.
    sampler: options of `sample_anchors`.
    coder: of the targets.
    beta: of `smooth_l1`.
  """
  # An anchor in the padding must not be the best one of any ground truth.
  index, label = match_anchors(
      gt_boxes, gt_valid, anchors, anchor_valid=inside, **matcher
  )
  chosen, positive, valid = sample_anchors(label, key, **sampler)
  targets = coder.encode(gt_boxes[index[chosen]], jnp.asarray(anchors)[chosen])
  classes = binary_cross_entropy(logits[chosen], positive)
  boxes = smooth_l1(deltas[chosen], targets, beta)
  return Sums(
      jnp.where(valid, classes, 0).sum(),
      jnp.where(valid & positive, boxes, 0).sum(),
      valid.sum(),
  )
