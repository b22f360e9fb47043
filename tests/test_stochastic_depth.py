"""Stochastic depth in every family, https://arxiv.org/abs/1603.09382."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_values

from awconv_jax import models

RESNET = dict(width=8, stem='cifar', stage_sizes=(1, 2), num_classes=3)
RATES = (0, 0.3, 0.6)
# Each family, with the rates of its drops where the last one's is 0.6. The last
# block of each adds its input as it is.
FAMILIES = {
    'basic': (
        'resnet18',
        RESNET | dict(attention='se', attention_options=dict(reduction=4)),
        RATES,
    ),
    'bottleneck': ('resnet50', RESNET, RATES),
    'wide': (
        'wrn_16_4',
        dict(blocks=2, widen=1, width=8, num_classes=3),
        (0, 0.12, 0.24, 0.36, 0.48, 0.6),
    ),
    # Of its five blocks the first and the fourth have no shortcut.
    'depthwise': (
        'mobilenet_v2',
        dict(
            stages=((1, 16, 1, 1), (1, 16, 2, 1), (2, 16, 2, 2)),
            stem='cifar',
            dropout=0.0,
            num_classes=3,
        ),
        (0.15, 0.3, 0.6),
    ),
}
N = 256

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def create(family, **more):
  name, options, rates = FAMILIES[family]
  return models.create(name, **options | more), rates


@functools.cache
def variables_of(family):
  # No scale is 0, or there would be nothing to drop.
  return random_values.like(models.shapes_of(create(family)[0], 8))


def images(number=N):
  rng = np.random.default_rng(0)
  return rng.normal(size=(number, 8, 8, 3)).astype(np.float32)


@functools.cache
def drops(family, train=True):
  """Returns inputs and outputs of the drops, and of the last block."""
  model, _ = create(family, stochastic_depth=0.6)

  @jax.jit
  def run(variables, x, rng):
    seen, blocks = {}, []

    def record(call, args, kwargs, context):
      out = call(*args, **kwargs)
      path = context.module.path
      if path[-1:] == ('stochastic_depth',):
        seen[path[0]] = args[0], out
      elif len(path) == 1 and 'block' in path[0]:
        blocks.append((args[0], out))
      return out

    with nn.intercept_methods(record):
      model.apply(
          variables,
          x,
          train=train,
          mutable=['batch_stats'],
          rngs={'dropout': rng},
      )
    return seen, blocks[-1]

  seen = run(variables_of(family), images(), jax.random.key(1))
  return jax.tree.map(np.asarray, seen)


@pytest.mark.parametrize('family', FAMILIES)
def test_whole_samples_are_dropped_at_a_rate_that_grows_linearly(family):
  _, rates = create(family)
  seen, _ = drops(family)
  masks = []
  for block, rate in zip(sorted(seen), rates, strict=True):
    before, after = seen[block]
    assert (np.abs(before).max((1, 2, 3)) > 0).all(), block
    masks.append((after == 0).all((1, 2, 3)))
    want = np.where(masks[-1][:, None, None, None], 0, before / (1 - rate))
    np.testing.assert_allclose(after, want, rtol=1e-5, err_msg=block)
    # Four standard deviations.
    tolerance = 4 * np.sqrt(rate * (1 - rate) / N)
    assert abs(masks[-1].mean() - rate) <= tolerance, block
  # Each block draws for itself.
  assert len({mask.tobytes() for mask in masks}) == len(rates)


@pytest.mark.parametrize('family', FAMILIES)
def test_what_is_left_of_the_branch_is_added_last(family):
  seen, (x, out) = drops(family)
  _, after = seen[max(seen)]
  relu = family not in ('wide', 'depthwise')
  want = np.maximum(x + after, 0) if relu else x + after
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('family', ['basic', 'depthwise'])
def test_evaluation_drops_nothing(family):
  seen, _ = drops(family, train=False)
  assert len(seen) == len(FAMILIES[family][2])
  for before, after in seen.values():
    np.testing.assert_array_equal(before, after)


def drop_of(model, blocks, block):
  """Returns what drops the branch of a block, in training."""
  return list(model.parts(blocks, True))[block]['drop']()


def test_the_expected_value_is_that_of_evaluation():
  model, _ = create('basic', stochastic_depth=0.6)
  drop = drop_of(model, 3, 2)
  x = jnp.asarray(images(2))
  keys = jax.random.split(jax.random.key(0), 2000)
  drops = jax.vmap(lambda key: drop.apply({}, x, rngs={'dropout': key}))(keys)
  spread = np.sqrt(0.6 / 0.4 / 2000)
  np.testing.assert_allclose(
      drops.mean(0), x, atol=5 * spread * np.abs(x).max()
  )


def apply_text(model, rng):
  """Returns the program of a training step's forward pass."""
  x = images(2)
  rngs = {'dropout': jax.random.key(0)} if rng else {}

  def run(variables):
    return model.apply(
        variables, x, train=True, mutable=['batch_stats'], rngs=rngs
    )

  return jax.jit(run).lower(variables_of('basic')).as_text()


def test_a_rate_of_zero_changes_neither_program_nor_parameters():
  without, _ = create('basic')
  zero, _ = create('basic', stochastic_depth=0.0)
  half, _ = create('basic', stochastic_depth=0.5)
  # Without an rng: nothing random is in it.
  text = apply_text(zero, rng=False)
  assert text == apply_text(without, rng=False) == apply_text(zero, rng=True)
  assert text != apply_text(half, rng=True) and 'select' not in text
  shapes = [models.shapes_of(model, 8) for model in (without, zero, half)]
  assert shapes[0] == shapes[1] == shapes[2]


def test_a_dropped_sample_gives_the_branch_no_gradient():
  model, _ = create('wide', stochastic_depth=0.6)
  drop = drop_of(model, 6, 5)

  def loss(y, key):
    return (drop.apply({}, y, rngs={'dropout': key}) ** 3).sum()

  y, key = jnp.asarray(images(N)), jax.random.key(3)
  kept = np.abs(drop.apply({}, y, rngs={'dropout': key})).max((1, 2, 3)) > 0
  assert 0 < kept.sum() < N
  gradient = np.asarray(jax.grad(loss)(y, key))
  assert (gradient[~kept] == 0).all()
  want = 3 * np.square(y[kept], dtype=np.float64) / 0.4**3
  np.testing.assert_allclose(gradient[kept], want, rtol=1e-4, atol=1e-6)
  # Also of a branch that is not finite.
  broken = y.at[~kept].set(jnp.nan)
  assert (np.asarray(jax.grad(loss)(broken, key))[~kept] == 0).all()


def test_a_network_of_one_block_drops_nothing():
  model, _ = create('basic', stage_sizes=(1,), stochastic_depth=0.9)
  assert drop_of(model, 1, 0).rate == 0
