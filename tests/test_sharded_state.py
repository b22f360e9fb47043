"""Optimizer's state and averages over all devices: the same run, in less."""

import functools
import math
import re

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from watched_run import assert_same_bits

from awconv_jax import create_model
from awconv_jax.train import checkpoint, optim, partition
from awconv_jax.train import step as train_step

slow = pytest.mark.slow
pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


class Layers:
  """Least squares by two matrices, each longest along another axis."""

  def init(self, rng, batch):
    del batch
    shapes = {'up': (3, 16), 'bias': (16,), 'down': (16, 5, 1)}
    params = {k: jax.random.normal(rng, shape) for k, shape in shapes.items()}
    return {'params': params, 'batch_stats': {'mean': jnp.zeros(16)}}

  def loss(self, variables, batch, rng):
    del rng
    params = variables['params']
    hidden = jnp.tanh(batch['x'] @ params['up'] + params['bias'])
    error = hidden @ params['down'][..., 0] - batch['y']
    mean = 0.9 * variables['batch_stats']['mean'] + 0.1 * hidden.mean(0)
    return (error**2).mean(), ({}, {'batch_stats': {'mean': mean}})


def batch(seed):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(32, 3)).astype(np.float32)
  return {'x': x, 'y': np.sin(x @ np.ones((3, 5), np.float32))}


class Run:
  """Steps on all devices of a mesh, from a fresh state."""

  def __init__(self, mesh, shard, name):
    self.mesh, lengths = mesh, dict(total_steps=50, steps_per_epoch=10)
    optimizer, schedule = optim.create(
        name=name,
        learning_rate=0.05,
        base_batch_size=32,
        batch_size=32,
        weight_decay=1e-3,
        clip_norm=1.0,
        **lengths,
    )
    common = Layers(), optimizer
    shapes = jax.eval_shape(lambda: batch(0))
    self.state = train_step.create_state(
        *common, mesh, seed=3, batch_shapes=shapes, ema=True, shard=shard
    )
    self.step = train_step.create_train_step(
        *common,
        schedule,
        mesh,
        accumulation_steps=1,
        ema_decay=0.9,
        placed=train_step.sharded(mesh, self.state) if shard else None,
    )

  def losses(self, first, end):
    """Takes the steps from one to before another."""
    rows = []
    for seed in range(first, end):
      shards = partition.shard_batch(self.mesh, batch(seed))
      self.state, metrics = self.step(self.state, shards, 0)
      rows.append(jax.device_get(metrics)['loss'])
    return np.array(rows)


def bytes_of(tree):
  """Returns the bytes that every device holds."""
  held = dict.fromkeys(jax.devices(), 0)
  for leaf in jax.tree.leaves(tree):
    for shard in leaf.addressable_shards:
      held[shard.device] += shard.data.nbytes
  (number,) = set(held.values())
  return number


@pytest.mark.parametrize(
    'name, moments',
    [pytest.param('sgd', 1, marks=slow), ('lamb', 2)],
)
def test_the_same_losses_with_an_eighth_of_the_memory(name, moments):
  mesh = partition.create_mesh()
  whole, cut = (Run(mesh, shard, name) for shard in (False, True))
  rows = partition.shard_batch(mesh, batch(0))
  text = cut.step.lower(cut.state, rows, 0).compile().as_text()
  # Of the new parameters, each once; neither activations nor what is shared.
  gathers = re.findall(r'= (\S+) all-gather\(', text)
  assert sorted(g.partition('{')[0] for g in gathers) == [
      'f32[16,5,1]',
      'f32[3,16]',
  ]
  losses = whole.losses(0, 50)
  np.testing.assert_allclose(cut.losses(0, 50), losses, rtol=1e-6)
  assert losses[-1] < losses[0]
  matrices, vectors = 4 * (3 * 16 + 16 * 5), 4 * 16
  for part, arrays in ('opt_state', moments), ('ema', 1):
    before, now = (bytes_of(getattr(r.state, part)) for r in (whole, cut))
    assert before - now == arrays * matrices * 7 / 8
    assert now <= arrays * (matrices / 8 + vectors) + 64 + 8
  assert bytes_of(cut.state.params) == matrices + vectors


@pytest.mark.parametrize(
    'shard, devices',
    [(True, 1), pytest.param(False, 8, marks=slow)],
)
def test_checkpoints_are_of_any_sharding(tmp_path, shard, devices):
  """From 8 devices to 1, and, sharded there, from 1 to 8."""
  meshes = {
      n: jax.sharding.Mesh(np.array(jax.devices()[:n]), (partition.DATA_AXIS,))
      for n in (8, 1)
  }
  first = Run(meshes[8] if shard else meshes[1], shard, 'adamw')
  first.losses(0, 5)
  other = Run(meshes[devices], not shard, 'adamw')
  with checkpoint.Checkpointer(tmp_path / 'checkpoints', keep=2) as saved:
    saved.save(5, first.state, {})
    wanted = jax.device_get(first.state)
    _, other.state, _ = saved.restore_latest(other.state)
  assert_same_bits(jax.device_get(other.state), wanted)
  np.testing.assert_allclose(other.losses(5, 9), first.losses(5, 9), rtol=1e-5)


def mebibytes(tree, devices):
  mesh = jax.sharding.AbstractMesh((devices,), (partition.DATA_AXIS,))
  pairs = zip(
      jax.tree.leaves(tree),
      jax.tree.leaves(partition.sharded(mesh, tree)),
      strict=True,
  )
  held = (leaf.update(shape=s.shard_shape(leaf.shape)) for leaf, s in pairs)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in held) / 2**20


@slow
@pytest.mark.parametrize(
    'row, aw', [('ResNet-50', False), ('AW-ResNet-50', True)]
)
def test_the_table_of_the_memory_of_networks(row, aw):
  model = create_model('resnet50', num_classes=1000, aw_conv=aw)
  images = jnp.zeros((1, 224, 224, 3))
  variables = jax.eval_shape(
      functools.partial(model.init, train=False), jax.random.key(0), images
  )
  params, cells = variables['params'], []
  lengths = dict(total_steps=9, steps_per_epoch=3, batch_size=1)
  trees = [variables]
  for name in 'sgd', 'adamw', 'lamb':
    optimizer, _ = optim.create(
        name=name, learning_rate=1.0, base_batch_size=1, **lengths
    )
    trees.append(jax.eval_shape(optimizer.init, params))
  ema, sgd, adamw, lamb = (
      [mebibytes(t, n) for n in (1, 8, 256)] for t in trees
  )
  assert adamw == lamb
  cells = [mebibytes(params, 1), *sgd, *lamb, *ema]
  line = f'| {row} | {" | ".join(f"{cell:.1f}" for cell in cells)} |'
  assert line in (commands.ROOT / 'docs/pods.md').read_text().splitlines()
