"""Whole networks: a training step with and without AW-convolutions."""

from collections.abc import Iterator, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from awconv_jax import models
from awconv_jax.tools.benchmark import timing


@dataclasses.dataclass
class Row:
  """One line of the table.

  Attributes:
    model: name of the network.
    variant: 'plain', or 'aw:' and the implementation.
    batch: images a step.
    side: height and width of the images.
    milliseconds: median time of a step.
    ratio: time over that of 'plain' in the same run.
    images_per_second: of the step.
    temporary_mib: temporary memory in MiB.
  """

  model: str
  variant: str
  batch: int
  side: int
  milliseconds: float
  ratio: float
  images_per_second: float
  temporary_mib: float


def _step(name: str, variant: str, dtype: str, side: int):
  """Returns a training step of SGD, and its state."""
  options = dict(dtype=dtype)
  if variant != 'plain':
    implementation = variant.partition(':')[2]
    options.update(aw_conv=True, aw_options=dict(implementation=implementation))
  model = models.create(name, num_classes=1000, **options)
  image = jnp.zeros((1, side, side, 3))
  variables = jax.jit(lambda k: model.init(k, image, train=False))(
      jax.random.key(0)
  )
  optimizer = optax.sgd(0.1, 0.9)

  def step(variables, state, images, labels):
    def loss(params):
      logits, updated = model.apply(
          {**variables, 'params': params},
          images,
          train=True,
          mutable=['batch_stats'],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), updated

    (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(
        variables['params']
    )
    updates, state = optimizer.update(grads, state)
    params = optax.apply_updates(variables['params'], updates)
    return {'params': params, **updated}, state, value

  return step, variables, optimizer.init(variables['params'])


def run(
    *,
    name: str,
    variants: Sequence[str],
    batches: Sequence[int],
    side: int,
    dtype: str,
    seconds: float,
) -> Iterator[Row]:
  """Measures, and yields rows as they come.

  Args:
    name: of the network, such as 'resnet50'.
    variants: 'aw:<implementation>', besides 'plain'.
    batches: batch sizes.
    side: height and width of the images.
    dtype: of the computation.
    seconds: time for each measurement.
  """
  variants = list(dict.fromkeys(['plain', *variants]))
  made = {v: _step(name, v, dtype, side) for v in variants}
  for batch in batches:
    rng = np.random.default_rng(0)
    pairs = [
        (
            jnp.asarray(rng.normal(size=(batch, side, side, 3)), jnp.float32),
            jnp.asarray(rng.integers(1000, size=batch)),
        )
        for _ in range(2)
    ]

    functions = {v: step for v, (step, _, _) in made.items()}
    inputs = {
        v: [(variables, state, *images) for images in pairs]
        for v, (_, variables, state) in made.items()
    }
    measured = timing.measure(functions, inputs, seconds=seconds, check={})
    for variant, m in measured.items():
      yield Row(
          model=name,
          variant=variant,
          batch=batch,
          side=side,
          milliseconds=m.milliseconds,
          ratio=m.milliseconds / measured['plain'].milliseconds,
          images_per_second=1e3 * batch / m.milliseconds,
          temporary_mib=m.temporary_mib,
      )
