"""Whole networks: a training step with and without AW-convolutions."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from awconv_jax import models, options
from awconv_jax.compilers import exchanges
from awconv_jax.layers.attention import ATTENTION
from awconv_jax.ops.aw_conv import IMPLEMENTATIONS
from awconv_jax.train import partition
from benchmarks import timing

TOLERANCES = {'float32': 1e-2, 'bfloat16': 1e-1}  # Rounding, relative.


def create_model(name: str, variant: str, dtype: str) -> nn.Module:
  """Returns a network of 1000 classes.

  The variant is 'plain', an attention of activations, or 'aw:' and the
  implementation of its AW-convolutions.
  """
  fields = {} if variant == 'plain' else dict(attention=variant)
  if form := variant.partition('aw:')[2]:
    fields = dict(aw_conv=True, aw_options=dict(implementation=form))
  network = models.create(name, num_classes=1000, dtype=dtype, **fields)
  if hasattr(network, 'zero_init_residual'):
    # The identity has no gradients inside; zeros may be faster.
    network = network.clone(zero_init_residual=False)
  return network


def create_step(
    model: nn.Module, mesh: Mesh, image_shape: Sequence[int], seed: int
) -> tuple[Any, Any]:
  """Returns what makes a state, and `(state, batch) -> (state, loss)`.

  Both are compiled when called. The step is one of SGD and the cross-entropy;
  the batch, of images [height, width, channels], lies over the devices, and
  the state on all of them.
  """
  optimizer = optax.sgd(0.1, 0.9)

  def init():
    images = jnp.zeros((1, *image_shape))
    variables = model.init(jax.random.key(seed), images, train=False)
    return variables, optimizer.init(variables['params'])

  def loss(params, others, batch):
    apply = partial(model.apply, mutable=['batch_stats'])
    variables = {**others, 'params': params}
    logits, updated = apply(variables, batch['image'], train=True)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return cross_entropy(logits, batch['label']).mean(), updated

  gradient = jax.value_and_grad(loss, has_aux=True)

  def step(state, batch):
    variables, momentum = state
    params = variables['params']
    (value, updated), grads = gradient(params, variables, batch)
    updates, momentum = optimizer.update(grads, momentum)
    params = optax.apply_updates(params, updates)
    return ({**updated, 'params': params}, momentum), value

  whole, rows = partition.replicated(mesh), partition.over_batch(mesh)
  step = jax.jit(step, in_shardings=(whole, rows), out_shardings=whole)
  return jax.jit(init, out_shardings=whole), step


def run(
    *,
    model: Annotated[str, options.OneOf(models.MODELS)] = 'resnet50',
    implementations: Sequence[
        Annotated[str, options.OneOf(IMPLEMENTATIONS)]
    ] = ('auto',),
    attentions: Sequence[Annotated[str, options.OneOf(ATTENTION)]] = (),
    batches: Sequence[options.PositiveInt] = (8,),
    side: options.Side = models.IMAGENET_SIDE,
    dtype: Annotated[str, options.OneOf(TOLERANCES)] = 'float32',
    seconds: options.NonNegativeFloat = 5.0,
    seed: options.Seed = 0,
) -> Iterator[dict[str, Any]]:
  """Measures, and yields rows as they come.

  Args:
    model: name of the network, such as 'resnet50'.
    implementations: of the AW-convolutions. They are compared with 'vmap' or
      'map', which takes one step more if neither is here.
    attentions: of activations, to measure without AW.
    batches: batch sizes; each is shared by all devices.
    side: height and width of the images.
    dtype, seed: of the computation, and of parameters and images.
    seconds: time for each measurement.

  Yields:
    The 'variant' is 'plain', the attention of activations, or 'aw:' and the
    implementation. Of the columns of `timing.Program` 'ratio' is to 'plain',
    and 'error' that of the loss or of the norms of gradients, the largest. An
    exchange between devices inside of a loop of the program counts once.
  """
  mesh = partition.create_mesh()
  for batch in batches:
    partition.check_batch_size('--batches', batch, mesh)
  aws = [f'aw:{name}' for name in implementations]
  first = 'aw:vmap' if 'aw:vmap' in aws else 'aw:map'  # Of the least memory.
  timed = ['plain', *attentions, *aws]
  variants = dict.fromkeys(timed + [first] * bool(aws))

  def program(variant, pair):
    network = create_model(model, variant, dtype)
    init, step = create_step(network, mesh, (side, side, 3), seed)
    state = init()
    return timing.compile_jax(step, [(state, batch) for batch in pair], fetch)

  for batch in batches:
    pair = []
    for i in range(2):
      rng = np.random.default_rng((seed, i))
      images = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
      labels = rng.integers(1000, size=batch, dtype=np.int32)
      rows = dict(image=images, label=labels)
      pair.append(partition.shard_batch(mesh, rows))
    with jax.set_mesh(mesh):
      measured = timing.measure(
          {name: partial(program, name, pair) for name in variants},
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
          all_gathers=exchanges.count(found.text, 'all-gather'),
          all_reduces=exchanges.count(found.text, 'all-reduce'),
      )


def fetch(result: tuple[Any, Any]) -> dict[str, Any]:
  """Returns the loss of the first step, and the norm of every gradient."""
  (_, momentum), loss = result  # The momentum holds the gradients.
  # On the devices it would be many small programs that wait for each other.
  leaves = (np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(momentum))
  return dict(
      loss=np.asarray(loss), grads=np.array([*map(np.linalg.norm, leaves)])
  )
