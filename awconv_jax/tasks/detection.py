"""Object detection: the four losses of Faster R-CNN, and COCO's measures."""

from collections.abc import Mapping
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax import models
from awconv_jax.evaluators.coco import CocoEvaluator
from awconv_jax.tasks import pixels

Variables = Mapping[str, Any]
Batch = Mapping[str, jax.Array]


class Detection:
  """Detects objects in uint8 images on a canvas; see `data.detection`.

  Args:
    model: of `models.create_detector`.
    mean, std: of the pixels, see `pixels.normalize`.
  """

  trains_on = ('image', 'image_size', 'gt_boxes', 'gt_labels', 'gt_valid')
  create_model = staticmethod(models.create_detector)

  def __init__(
      self,
      model: nn.Module,
      *,
      mean: pixels.Mean = pixels.MEAN,
      std: pixels.Std = pixels.STD,
  ):
    self.model, self.num_classes = model, model.num_classes
    self._prepare = functools.partial(pixels.on_canvas, mean=mean, std=std)

  def forward(self, variables: Variables, batch: Batch) -> dict[str, Any]:
    """Returns all outputs for as many regions as are proposed."""
    images, size = self._prepare(batch)
    regions = jnp.zeros((images.shape[0], self.model.num_proposals, 4))
    return self.model.apply(variables, images, size, regions)

  def features(
      self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Returns the levels of the pyramid, 'p2', 'p3', ..., on the canvas."""
    levels = self.model.apply(
        variables, *self._prepare(batch), method='features'
    )
    return {f'p{i}': level for i, level in enumerate(levels, start=2)}

  def init(self, rng: jax.Array, batch: Batch) -> Variables:
    """Returns new variables, for images of the shape of any batch."""
    images, size = self._prepare({'image': batch['image'][:1]})
    return self.model.init(rng, images, size, jnp.zeros((1, 1, 4)))

  def loss(self, variables: Variables, batch: Batch, rng: jax.Array):
    """Returns the loss, and (its four parts, updated variables but params)."""
    truth = (batch[name] for name in ('gt_boxes', 'gt_labels', 'gt_valid'))
    sample_rng, dropout_rng = jax.random.split(rng)
    parts, updated = self.model.apply(
        variables,
        *(*self._prepare(batch), *truth, sample_rng),
        method='losses',
        mutable=['batch_stats'],
        rngs={'dropout': dropout_rng},
    )
    return sum(parts.values()), (parts, updated)

  def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """Returns what `CocoEvaluator` takes: detections and ground truth."""
    images, size = self._prepare(batch)
    found = self.model.apply(variables, images, size, method='detect')
    return found | {k: v for k, v in batch.items() if k != 'image'}

  def evaluator(self) -> CocoEvaluator:
    """Returns an empty evaluator; labels stand for themselves, from 1."""
    return CocoEvaluator(range(1, self.num_classes + 1))
