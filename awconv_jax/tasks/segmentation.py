"""Semantic segmentation: the cross-entropy of pixels, and mean IoU."""

from collections.abc import Mapping
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from awconv_jax import models
from awconv_jax.evaluators.confusion import Confusion
from awconv_jax.tasks import pixels

Variables = Mapping[str, Any]
Batch = Mapping[str, jax.Array]


class Segmentation:
  """Gives every pixel of uint8 images a class; see `data.segmentation`.

  Args:
    model: of `models.create_segmenter`.
    mean, std: of the pixels, see `pixels.normalize`.
  """

  trains_on = ('image', 'image_size', 'gt_classes')
  create_model = staticmethod(models.create_segmenter)

  def __init__(
      self,
      model: nn.Module,
      *,
      mean: pixels.Mean = pixels.MEAN,
      std: pixels.Std = pixels.STD,
  ):
    self.model, self.num_classes = model, model.num_classes
    self._prepare = functools.partial(pixels.on_canvas, mean=mean, std=std)

  def forward(self, variables: Variables, batch: Batch) -> jax.Array:
    """Returns logits [B, H, W, classes] with running statistics."""
    return self.model.apply(variables, *self._prepare(batch))

  def features(
      self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Returns the levels of the pyramid, 'p2', 'p3', ..., on the canvas."""
    levels, _ = self.model.apply(
        variables, *self._prepare(batch), method='levels'
    )
    return levels

  def init(self, rng: jax.Array, batch: Batch) -> Variables:
    """Returns new variables, for images of the shape of any batch."""
    return self.model.init(rng, *self._prepare({'image': batch['image'][:1]}))

  def loss(self, variables: Variables, batch: Batch, rng: jax.Array):
    """Returns the loss, and (metrics, updated variables but params).

    The loss is the mean over all pixels of the batch that have a class, and
    'accuracy' the share of these that is right. Where a batch is computed in
    parts, so is each part's.
    """
    logits, updated = self.model.apply(
        variables,
        *self._prepare(batch),
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': rng},
    )
    right = batch['gt_classes'].astype(jnp.int32)
    counts = right < self.num_classes
    labels = jnp.where(counts, right, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    number = jnp.maximum(counts.sum(), 1)

    def mean(values):
      return jnp.where(counts, values, 0).sum() / number

    hits = logits.argmax(-1) == right
    return mean(losses), ({'accuracy': mean(hits)}, updated)

  def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """Returns what `Confusion` takes; 'classes' are uint8 [B, H, W]."""
    return self.outputs(self.forward(variables, batch), batch)

  def outputs(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Returns 'classes' of logits, and what the batch has but the image."""
    classes = logits.argmax(-1).astype(jnp.uint8)
    return {'classes': classes} | {
        k: v for k, v in batch.items() if k != 'image'
    }

  def evaluator(self) -> Confusion:
    """Returns an empty evaluator."""
    return Confusion(self.num_classes)
