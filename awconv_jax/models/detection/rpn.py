"""Region Proposal Network: which anchors hold an object, and its box.

"Faster R-CNN", https://arxiv.org/abs/1506.01497, section 3.1. The functions are
of one image and without parameters; anchors are numpy constants.
"""

from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from awconv_jax.layers.conv import Conv
from awconv_jax.models.detection.losses import Sums, Targets, sum_losses
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

  Predictions are in float32 at least: in bfloat16 thousands of logits would be
  equal, and of equals the anchors at the top left go first.
  """

  anchors: int  # Of each cell.
  features: int  # Channels between.
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
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the outputs for the A = H * W * anchors of one level.

    Args:
      x: [N, H, W, C].
      valid_size: see `ops.valid_area`.

    Returns:
      Logits and deltas, float [N, A] and [N, A, 4], in the order of
      `ops.anchors`; and bool [N, A], False in the padding, where they mean
      nothing.
    """
    hidden = nn.relu(self.shared_conv(mask_padding(x, valid_size)))
    logits = self.cls_logits(hidden)
    inside = mask_padding(jnp.ones(logits.shape, bool), valid_size, fill=False)
    logits, inside = (a.reshape(x.shape[0], -1) for a in (logits, inside))
    return logits, self.bbox_pred(hidden).reshape(x.shape[0], -1, 4), inside


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
) -> tuple[jax.Array, jax.Array]:
  """Returns the proposals of one image; no gradient flows through them.

  Args:
    logits, deltas, anchors: [A], [A, 4] and [A, 4] of each level.
    inside: bool [A] of each level, False in the padding.
    size: [2], height and width of the image, which boxes are clipped to.
    coder: of the deltas.
    train: whether they are to be trained on.
    train_candidates, candidates: best anchors of each level that go on, in
      training and otherwise.
    train_number, number: proposals at most, likewise, the best of all levels.
    threshold: IoU of non-maximum suppression within a level.
    min_size: boxes with a shorter side, in pixels, are left out, and empty ones
      in any case.

  Returns:
    Boxes, float32 [K, 4], from high scores to low, with K = number or all
    candidates, if they are fewer; and bool [K], False for what means nothing.
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
  return boxes[index], scores >= 0


def rpn_loss(
    logits: jax.Array, deltas: jax.Array, targets: Targets, *, beta: float
) -> Sums:
  """Returns the losses of a sample of one image's anchors (equation 1).

  Logits are [A], of all levels, and deltas [A, 4]; see `losses.sum_losses`.
  """
  logits = logits[targets.index]
  # -log sigmoid(logit) of positives, and -log(1 - sigmoid(logit)) of others.
  classes = jax.nn.softplus(jnp.where(targets.positive, -logits, logits))
  return sum_losses(classes, deltas[targets.index], targets, beta=beta)
