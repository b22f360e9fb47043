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


def create(batch_size=4, **changes):
  options = dict(
      options={'momentum': 0.9, 'nesterov': False},
      learning_rate=0.5,
      base_batch_size=4,
      schedule='constant',
  )
  return optim.create(
      **(options | changes),
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


def decays(key, mask):
  return mask == 'all' or key == 'kernel'


# --- schedules: 20 steps, 4 per epoch ----------------------------------------


def cosine(warmup, final):
  progress = np.arange(21 - warmup) / (20 - warmup)
  falling = final + (1 - final) * (1 + np.cos(np.pi * progress)) / 2
  return [*(np.arange(warmup) / (2 * max(warmup, 1))), *(falling / 2)]


RISING = [0.05, 0.05 + 0.45 / 3, 0.05 + 0.9 / 3] + [0.5] * 18


COSINE = dict(schedule='cosine')
STEPS = dict(boundaries_epochs=(2, 3.5, 99), factor=0.1)
ABOVE_0 = dict(warmup_start_fraction=0.1)


@pytest.mark.parametrize(
    'options, want',
    [
        (dict(batch_size=32), [4.0] * 21),
        (dict(warmup_epochs=0.75, **ABOVE_0), RISING),
        (dict(warmup_steps=3, **ABOVE_0), RISING),
        (
            dict(schedule='step', schedule_options=STEPS, warmup_epochs=1),
            [0, 0.125, 0.25, 0.375] + [0.5] * 4 + [0.05] * 6 + [0.005] * 7,
        ),
        (COSINE, cosine(0, 0.0)),
        (
            COSINE
            | dict(schedule_options={'final_fraction': 0.25}, warmup_steps=4),
            cosine(4, 0.25),
        ),
        # The warm-up may be as long as the training.
        (COSINE | dict(warmup_epochs=5), np.arange(21) / 40),
    ],
)
def test_rates_at_every_step(options, want):
  _, schedule = create(**options)
  close = dict(rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose([schedule(i) for i in range(21)], want, **close)
  traced = jax.jit(schedule)(jnp.arange(21))
  np.testing.assert_allclose(np.broadcast_to(traced, 21), want, **close)


# --- optimizers: three steps at rate 0.5 -------------------------------------


@pytest.mark.parametrize('mask', ['kernels', 'all'])
@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd(nesterov, mask):
  tx, _ = create(
      options={'momentum': 0.9, 'nesterov': nesterov},
      weight_decay=0.1,
      decay_mask=mask,
      schedule='step',
      schedule_options={'boundaries_epochs': (0.25, 0.5), 'factor': 0.5},
  )
  want = dict(PARAMS)
  for key in want:
    trace = 0.0
    for t, grad in enumerate(GRADS):
      grad = grad[key] + 0.1 * decays(key, mask) * want[key]
      trace = 0.9 * trace + grad
      direction = grad + 0.9 * trace if nesterov else trace
      want[key] = want[key] - 0.5 ** (1 + t) * direction
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


# --- what cannot be used -----------------------------------------------------


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'name': 'sdg'}, "optimizer 'sdg' .*'sgd'.*: adamw, lamb, sgd"),
        ({'schedule': 'cos'}, "schedule 'cos'.*: constant, cosine, step"),
        ({'decay_mask': 'kernel'}, "decay mask 'kernel'.*: all, kernels"),
        (
            {'warmup_epochs': 6.0},
            r'warm-up of 24 steps .* is longer than the run of 20',
        ),
        (
            {'warmup_steps': 2, 'warmup_epochs': 1.0},
            'warmup_steps=2 and warmup_epochs=1.0: set one to 0',
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


@pytest.mark.parametrize('name', ['sgd', 'lamb'])
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
    create(frozen=('head/*', 'body/*'))[0].init(TREE)
