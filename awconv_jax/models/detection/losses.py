"""Losses of detectors, one value for each box, in float32.

"Fast R-CNN", https://arxiv.org/abs/1504.08083, equations 1 to 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


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


def binary_cross_entropy(logits: jax.Array, positive: jax.Array) -> jax.Array:
  """Returns -log sigmoid(logit) of positives, -log(1 - sigmoid) of others.

  Args:
    logits: [...].
    positive: bool [...].

  Returns:
    float32 [...].
  """
  logits = logits.astype(jnp.float32)
  return jax.nn.softplus(jnp.where(positive, -logits, logits))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns -log softmax(logits)[label].

  Args:
    logits: [..., C].
    labels: int [...], 0 to C - 1.

  Returns:
    float32 [...].
  """
  log = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.take_along_axis(log, labels[..., None], axis=-1)[..., 0]


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
