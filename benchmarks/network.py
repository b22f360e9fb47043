"""Whole networks: a training step with and without AW-convolutions."""

from collections.abc import Iterator, Sequence
import functools
import re
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from awconv_jax import models, options
from awconv_jax.layers.attention import ATTENTION
from awconv_jax.ops.aw_conv import IMPLEMENTATIONS
from awconv_jax.train import partition
from benchmarks import timing

FORMS = ('auto', *IMPLEMENTATIONS)
# What networks with AW are compared with: the first that is measured anyway, or
# else the last, which needs the least memory.
REFERENCES = ('aw:vmap', 'aw:map')
# Relative differences of loss and gradients' norms that are rounding.
TOLERANCES = {'float32': 1e-2, 'bfloat16': 1e-1}
# What is compared, and what is drawn of it; see `plot` of the command.
BAR, HEIGHT = 'variant', 'images_per_second'


def create_step(
    model: nn.Module, mesh: Mesh, image_shape: Sequence[int], seed: int
) -> tuple[Any, Any]:
  """Returns the first state, and the step `(state, batch) -> (state, loss)`.

  It is of SGD with momentum and the softmax cross-entropy, for images [height,
  width, channels], as the train loop compiles it: the state on all devices of
  the mesh in force, the batch over them.
  """
  optimizer = optax.sgd(0.1, 0.9)

  def init():
    images = jnp.zeros((1, *image_shape))
    variables = model.init(jax.random.key(seed), images, train=False)
    return variables, optimizer.init(variables['params'])

  def loss(params, others, batch):
    apply = functools.partial(model.apply, mutable=['batch_stats'])
    variables = {**others, 'params': params}
    logits, updated = apply(variables, batch['image'], train=True)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return cross_entropy(logits, batch['label']).mean(), updated

  def step(state, batch):
    variables, momentum = state
    params = variables['params']
    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, updated), grads = gradient(params, variables, batch)
    updates, momentum = optimizer.update(grads, momentum)
    params = optax.apply_updates(params, updates)
    return ({**updated, 'params': params}, momentum), value

  whole, rows = partition.replicated(mesh), partition.over_batch(mesh)
  step = jax.jit(step, in_shardings=(whole, rows), out_shardings=whole)
  return jax.jit(init, out_shardings=whole)(), step


def run(
    *,
    model: Annotated[str, options.OneOf(models.MODELS)] = 'resnet50',
    implementations: Sequence[Annotated[str, options.OneOf(FORMS)]] = ('auto',),
    attentions: Sequence[Annotated[str, options.OneOf(ATTENTION)]] = (),
    batches: Sequence[options.PositiveInt] = (8,),
    side: options.PositiveInt = models.IMAGENET_SIDE,
    dtype: Annotated[str, options.OneOf(TOLERANCES)] = 'float32',
    seconds: options.NonNegativeFloat = 5.0,
    seed: options.NonNegativeInt = 0,
) -> Iterator[dict[str, Any]]:
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

  Yields:
    What was measured: 'variant' is 'plain', the attention of activations, or
    'aw:' and the implementation. The columns of `timing.Program`, whose 'ratio'
    is to 'plain', and whose 'error' is that of the loss or of the norms of all
    gradients, the largest. And the exchanges between devices that the compiled
    program has, of which one inside of a loop counts once.

  Raises:
    InputError: the devices cannot share a batch evenly.
    ReportedError: the AW variants do not compute the same.
  """
  mesh = partition.create_mesh()
  for batch in batches:
    partition.check_batch_size('--batches', batch, mesh)
  aws = [f'aw:{name}' for name in implementations]
  first = next((r for r in REFERENCES if r in aws), REFERENCES[-1])
  timed = ['plain', *attentions, *aws]
  variants = dict.fromkeys(timed + [first] * bool(aws))

  def program(variant, pair):
    fields, form = {}, variant.partition('aw:')[2]
    if form:
      fields = dict(aw_conv=True, aw_options=dict(implementation=form))
    elif variant != 'plain':
      fields = dict(attention=variant)
    network = models.create(model, num_classes=1000, dtype=dtype, **fields)
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
          {name: functools.partial(program, name, pair) for name in variants},
          reference={name: first for name in aws if name != first},
          tolerance=TOLERANCES[dtype],
          seconds=seconds,
          untimed=variants.keys() - timed,
      )
    row = dict(model=model, batch=batch, side=side, devices=mesh.size)
    for variant, found in measured.items():
      yield row | dict(
          variant=variant,
          images_per_second=1e3 * batch / found.milliseconds,
          **found.columns(measured['plain']),
          all_gathers=count_exchanges(found.text, 'all-gather'),
          all_reduces=count_exchanges(found.text, 'all-reduce'),
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
  leaves = (np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(momentum))
  norms = np.array(list(map(np.linalg.norm, leaves)))
  return {'loss': np.asarray(loss), 'grads': norms}


def count_exchanges(text: str, kind: str) -> int:
  """Returns how many exchanges such as 'all-gather' a program has."""
  # One that is split into a start and an end counts once.
  return len(re.findall(rf'\s{re.escape(kind)}(?:-start)?\(', text))
