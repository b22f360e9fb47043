"""Image classification: softmax cross-entropy with label smoothing."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from awconv_jax import errors, models
from awconv_jax.evaluators.top_k import TopK

Variables = Mapping[str, Any]
Batch = Mapping[str, jax.Array]


class Classification:
  """Classifies uint8 images; they are normalised on the device.

  Args:
    model: options of `models.create`, with its name.
    label_smoothing: share of the target spread over all classes, in [0, 1).
    mean, std: per channel (one value serves all), in units of 0..255.

  Raises:
    InputError: a value is impossible.
  """

  def __init__(
      self,
      model: Mapping[str, Any],
      *,
      label_smoothing: float,
      mean: Sequence[float],
      std: Sequence[float],
  ):
    if not 0 <= label_smoothing < 1:
      raise errors.InputError(
          f'config.task.label_smoothing={label_smoothing} is not in [0, 1)'
      )
    self.model = models.create(**model)
    self.num_classes = self.model.num_classes
    self._label_smoothing = label_smoothing
    self._mean, self._std = mean, std

  def _check_statistics(self, channels: int) -> None:
    for name, values in (('mean', self._mean), ('std', self._std)):
      finite = all(math.isfinite(v) for v in values)
      positive = name == 'mean' or all(v > 0 for v in values)
      if len(values) not in (1, channels) or not finite or not positive:
        raise errors.InputError(
            f'config.task.{name}={tuple(values)}: the images have {channels} '
            'channel(s); give one value for all or one for each, finite'
            + (' and above 0' if name == 'std' else '')
        )

  def _normalize(self, images: jax.Array) -> jax.Array:
    mean = jnp.array(self._mean, jnp.float32)
    std = jnp.array(self._std, jnp.float32)
    return (images.astype(jnp.float32) - mean) / std

  def _losses(self, logits, labels, smoothing):
    targets = optax.smooth_labels(
        jax.nn.one_hot(labels, self.num_classes), smoothing
    )
    return optax.softmax_cross_entropy(logits, targets)

  def forward(self, variables: Variables, batch: Batch) -> jax.Array:
    """Returns logits [B, classes] with running statistics."""
    images = self._normalize(batch['image'])
    return self.model.apply(variables, images, train=False)

  def init(self, rng: jax.Array, batch: Batch) -> Variables:
    """Returns new variables: 'params' and 'batch_stats'.

    Args:
      rng: key of the initialisation.
      batch: any batch; only its image's shape [B, H, W, C] matters.

    Raises:
      InputError: mean or std do not fit the images' channels.
    """
    self._check_statistics(batch['image'].shape[-1])
    images = self._normalize(batch['image'][:1])
    return self.model.init(rng, images, train=False)

  def loss(self, variables: Variables, batch: Batch, rng: jax.Array):
    """Returns the mean loss, and (metrics, updated variables but params).

    Args:
      variables: 'params' and 'batch_stats'.
      batch: image uint8 [B, H, W, C], label int [B].
      rng: key of this step, for what is random in training.
    """
    images = self._normalize(batch['image'])
    logits, updated = self.model.apply(
        variables,
        images,
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': rng},
    )
    losses = self._losses(logits, batch['label'], self._label_smoothing)
    hits = logits.argmax(-1) == batch['label']
    return losses.mean(), ({'top1': hits.mean()}, updated)

  def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """Returns what `TopK` takes: logits, label, loss and mask of each row."""
    logits = self.forward(variables, batch)
    return {
        'logits': logits,
        'label': batch['label'],
        'loss': self._losses(logits, batch['label'], 0.0),
        'mask': batch['mask'],
    }

  def evaluator(self) -> TopK:
    """Returns an empty evaluator."""
    return TopK()
