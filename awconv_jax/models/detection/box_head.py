"""The second stage: classes and boxes of regions, trained on a sample of them.

"Fast R-CNN", https://arxiv.org/abs/1504.08083, with the two layers of
"Feature Pyramid Networks", https://arxiv.org/abs/1612.03144, section 5.2.

Everywhere but in the parameters, classes are 0 to C - 1 and C is background.
"""

from collections.abc import Callable
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.models.detection.losses import Sums, Targets, sum_losses
from awconv_jax.ops.boxes import Coder
from awconv_jax.ops.matcher import match_boxes
from awconv_jax.ops.sampler import sample
from awconv_jax.options import PositiveInt

RegionCoder = functools.partial(Coder, weights=(10.0, 10.0, 5.0, 5.0))
match_regions = functools.partial(match_boxes, positive=0.5, negative=0.5)
sample_labels = functools.partial(sample, number=512, fraction=0.25)


class BoxHead(nn.Module):
  """Two dense layers over pooled regions.

  Attributes:
    features: of both.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  features: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [..., features] for pooled regions [..., P, P, C]."""
    fields = dict(
        kernel_init=nn.initializers.xavier_uniform(),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )
    # The kernel keeps its axes, [P, P, C, features]: other frameworks flatten
    # channels first.
    axes = (-3, -2, -1)
    x = nn.DenseGeneral(self.features, axis=axes, name='fc6', **fields)(x)
    return nn.relu(nn.Dense(self.features, name='fc7', **fields)(nn.relu(x)))


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
  background: str = 'last'
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the outputs for regions.

    Args:
      x: [..., features].

    Returns:
      Logits, float32 [..., C + 1], the background last; and deltas, float32
      [..., C, 4].
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
  """Returns both modules of the second stage.

  Args:
    num_classes: C, without the background.
    features: of the two layers.
    background: see `BoxPredictor`.
    **dtypes: dtype and param_dtype, of both.
  """
  predictor = BoxPredictor(num_classes, background, **dtypes)
  return BoxHead(features, **dtypes), predictor


class Regions(NamedTuple):
  """The regions of an image that are trained on.

  Attributes:
    boxes: float32 [S, 4].
    labels: int32 [S], 0 to C - 1, or C for background.
    targets: what was sampled.
  """

  boxes: jax.Array
  labels: jax.Array
  targets: Targets


def choose_regions(
    boxes: jax.Array,
    valid: jax.Array,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    gt_valid: jax.Array,
    key: jax.Array,
    *,
    num_classes: int,
    choose: Callable[..., Targets],
) -> Regions:
  """Samples from the proposals of one image and its ground truth.

  Args:
    boxes: [K, 4], the proposals.
    valid: bool [K].
    gt_boxes: [M, 4].
    gt_labels: int [M], 0 to C - 1.
    gt_valid: bool [M], False for rows that are padding.
    key: of the sample.
    num_classes: C.
    choose: `losses.choose_targets` with its options.
  """
  # With the ground truth there are positives from the first step on.
  boxes = jax.lax.stop_gradient(jnp.concatenate([boxes, gt_boxes]))
  valid = jnp.concatenate([valid, gt_valid])
  targets = choose(boxes, valid, gt_boxes, gt_valid, key)
  labels = jnp.where(targets.positive, gt_labels[targets.gt], num_classes)
  return Regions(boxes[targets.index], labels, targets)


def box_loss(
    logits: jax.Array, deltas: jax.Array, regions: Regions, *, beta: float
) -> Sums:
  """Returns the losses of one image's regions.

  Args:
    logits: [S, C + 1], the background last.
    deltas: [S, C, 4]; of a positive only those of its class are trained.
    regions: what was sampled.
    beta: of `losses.smooth_l1`.
  """
  label = regions.labels[:, None]
  log = jax.nn.log_softmax(logits.astype(jnp.float32))
  classes = -jnp.take_along_axis(log, label, axis=1)[:, 0]
  label = jnp.minimum(label, deltas.shape[1] - 1)[..., None]
  deltas = jnp.take_along_axis(deltas, label, axis=1)[:, 0]
  return sum_losses(classes, deltas, regions.targets, beta=beta)
