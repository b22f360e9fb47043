"""What batches are made for: a product of all pixels, or a training step.

'product' does the least that reads a batch as a network does: every row of
every image, normalised, times a few vectors. The others are training steps as
the train loop compiles them: of a small ResNet, which takes longer than reading
the images, and of a linear classifier of all pixels, which does not.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from awconv_jax.tasks import classification
from awconv_jax.train import partition
from awconv_jax.train import step as train_step
from benchmarks import data_jpegs, data_tf

Batch = dict[str, np.ndarray]
# Takes a batch, starts to compute and returns what can be waited for.
Consumer = Callable[[Batch], Any]
_VECTORS = 8


def _product(mesh: jax.sharding.Mesh, shapes: Any) -> Consumer:
  del mesh
  width = shapes['image'].shape[2] * 3
  vectors = jnp.ones((width, _VECTORS)) / width
  mean, std = jnp.array(data_tf.MEAN), jnp.array(data_tf.STD)

  def one(image):
    if image.dtype == jnp.uint8:
      image = (image.astype(jnp.float32) - mean) / std
    return image.reshape(-1, width) @ vectors

  # One after the other: where a whole batch becomes floats at once, the CPU
  # spends as long on new memory for them as on a quarter of the reading.
  product = jax.jit(lambda images: jax.lax.map(one, images))
  return lambda batch: product(batch['image'])


class _Linear(nn.Module):
  """One dense layer over all pixels."""

  num_classes: int

  @nn.compact
  def __call__(self, x, *, train):
    del train
    return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def _task(linear: bool) -> classification.Classification:
  network = dict(
      name='resnet18',
      stage_sizes=(1,),
      width=8,
      num_classes=data_jpegs.CLASSES,
  )
  task = classification.Classification(
      network,
      loss='softmax',
      label_smoothing=0.0,
      bce_threshold=None,
      mixup=0.0,
      cutmix=0.0,
      mix_probability=1.0,
      mix_switch_probability=0.5,
      mean=data_tf.MEAN,
      std=data_tf.STD,
  )
  if linear:  # It is in no registry: nobody wants to train it.
    task.model = _Linear(data_jpegs.CLASSES)
  return task


def _training(linear: bool, mesh: jax.sharding.Mesh, shapes: Any) -> Consumer:
  task, optimizer = _task(linear), optax.sgd(1e-4, 0.9)
  state = train_step.create_state(
      task, optimizer, mesh, seed=0, batch_shapes=shapes, ema=False
  )
  step = train_step.create_train_step(
      task,
      optimizer,
      lambda step: 1e-4,
      mesh,
      seed=0,
      accumulation_steps=1,
      ema_decay=0.0,
  )

  def consume(batch):
    nonlocal state
    state, metrics = step(state, partition.shard_batch(mesh, batch))
    return metrics

  return consume


TRAINING = {
    'resnet': lambda mesh, shapes: _training(False, mesh, shapes),
    'linear': lambda mesh, shapes: _training(True, mesh, shapes),
}


def create(name: str, mesh: jax.sharding.Mesh, batch: Batch) -> Consumer:
  """Returns a consumer, compiled.

  Args:
    name: 'product' or a key of `TRAINING`.
    mesh: in force.
    batch: any batch of the pipeline whose batches it is to take.
  """
  shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
  consumer = TRAINING.get(name, _product)(mesh, shapes)
  jax.block_until_ready(consumer(batch))
  return consumer
