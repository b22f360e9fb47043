"""Whole networks: a training step with and without AW-convolutions."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import re
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from awconv_jax import errors, models
from awconv_jax.layers.attention import ATTENTION
from awconv_jax.ops.aw_conv import IMPLEMENTATIONS
from awconv_jax.options import (
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveInt,
)
from awconv_jax.train import partition
from benchmarks import timing

FORMS = ('auto', *IMPLEMENTATIONS)
# What networks with AW are compared with: the first that is measured anyway, or
# else the last, which needs the least memory.
REFERENCES = ('aw:vmap', 'aw:map')
# Relative differences of loss and gradients' norms that are rounding.
TOLERANCES = {'float32': 1e-2, 'bfloat16': 1e-1}
PLOT = dict(
    bar='variant',
    groups=('model', 'batch', 'side', 'devices'),
    height='images_per_second',
    label='images/s',
    scale='linear',
)


@dataclasses.dataclass
class Row:
  """One line of the table.

  Attributes:
    model: name of the network.
    variant: 'plain'; the attention of activations, such as 'se'; or 'aw:' and
      the implementation.
    batch: images a step.
    side: height and width of the images, in pixels.
    devices: that share the batch.
    milliseconds: median time of a step.
    calls: how many were timed.
    ratio: time over that of 'plain' in the same run.
    images_per_second: of the step.
    temporary_mib: temporary memory of each device.
    all_gathers, all_reduces: exchanges between devices in the compiled program;
      one inside of a loop counts once.
    error: of the loss, or of the norms of all gradients, relative to those of
      'aw:vmap' or 'aw:map'; the largest of all.
  """

  model: str
  variant: str
  batch: int
  side: int
  devices: int
  milliseconds: float
  calls: int
  ratio: float
  images_per_second: float
  temporary_mib: float | None
  all_gathers: int
  all_reduces: int
  error: float


def create_step(
    model: nn.Module, mesh: Mesh, image_shape: Sequence[int], seed: int
) -> tuple[Any, Any]:
  """Returns the first state, and the step `(state, batch) -> (state, loss)`.

  It is of SGD with momentum and the gradient of a softmax cross-entropy, as the
  train loop compiles it: the state on all devices, the batch over them.

  Args:
    model: a network for classification.
    mesh: in force.
    image_shape: height, width and channels.
    seed: of the first parameters.
  """
  optimizer = optax.sgd(0.1, 0.9)

  def init():
    images = jnp.zeros((1, *image_shape))
    variables = model.init(jax.random.key(seed), images, train=False)
    return variables, optimizer.init(variables['params'])

  def step(state, batch):
    variables, momentum = state

    def loss(params):
      logits, updated = model.apply(
          {**variables, 'params': params},
          batch['image'],
          train=True,
          mutable=['batch_stats'],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
          logits, batch['label']
      )
      return losses.mean(), updated

    (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(
        variables['params']
    )
    updates, momentum = optimizer.update(grads, momentum)
    params = optax.apply_updates(variables['params'], updates)
    return ({**updated, 'params': params}, momentum), value

  whole, rows = partition.replicated(mesh), partition.over_batch(mesh)
  return jax.jit(init, out_shardings=whole)(), jax.jit(
      step, in_shardings=(whole, rows), out_shardings=whole
  )


def run(
    *,
    model: Annotated[str, OneOf(models.MODELS)] = 'resnet50',
    implementations: Sequence[Annotated[str, OneOf(FORMS)]] = ('auto',),
    attentions: Sequence[Annotated[str, OneOf(ATTENTION)]] = (),
    batches: Sequence[PositiveInt] = (8,),
    side: PositiveInt = 224,
    dtype: Annotated[str, OneOf(TOLERANCES)] = 'float32',
    seconds: NonNegativeFloat = 5.0,
    seed: NonNegativeInt = 0,
) -> Iterator[Row]:
  """Measures, and yields rows as they come.

  Args:
    model: name of the network, such as 'resnet50'.
    implementations: of the AW-convolutions. They are compared with 'vmap' or
      'map', which takes one step more if neither is here.
    attentions: names of attention of activations, to measure without AW.
    batches: batch sizes; each is shared by all devices.
    side: height and width of the images.
    dtype: of the computation.
    seconds: time for each measurement.
    seed: of parameters and images.

  Raises:
    InputError: the devices cannot share a batch evenly.
    ReportedError: the AW variants do not compute the same.
  """
  mesh = partition.create_mesh()
  check_batches(batches, mesh)
  fields = {'plain': {}} | {a: dict(attention=a) for a in attentions}
  for name in implementations:
    options = dict(implementation=name)
    fields[f'aw:{name}'] = dict(aw_conv=True, aw_options=options)
  timed = list(fields)
  first = next((r for r in REFERENCES if r in fields), REFERENCES[-1])
  if implementations and first not in fields:
    options = dict(implementation=first.removeprefix('aw:'))
    fields[first] = dict(aw_conv=True, aw_options=options)
  reference = {f'aw:{n}': first for n in implementations if f'aw:{n}' != first}

  def program(options, pair):
    network = models.create(model, num_classes=1000, dtype=dtype, **options)
    if hasattr(network, 'zero_init_residual'):
      # A block that starts as the identity has no gradients inside, and a
      # device may be faster with zeros.
      network = network.clone(zero_init_residual=False)
    state, step = create_step(network, mesh, (side, side, 3), seed)
    return timing.compile_jax(step, [(state, batch) for batch in pair], fetch)

  # The mesh is in force while functions are traced, as in the train loop.
  for batch in batches:
    pair = [_batch(mesh, batch, side, (seed, i)) for i in range(2)]
    with jax.set_mesh(mesh):
      measured = timing.measure(
          {n: functools.partial(program, o, pair) for n, o in fields.items()},
          reference=reference,
          tolerance=TOLERANCES[dtype],
          seconds=seconds,
          untimed=fields.keys() - timed,
      )
    for variant, found in measured.items():
      yield Row(
          *(model, variant, batch, side, mesh.size),
          images_per_second=1e3 * batch / found.milliseconds,
          all_gathers=count_exchanges(found.program.text, 'all-gather'),
          all_reduces=count_exchanges(found.program.text, 'all-reduce'),
          **found.columns(measured['plain']),
      )


def check_batches(batches: Sequence[int], mesh: Mesh) -> None:
  """Raises InputError for a batch that the devices cannot share evenly."""
  for batch in batches:
    if batch % mesh.size:
      raise errors.InputError(
          f'--batches: the {mesh.size} devices cannot share {batch} images '
          'evenly'
      )


def _batch(mesh, batch, side, seed):
  """Returns random images and labels, over the mesh."""
  rng = np.random.default_rng(seed)
  images = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
  labels = rng.integers(1000, size=batch, dtype=np.int32)
  return partition.shard_batch(mesh, {'image': images, 'label': labels})


def fetch(result: tuple[Any, Any]) -> dict[str, Any]:
  """Returns the loss of a step's result, and the norm of every gradient.

  The momentum holds the sum of the gradients, which are the first.
  """
  (_, momentum), loss = result
  # On the devices it would be many small programs that wait for each other.
  leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(momentum)]
  return {
      'loss': np.asarray(loss),
      'grads': np.array([np.linalg.norm(leaf) for leaf in leaves]),
  }


def count_exchanges(text: str, kind: str) -> int:
  """Returns how many exchanges such as 'all-gather' a program has."""
  # One that is split into a start and an end counts once.
  return len(re.findall(rf'\s{re.escape(kind)}(?:-start)?\(', text))
