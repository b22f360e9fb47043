"""One step against written-out numpy: accumulation, averages, randomness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from watched_run import assert_same_bits

from awconv_jax.train import functions, partition, settings
from awconv_jax.train import step as train_step

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


class Linear:
  """Least squares, with running counts as its other variables."""

  def init(self, rng, batch):
    del rng, batch
    counts = {'n': jnp.zeros(()), 'whole': jnp.zeros((), jnp.int32)}
    return {'params': {'w': jnp.ones(3)}, 'batch_stats': counts}

  def loss(self, variables, batch, rng):
    w = variables['params']['w']
    error = batch['x'] @ w - batch['y']
    counts = jax.tree.map(lambda n: n + 1, variables['batch_stats'])
    updated = {'batch_stats': counts}
    return (error**2).mean(), ({'draw': jax.random.normal(rng)}, updated)


def batch(size=16, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(size, 3)).astype(np.float32)
  return {'x': x, 'y': x @ np.array([1.0, -2.0, 3.0], np.float32)}


def steps(number, ema_decay=0.0, accumulation_steps=1, **options):
  """Returns the state and metrics after some steps of plain SGD."""
  mesh = partition.create_mesh()
  common, shapes = (Linear(), optax.sgd(0.1)), jax.eval_shape(batch)
  state = train_step.create_state(
      *common, mesh, seed=0, batch_shapes=shapes, ema=ema_decay > 0
  )
  options |= dict(ema_decay=ema_decay, accumulation_steps=accumulation_steps)
  function = train_step.create_train_step(
      *common, lambda step: 0.1, mesh, **options
  )
  metrics = []
  for seed in range(number):
    rows = partition.shard_batch(mesh, batch(seed=seed))
    state, row = function(state, rows, 7)
    metrics.append(jax.device_get(row))
  return jax.device_get(state), metrics


def numpy_steps(number):
  w, history = np.ones(3), []
  for seed in range(number):
    b = {k: v.astype(np.float64) for k, v in batch(seed=seed).items()}
    gradient = 2 * b['x'].T @ (b['x'] @ w - b['y']) / len(b['y'])
    w = w - 0.1 * gradient
    history.append((w, np.linalg.norm(gradient)))
  return history


@pytest.mark.parametrize('parts', [1, 2])
def test_steps_and_norms_do_not_depend_on_the_parts_of_a_batch(parts):
  state, metrics = steps(4, accumulation_steps=parts)
  history = numpy_steps(4)
  np.testing.assert_allclose(state.params['w'], history[-1][0], rtol=1e-5)
  for row, (w, norm) in zip(metrics, history, strict=True):
    np.testing.assert_allclose(row['grad_norm'], norm, rtol=1e-4)
    np.testing.assert_allclose(row['param_norm'], np.linalg.norm(w), rtol=1e-5)
  assert state.step == 4 and state.ema is None
  assert state.eval_variables()['params'] is state.params
  # Statistics are updated by every part in turn.
  assert state.model_state['batch_stats']['n'] == 4 * parts


def test_no_gradient_reaches_what_is_frozen_and_its_statistics_stay():
  for patterns, count in (('w',), 2), (('*',), 0):
    state, metrics = steps(2, frozen=patterns)
    assert [row['grad_norm'] for row in metrics] == [0, 0]
    assert state.model_state['batch_stats']['n'] == count


@pytest.mark.usefixtures('quick_compiles')
def test_norms_with_frozen_statistics_normalise_by_these():
  """All norms of a network, so that it trains as it is evaluated."""
  config = tiny.get_config(attention='cbam')
  with config.unlocked():
    config.task.label_smoothing = 0.0
  task = settings.create_task(config)
  mesh = partition.create_mesh(jax.devices()[:1])
  rng = np.random.default_rng(0)
  rows = {
      'image': rng.integers(0, 256, (8, 16, 16, 1), np.uint8),
      'label': np.arange(8, dtype=np.int32),
      'mask': np.ones(8, bool),
  }
  optimizer = optax.sgd(0.1)
  shapes, ema = jax.eval_shape(lambda: rows), dict(ema_decay=0.3)
  drawn = functools.partial(
      jax.tree.map, lambda x: rng.uniform(0.1, 0.3, x.shape).astype(x.dtype)
  )
  create = functools.partial(
      train_step.create_state, task, optimizer, mesh, warm_start=drawn
  )
  state = create(seed=0, batch_shapes=shapes, ema=True)
  first = jax.device_get(state)
  one = dict(accumulation_steps=1, **ema)
  step = train_step.create_train_step(
      task, optimizer, lambda step: 0.1, mesh, frozen=('*norm*',), **one
  )
  wanted = task.predict(first.variables(), rows)['loss'].mean()
  state, metrics = step(state, rows, 7)
  np.testing.assert_allclose(metrics['loss'], wanted, rtol=1e-5)
  state = jax.device_get(step(state, rows, 7)[0])
  assert_same_bits(state.model_state, first.model_state)
  assert_same_bits(state.ema['batch_stats'], first.ema['batch_stats'])
  assert (state.params['head']['bias'] != first.params['head']['bias']).all()


def test_averages_of_parameters_and_statistics():
  state, _ = steps(5, ema_decay=0.3)
  w, n = np.ones(3), 0.0
  for i, (newest, _) in enumerate(numpy_steps(5)):
    decay = min(0.3, (1 + i) / (10 + i))  # 0.1, 0.18, 0.25, 0.3, 0.3.
    w, n = decay * w + (1 - decay) * newest, decay * n + (1 - decay) * (i + 1)
  np.testing.assert_allclose(state.ema['params']['w'], w, rtol=1e-5)
  np.testing.assert_allclose(state.ema['batch_stats']['n'], n, rtol=1e-5)
  assert state.ema['batch_stats']['whole'] == 5  # Of no float type.
  assert state.eval_variables() is state.ema


def test_randomness_differs_by_step_and_repeats_by_seed():
  draws = [row['draw'] for row in steps(3)[1]]
  assert len(set(map(float, draws))) == 3
  assert draws == [row['draw'] for row in steps(3)[1]]


def test_seeds_share_a_program():
  """Or each run of a study would compile its own."""
  config, mesh, programs = tiny.get_config(), partition.create_mesh(), set()
  config.task.mixup = 0.2  # Random in the step.
  task = settings.create_task(config)
  like = jax.ShapeDtypeStruct
  rows = {'image': like((8, 8, 8, 1), np.uint8), 'mask': like((8,), bool)}
  rows['label'] = like((8,), np.int32)
  for config.seed in (0, 2**32 - 1):
    run = functions.create(config, task, mesh, 8)
    create = functools.partial(run.create_state, batch_shapes=rows)
    state = jax.eval_shape(create)
    lowered = run.step_of(state).lower(state, rows, run.seed)
    programs.add(lowered.as_text())
  assert len(programs) == 1
