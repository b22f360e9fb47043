"""Tests of optim: every number against float64 numpy written out here."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awconv_jax.errors import InputError
from awconv_jax.train import optim

ADAM = {'b1': 0.9, 'b2': 0.99, 'eps': 1e-6}
COSINE = dict(schedule='cosine')
STEPS = dict(boundaries_epochs=(2, 3.5, 99), factor=0.1)
ABOVE_0 = dict(warmup_start_fraction=0.1)


def create(batch_size=4, **changes):
  """Returns an optimizer and its schedule for 20 steps, 4 per epoch."""
  options = dict(learning_rate=0.5, base_batch_size=4, schedule='constant')
  lengths = dict(batch_size=batch_size, total_steps=20, steps_per_epoch=4)
  return optim.create(**(options | changes), **lengths)


def run(tx, params, grads):
  params = jax.tree.map(jnp.float32, params)
  state, update = tx.init(params), jax.jit(tx.update)
  for grad in grads:
    updates, state = update(jax.tree.map(jnp.float32, grad), state, params)
    params = optax.apply_updates(params, updates)
  return params


def cosine(warmup, final):
  progress = np.arange(21 - warmup) / (20 - warmup)
  falling = final + (1 - final) * (1 + np.cos(np.pi * progress)) / 2
  return [*(np.arange(warmup) / (2 * max(warmup, 1))), *(falling / 2)]


RISING = [0.05, 0.05 + 0.45 / 3, 0.05 + 0.9 / 3] + [0.5] * 18


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


def optimized(name, params, grads, rates, clip, decays, options):
  """Returns parameters after steps of an optimizer, and how often it clips.

  Each layer has a trust ratio of LAMB to itself; it is 1 where the weights or
  their step are 0, which the weights would never leave otherwise.
  """
  params, clipped = dict(params), 0
  m, v = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
  for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
    norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
    clipped += norm > clip
    for key in params:
      g = grad[key] / max(norm / clip, 1)
      decay = 0.02 * params[key] * (key in decays)
      if name == 'sgd':
        m[key] = 0.9 * m[key] + g + decay
        step = g + decay + 0.9 * m[key] if options['nesterov'] else m[key]
      else:
        m[key] = 0.9 * m[key] + 0.1 * g
        v[key] = 0.99 * v[key] + 0.01 * g**2
        step = np.sqrt(v[key] / (1 - 0.99**t)) + 1e-6
        step = m[key] / (1 - 0.9**t) / step + decay
      if name == 'lamb' and key in decays:
        norms = np.linalg.norm(params[key]), np.linalg.norm(step)
        step = step * (norms[0] / norms[1] if all(norms) else 1)
      params[key] = params[key] - rate * step
  return params, clipped


@pytest.mark.parametrize('mask', ['kernels', 'all'])
@pytest.mark.parametrize(
    'name, options',
    [
        ('sgd', {'momentum': 0.9, 'nesterov': False}),
        ('sgd', {'momentum': 0.9, 'nesterov': True}),
        ('adamw', ADAM),
        ('lamb', ADAM),
    ],
)
def test_six_steps_of_each_optimizer(name, options, mask):
  rng = np.random.default_rng(1)
  shapes = dict(kernel=(3, 4), zero=(2, 2), still=(2, 2), bias=(4,), scale=())
  start = {k: rng.normal(size=s) + 1 for k, s in shapes.items()}
  start['zero'] = start['still'] = np.zeros((2, 2))
  sizes = dict(kernel=5.0, zero=0.1, still=0.0, bias=1.0, scale=1.0)
  grads = [
      {k: scale * sizes[k] * rng.normal(size=s) for k, s in shapes.items()}
      for scale in (1.0, 0.01, 2.0, 0.02, 0.5, 0.01)
  ]
  decays = shapes if mask == 'all' else ('kernel', 'zero', 'still')
  shared = dict(name=name, options=options, weight_decay=0.02, decay_mask=mask)
  for clip, clips in ((1.0, 3), (0.0, 0)):
    length = dict(warmup_epochs=0.75, **ABOVE_0, **COSINE)
    tx, schedule = create(**shared, clip_norm=clip, **length)
    rates = [float(schedule(t)) for t in range(6)]
    args = name, start, grads, rates, clip or np.inf, decays, options
    want, clipped = optimized(*args)
    assert clipped == clips and np.abs(want['zero']).min() > 0
    got = run(tx, start, grads)
    for key in shapes:
      np.testing.assert_allclose(got[key], want[key], 1e-5, 1e-6, err_msg=key)


def boundaries(*epochs, **warmup):
  options = {'boundaries_epochs': epochs}
  return dict(schedule='step', schedule_options=options, **warmup)


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'name': 'sdg'}, "optimizer 'sdg' .*'sgd'.*: adamw, lamb, sgd"),
        ({'schedule': 'cos'}, "schedule 'cos'.*: constant, cosine, step"),
        ({'decay_mask': 'kernel'}, "decay mask 'kernel'.*: all, kernels"),
        ({'warmup_epochs': 6.0}, '24 steps .* is longer than the run of 20'),
        (dict(warmup_steps=2, warmup_epochs=1.0), 'epochs=1.0: set one to 0'),
        (boundaries(3.0, 2.0), r'boundaries_epochs=\[3.0, 2.0\] must rise'),
        (boundaries(1.0, 3.0, warmup_epochs=2.0), 'the warm-up of 2 epochs'),
        ({'frozen': ('head/*', 'body/*')}, r"frozen: 'body/\*' .* back, head"),
    ],
)
def test_what_cannot_be_used_is_one_line(changes, words):
  with pytest.raises(InputError, match=words) as error:
    create(**changes)[0].init({'head': {'kernel': 0}, 'back': 0})
  assert '\n' not in str(error.value)


def test_frozen_parameters_never_move_whatever_else_pulls_at_them():
  stays = 'back/stem_conv/kernel', 'back/stage1_block1/conv/kernel', 'head/bias'
  moves = 'back/stage2_block1/conv/kernel', 'head/kernel'
  flat = {name: jnp.ones((2, 2)) for name in stays + moves}
  tree = flax.traverse_util.unflatten_dict(flat, sep='/')
  patterns = ('back/stem_*', 'back/stage1_*', 'head/bias')
  pulls = dict(weight_decay=0.1, clip_norm=1.0, decay_mask='all')
  tx, _ = create(name='lamb', **pulls, frozen=patterns)
  params = run(tx, tree, [jax.tree.map(lambda p: 0.3 * p, tree)] * 3)
  params = flax.traverse_util.flatten_dict(params, sep='/')
  moved = {name for name in flat if (params[name] != flat[name]).any()}
  assert moved == set(moves)
