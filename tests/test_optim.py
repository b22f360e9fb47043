"""Tests of optim: every number against float64 numpy written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awconv_jax.errors import InputError
from awconv_jax.train import optim

ADAM = {'b1': 0.9, 'b2': 0.99, 'eps': 1e-6}
RNG = np.random.default_rng(0)
SHAPES = {'kernel': (3, 4), 'bias': (4,), 'scale': ()}
PARAMS = {k: RNG.normal(size=s) + 1 for k, s in SHAPES.items()}
GRADS = [{k: RNG.normal(size=s) for k, s in SHAPES.items()} for _ in range(3)]


OPTIONS = dict(
    options={'momentum': 0.9, 'nesterov': False},
    learning_rate=0.5,
    base_batch_size=4,
    schedule='constant',
)


def create(batch_size=4, **changes):
  return optim.create(
      **(OPTIONS | changes),
      batch_size=batch_size,
      total_steps=20,
      steps_per_epoch=4,
  )


def run(tx, grads=GRADS):
  params = jax.tree.map(jnp.float32, PARAMS)
  state = tx.init(params)
  update = jax.jit(tx.update)
  for grad in grads:
    updates, state = update(jax.tree.map(jnp.float32, grad), state, params)
    params = optax.apply_updates(params, updates)
  return params


def assert_close(got, want):
  assert got.keys() == want.keys()
  for key in want:
    np.testing.assert_allclose(got[key], want[key], rtol=1e-5, err_msg=key)


def rates(schedule, steps=20):
  one_by_one = [float(schedule(step)) for step in range(steps + 1)]
  traced = jax.jit(schedule)(jnp.arange(steps + 1))
  np.testing.assert_allclose(
      np.broadcast_to(traced, steps + 1), one_by_one, rtol=1e-6, atol=1e-7
  )
  return one_by_one


def decays(key, mask):
  return mask == 'all' or key == 'kernel'


# --- schedules: 20 steps, 4 per epoch ----------------------------------------


def test_constant_with_warmup_at_every_step():
  _, schedule = create(warmup_epochs=0.75, warmup_start_fraction=0.1)
  want = [0.05, 0.05 + 0.45 / 3, 0.05 + 0.9 / 3] + [0.5] * 18
  np.testing.assert_allclose(rates(schedule), want, rtol=1e-6)


def test_a_warmup_may_be_given_in_steps():
  _, schedule = create(warmup_steps=3, warmup_start_fraction=0.1)
  want = [0.05, 0.05 + 0.45 / 3, 0.05 + 0.9 / 3] + [0.5] * 18
  np.testing.assert_allclose(rates(schedule), want, rtol=1e-6)


def test_step_at_every_step():
  _, schedule = create(
      schedule='step',
      schedule_options={'boundaries_epochs': (2, 3.5, 99), 'factor': 0.1},
      warmup_epochs=1,
  )
  want = [0, 0.125, 0.25, 0.375] + [0.5] * 4 + [0.05] * 6 + [0.005] * 7
  np.testing.assert_allclose(rates(schedule), want, rtol=1e-6)


@pytest.mark.parametrize('final', [0.0, 0.25])
@pytest.mark.parametrize('warmup', [0, 1])
def test_cosine_at_every_step(warmup, final):
  _, schedule = create(
      schedule='cosine',
      schedule_options={'final_fraction': final},
      warmup_epochs=warmup,
  )
  want = []
  for step in range(21):
    if step < 4 * warmup:
      want.append(0.5 * step / 4)
      continue
    progress = (step - 4 * warmup) / (20 - 4 * warmup)
    cosine = (1 + np.cos(np.pi * progress)) / 2
    want.append(0.5 * (final + (1 - final) * cosine))
  got = rates(schedule)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(got[-1], 0.5 * final, atol=1e-7)


def test_warmup_as_long_as_the_training():
  _, schedule = create(
      schedule='cosine',
      schedule_options={'final_fraction': 0.0},
      warmup_epochs=5,
  )
  np.testing.assert_allclose(rates(schedule), np.arange(21) / 40, rtol=1e-6)


def test_rate_grows_with_the_batch():
  _, schedule = create(batch_size=32)
  assert schedule(0) == 4.0


def test_the_optimizer_follows_the_schedule():
  tx, _ = create(
      schedule='step',
      schedule_options={'boundaries_epochs': (0.25, 0.5), 'factor': 0.5},
      options={'momentum': 0.0, 'nesterov': False},
  )
  want = {
      k: PARAMS[k] - 0.5 * (GRADS[0][k] + GRADS[1][k] / 2 + GRADS[2][k] / 4)
      for k in PARAMS
  }
  assert_close(run(tx), want)


# --- optimizers: three steps at rate 0.5 -------------------------------------


@pytest.mark.parametrize('mask', ['kernels', 'all'])
@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd(nesterov, mask):
  tx, _ = create(
      options={'momentum': 0.9, 'nesterov': nesterov},
      weight_decay=0.1,
      decay_mask=mask,
  )
  want = dict(PARAMS)
  for key in want:
    trace = 0.0
    for grad in GRADS:
      grad = grad[key] + 0.1 * decays(key, mask) * want[key]
      trace = 0.9 * trace + grad
      direction = grad + 0.9 * trace if nesterov else trace
      want[key] = want[key] - 0.5 * direction
  assert_close(run(tx), want)


@pytest.mark.parametrize('mask', ['kernels', 'all'])
@pytest.mark.parametrize('name', ['adamw', 'lamb'])
def test_adamw_and_lamb(name, mask):
  tx, _ = create(name=name, options=ADAM, weight_decay=0.1, decay_mask=mask)
  want = dict(PARAMS)
  for key in want:
    m = v = 0.0
    for t, grad in enumerate(GRADS, start=1):
      m = 0.9 * m + 0.1 * grad[key]
      v = 0.99 * v + 0.01 * grad[key] ** 2
      step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-6)
      if decays(key, mask):
        step = step + 0.1 * want[key]
        if name == 'lamb':
          ratio = np.linalg.norm(want[key]) / np.linalg.norm(step)
          step = step * ratio
      want[key] = want[key] - 0.5 * step
  assert_close(run(tx), want)


def test_lamb_as_it_is_used():
  """Six steps with clipping, warm-up and cosine, and kernels that start at 0.

  Each layer has its own trust ratio; it is 1 where the weights or their step
  are 0, which the weights would never leave otherwise.
  """
  rng = np.random.default_rng(1)
  shapes = {'kernel': (3, 4), 'zero': (2, 2), 'still': (2, 2), 'bias': (4,)}
  start = {k: rng.normal(size=s) for k, s in shapes.items()}
  start['zero'] = start['still'] = np.zeros((2, 2))
  sizes = {'kernel': 5.0, 'zero': 0.1, 'still': 0.0, 'bias': 1.0}
  grads = [
      {k: scale * sizes[k] * rng.normal(size=s) for k, s in shapes.items()}
      for scale in (1.0, 0.01, 2.0, 0.02, 0.5, 0.01)
  ]
  tx, schedule = create(
      name='lamb',
      options=ADAM,
      weight_decay=0.02,
      clip_norm=1.0,
      schedule='cosine',
      schedule_options={'final_fraction': 0.0},
      warmup_epochs=0.75,
      warmup_start_fraction=0.1,
  )
  got = jax.tree.map(jnp.float32, start)
  state, update = tx.init(got), jax.jit(tx.update)
  want, m, v = dict(start), dict.fromkeys(shapes, 0.0), dict.fromkeys(shapes, 0)
  clipped = 0
  for t, grad in enumerate(grads, start=1):
    updates, state = update(jax.tree.map(jnp.float32, grad), state, got)
    got = optax.apply_updates(got, updates)
    norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
    clipped += norm > 1
    for key in want:
      g = grad[key] / max(norm, 1)
      m[key] = 0.9 * m[key] + 0.1 * g
      v[key] = 0.99 * v[key] + 0.01 * g**2
      step = m[key] / (1 - 0.9**t)
      step = step / (np.sqrt(v[key] / (1 - 0.99**t)) + 1e-6)
      if key != 'bias':
        step = step + 0.02 * want[key]
        norms = np.linalg.norm(want[key]), np.linalg.norm(step)
        step = step * (norms[0] / norms[1] if all(norms) else 1)
      want[key] = want[key] - float(schedule(t - 1)) * step
  assert clipped == 3
  assert np.abs(want['zero']).min() > 0
  assert_close(got, want)


def test_clipping_is_by_the_global_norm_and_ahead_of_the_decay():
  norm = np.sqrt(sum((g**2).sum() for g in GRADS[0].values()))
  for clip, scale in ((norm / 2, 0.5), (norm * 2, 1.0)):
    tx, _ = create(clip_norm=float(clip), weight_decay=0.1, decay_mask='all')
    want = {
        k: PARAMS[k] - 0.5 * (scale * GRADS[0][k] + 0.1 * PARAMS[k])
        for k in PARAMS
    }
    assert_close(run(tx, GRADS[:1]), want)


def test_masks():
  params = {
      'a': jnp.zeros((2, 2)),
      'b': {'c': jnp.zeros(2), 'd': jnp.zeros(())},
  }
  kernels = {'a': True, 'b': {'c': False, 'd': False}}
  assert optim.DECAY_MASKS['kernels'](params) == kernels
  assert jax.tree.all(optim.DECAY_MASKS['all'](params))


# --- moving average ----------------------------------------------------------


def test_ema():
  # In the dtype of the average, which is that of `ema`.
  ema = {'w': jnp.array([1.0, 2.0]), 'n': jnp.int32(3), 'm': jnp.array([True])}
  new = {
      'w': jnp.bfloat16([2.0, 4.0]),
      'n': jnp.int32(9),
      'm': jnp.array([False]),
  }
  got = jax.jit(optim.ema_update)(ema, new, 0.75)
  want = np.float32([1.25, 2.5])
  np.testing.assert_array_equal(got['w'], want, strict=True)
  assert got['n'] == 9 and got['n'].dtype == jnp.int32
  assert not got['m'][0] and got['m'].dtype == bool


# --- what cannot be used -----------------------------------------------------


def boundaries(*epochs):
  return dict(schedule='step', schedule_options={'boundaries_epochs': epochs})


@pytest.mark.parametrize(
    'changes, words',
    [
        (
            {'name': 'sdg'},
            "optimizer 'sdg' .*'sgd'.*: adamw, lamb, sgd",
        ),
        ({'schedule': 'cos'}, "schedule 'cos'.*: constant, cosine, step"),
        ({'decay_mask': 'kernel'}, "decay mask 'kernel'.*: all, kernels"),
        ({'warmup_epochs': 6.0}, 'warm-up of 24 steps .* 20 steps'),
        ({'warmup_steps': 21}, 'warm-up of 21 steps .* 20 steps'),
        (
            {'warmup_steps': 2, 'warmup_epochs': 1.0},
            'warmup_steps=2 and warmup_epochs=1.0 .*set one to 0',
        ),
        (boundaries(3.0, 3.0), r'boundaries_epochs=\(3.0, 3.0\) must rise'),
        (
            boundaries(1.0) | {'warmup_epochs': 2.0},
            r'boundaries_epochs=\(1.0,\) .*warm-up of 2 epochs',
        ),
    ],
)
def test_what_contradicts_itself_is_one_line(changes, words):
  with pytest.raises(InputError, match=words) as error:
    create(**changes)
  assert '\n' not in str(error.value)


TREE = {
    'backbone': {
        'stem_conv': {'kernel': jnp.ones((2, 2))},
        'stage1_block1': {'conv1': {'kernel': jnp.ones((2, 2))}},
        'stage2_block1': {'conv1': {'kernel': jnp.ones((2, 2))}},
    },
    'head': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)},
}


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'lamb'])
def test_frozen_parameters_never_move_whatever_else_pulls_at_them(name):
  patterns = ('backbone/stem_*', 'backbone/stage1_*', 'head/bias')
  shared = dict(name=name, options=None, weight_decay=0.1, clip_norm=1.0)
  tx, _ = create(**shared, decay_mask='all', frozen=patterns)
  grads = jax.tree.map(lambda p: 0.3 * p, TREE)
  params, state = TREE, tx.init(TREE)
  for _ in range(3):
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)

  moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, TREE)
  kept = optim.is_frozen(TREE, patterns)
  assert moved == jax.tree.map(lambda k: not k, kept)
  assert kept['head'] == {'kernel': False, 'bias': True}
  assert kept['backbone']['stage1_block1']['conv1']['kernel']
  assert not kept['backbone']['stage2_block1']['conv1']['kernel']


def test_a_pattern_of_no_parameter_is_named():
  with pytest.raises(InputError, match=r"frozen: 'body/\*' .* backbone, head"):
    optim.is_frozen(TREE, ('head/*', 'body/*'))
