"""The second stage: classes and boxes of regions, their losses and detections.

"Fast R-CNN", https://arxiv.org/abs/1504.08083, with the two layers of
"Feature Pyramid Networks", https://arxiv.org/abs/1612.03144, section 5.2.

Everywhere but in the parameters, classes are 0 to C - 1 and C is background.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.models.detection.losses import Sums, Targets, sum_losses
from awconv_jax.ops.boxes import Coder, clip, is_large
from awconv_jax.ops.matcher import match_boxes
from awconv_jax.ops.nms import nms
from awconv_jax.ops.sampler import sample
from awconv_jax.options import NonNegativeFloat, PositiveInt, UnitFloat

RegionCoder = functools.partial(Coder, weights=(10.0, 10.0, 5.0, 5.0))
match_regions = functools.partial(match_boxes, positive=0.5, negative=0.5)
sample_labels = functools.partial(sample, number=512, fraction=0.25)
# Classes whose pairs of boxes are in memory together.
CLASSES_AT_ONCE = 8


class BoxHead(nn.Module):
  """Two dense layers of so many features over pooled regions."""

  features: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [..., features] for pooled regions [..., P, P, C]."""
    dense = functools.partial(
        nn.DenseGeneral,
        self.features,
        kernel_init=nn.initializers.xavier_uniform(),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )
    # The kernel keeps its axes, [P, P, C, features]: other frameworks flatten
    # channels first.
    x = nn.relu(dense(axis=(-3, -2, -1), name='fc6')(x))
    return nn.relu(dense(name='fc7')(x))


class BoxPredictor(nn.Module):
  """Logits, and a box for every class.

  Attributes:
    num_classes: C, without the background.
    background: where the parameters have it among the outputs. mmdetection:
      'last', without a box. torchvision: 'first', with a box that nothing
      trains or reads.
    dtype: of the computation, if it is wider than float32: in half precision
      scores would tie, and boxes be off by pixels.
    param_dtype: of the parameters.
  """

  num_classes: int
  background: str
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns logits and deltas for regions [..., features].

    Both float32 at least: [..., C + 1], the background last, and [..., C, 4].
    """
    dense = functools.partial(
        nn.Dense,
        dtype=jnp.promote_types(self.dtype, jnp.float32),
        param_dtype=self.param_dtype,
    )
    first = self.background == 'first'
    normal = nn.initializers.normal
    classes, boxes = self.num_classes + 1, self.num_classes + first
    logits = dense(classes, kernel_init=normal(0.01), name='cls_score')(x)
    deltas = dense(4 * boxes, kernel_init=normal(0.001), name='bbox_pred')(x)
    deltas = deltas.reshape(*deltas.shape[:-1], boxes, 4)
    if first:
      logits, deltas = jnp.roll(logits, -1, axis=-1), deltas[..., 1:, :]
    return logits, deltas


def create_head(
    num_classes: int,
    *,
    features: PositiveInt = 1024,
    background: Literal['last', 'first'] = 'last',
    **dtypes: Any,
) -> tuple[BoxHead, BoxPredictor]:
  """Returns both modules of the second stage, of the same dtypes.

  Args:
    num_classes: C, without the background.
    features: channels of the hidden layers.
    background: where the parameters have it among the outputs, see
      `BoxPredictor`.
    **dtypes: dtype and param_dtype.
  """
  predictor = BoxPredictor(num_classes, background, **dtypes)
  return BoxHead(features, **dtypes), predictor


def box_loss(
    logits: jax.Array, deltas: jax.Array, targets: Targets, *, beta: float
) -> Sums:
  """Returns the losses of one image's regions.

  Logits are [S, C + 1], the background last. Of the deltas of a positive, [S,
  C, 4], only those of its class are trained.
  """
  label = jnp.where(targets.positive, targets.labels, deltas.shape[1])[:, None]
  log = jax.nn.log_softmax(logits)
  classes = -jnp.take_along_axis(log, label, axis=1)[:, 0]
  label = jnp.minimum(label, deltas.shape[1] - 1)[..., None]
  deltas = jnp.take_along_axis(deltas, label, axis=1)[:, 0]
  return sum_losses(classes, deltas, targets, beta=beta)


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
  """Returns the detections of one image, as section 2.2 has it.

  No region is left out for speed, so that the result is that of the loops in
  other frameworks.

  Args:
    logits, deltas: [K, C + 1], the background last, and [K, C, 4].
    rois, valid: [K, 4] and bool [K].
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
  scores = jax.nn.softmax(logits)[:, :-1]
  boxes = clip(coder.decode(deltas, rois[:, None]), size)
  some = valid[:, None] & (scores > min_score) & is_large(boxes, min_size)
  keep = lax.map(
      lambda of_class: nms(*of_class, threshold),
      [jnp.swapaxes(x, 0, 1) for x in (boxes, scores, some)],
      batch_size=min(CLASSES_AT_ONCE, scores.shape[1]),
  ).T
  ranked = jnp.where(keep, scores, -1).reshape(-1)
  spare = 0, max(number - len(ranked), 0)
  ranked = jnp.pad(ranked, spare, constant_values=-1)
  best, index = lax.top_k(ranked, number)
  found = best >= 0
  return dict(
      boxes=jnp.where(found[:, None], boxes.reshape(-1, 4)[index], 0),
      scores=jnp.where(found, best, 0),
      labels=jnp.where(found, index % scores.shape[1], 0),
      valid=found,
  )
