"""Image classification: softmax or binary cross-entropy, mixup and CutMix.

Label smoothing, https://arxiv.org/abs/1512.00567; binary cross-entropy over
targets mixed by mixup and CutMix, https://arxiv.org/abs/2110.00476.
"""

from collections.abc import Mapping
import functools
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from awconv_jax import errors, models
from awconv_jax.evaluators.top_k import TopK
from awconv_jax.ops import mixing
from awconv_jax.options import Fraction, NonNegativeFloat, OneOf, UnitFloat
from awconv_jax.tasks import pixels

Variables = Mapping[str, Any]
Batch = Mapping[str, jax.Array]


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the mean over classes, [B], for logits and targets [B, classes].

  The recipes of https://arxiv.org/abs/2110.00476 are for the mean, not the sum.
  """
  return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


LOSSES = {'softmax': optax.softmax_cross_entropy, 'bce': binary_cross_entropy}


class Classification:
  """Classifies uint8 images; they are mixed and normalised on the device.

  Labels are int [B], or [B, L] where several are right, filled up with -1.

  Args:
    model: a network of `models.create`.
    loss: 'softmax' or 'bce', binary cross-entropy averaged over the classes.
    label_smoothing: share of the target spread over all classes, in [0, 1).
    bce_threshold: with 'bce', targets above it become 1 and the others 0, after
      smoothing and mixing; None leaves them as they are.
    mixup, cutmix: alpha of each; 0 is off. See `ops.mixing`.
    mix_probability: chance that a batch is mixed.
    mix_switch_probability: chance that it is by CutMix, where both are on.
    mean, std: of the pixels, see `pixels.normalize`.
  """

  trains_on = ('image', 'label')
  create_model = staticmethod(models.create)
  evaluator = TopK

  def __init__(
      self,
      model: nn.Module,
      *,
      loss: Annotated[str, OneOf(LOSSES)] = 'softmax',
      label_smoothing: Fraction = 0.0,
      bce_threshold: float | None = None,
      mixup: NonNegativeFloat = 0.0,
      cutmix: NonNegativeFloat = 0.0,
      mix_probability: UnitFloat = 1.0,
      mix_switch_probability: UnitFloat = 0.5,
      mean: pixels.Mean = pixels.MEAN,
      std: pixels.Std = pixels.STD,
  ):
    self.model, self.num_classes = model, model.num_classes
    if not self.num_classes:
      raise errors.InputError(
          'config.model.num_classes=None is of a backbone; want their number'
      )
    wrong = label_smoothing / self.num_classes
    right = 1 - label_smoothing + wrong
    if bce_threshold is not None and not (
        loss == 'bce' and wrong <= bce_threshold < right
    ):
      raise errors.InputError(
          f'config.task.bce_threshold={bce_threshold} needs config.task.loss='
          f"'bce', which is {loss!r}, and must divide targets of wrong "
          f'and right classes: at least {wrong:g} and below {right:g}'
      )
    self._loss, self._threshold = LOSSES[loss], bce_threshold
    self._label_smoothing = label_smoothing
    self._mixing: Any = dict(
        mixup=mixup,
        cutmix=cutmix,
        probability=mix_probability,
        switch_probability=mix_switch_probability,
    )
    self._normalize = functools.partial(pixels.normalize, mean=mean, std=std)

  def _targets(self, labels: jax.Array) -> jax.Array:
    """Returns the uniform distribution over the right classes of each row."""
    # A padding of -1 is no class, and one named twice counts once.
    labels = labels.reshape(labels.shape[0], -1)
    right = jax.nn.one_hot(labels, self.num_classes).max(axis=1)
    return right / jnp.maximum(right.sum(-1, keepdims=True), 1)

  def forward(self, variables: Variables, batch: Batch) -> jax.Array:
    """Returns logits [B, classes] with running statistics."""
    images = self._normalize(batch['image'])
    return self.model.apply(variables, images, train=False)

  def features(
      self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Returns the output of each stage, and the 'embedding' [B, d].

    That is what the head makes logits of.
    """
    images, seen = self._normalize(batch['image']), {}

    def keep(next_function, args, kwargs, context):
      if context.module.name == 'head':
        seen['embedding'] = args[0]
      return next_function(*args, **kwargs)

    backbone = self.model.clone(num_classes=None)
    stages = backbone.apply(variables, images, train=False)
    # What both compute, the compiler does once.
    with nn.intercept_methods(keep):
      self.model.apply(variables, images, train=False)
    return stages | seen

  def init(self, rng: jax.Array, batch: Batch) -> Variables:
    """Returns new variables, for images of the shape of any batch."""
    images = self._normalize(batch['image'][:1])
    return self.model.init(rng, images, train=False)

  def loss(self, variables: Variables, batch: Batch, rng: jax.Array):
    """Returns the mean loss, and (metrics, updated variables but params).

    With mixing 'top1' counts the class with the larger share as the right one.
    Where a batch is computed in parts, each part is mixed by itself.
    """
    images, targets = batch['image'], self._targets(batch['label'])
    targets = optax.smooth_labels(targets, self._label_smoothing)
    mix_rng, dropout_rng = jax.random.split(rng)
    if self._mixing['mixup'] or self._mixing['cutmix']:
      mix = mixing.draw(mix_rng, images.shape[1:3], **self._mixing)
      images = mixing.mix_images(images, mix)
      targets = mixing.mix_targets(targets, mix)
    logits, updated = self.model.apply(
        variables,
        self._normalize(images),
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': dropout_rng},
    )
    chosen = jnp.take_along_axis(targets, logits.argmax(-1)[:, None], axis=-1)
    hits = chosen[:, 0] == targets.max(-1)
    if self._threshold is not None:
      targets = (targets > self._threshold).astype(targets.dtype)
    losses = self._loss(logits, targets)
    return losses.mean(), ({'top1': hits.mean()}, updated)

  def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """Returns what `TopK` takes; the loss is of the targets as they are."""
    logits = self.forward(variables, batch)
    loss = self._loss(logits, self._targets(batch['label']))
    kept = {name: batch[name] for name in ('label', 'mask')}
    return kept | {'logits': logits, 'loss': loss}
