"""Stochastic depth in every family, https://arxiv.org/abs/1603.09382."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from random_values import images, of_model

from awconv_jax import models

RESNET = dict(width=8, stem='cifar', stage_sizes=(1, 2), num_classes=3)
RATES = (0, 0.3, 0.6)
SE = dict(attention='se', attention_options=dict(reduction=4))
# Each family, with the rates of its drops where the last one's is 0.6. The last
# block of each adds its input as it is.
FAMILIES = {
    'basic': ('resnet18', RESNET | SE, RATES),
    'bottleneck': ('resnet50', RESNET, RATES),
    'wide': (
        'wrn_16_4',
        dict(blocks=2, widen=1, width=8, num_classes=3),
        (0, 0.12, 0.24, 0.36, 0.48, 0.6),
    ),
    # Of its five blocks the first and the fourth have no shortcut.
    'depthwise': (
        'mobilenet_v2',
        dict(stages=((1, 16, 1, 1), (1, 16, 2, 1), (2, 16, 2, 2)))
        | dict(stem='cifar', dropout=0.0, num_classes=3),
        (0.15, 0.3, 0.6),
    ),
}
N = 256

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def create(family, **more):
  name, options, rates = FAMILIES[family]
  return models.create(name, **options | more), rates


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

    options = dict(mutable=['batch_stats'], rngs={'dropout': rng})
    with nn.intercept_methods(record):
      model.apply(variables, x, train=train, **options)
    return seen, blocks[-1]

  # No scale is 0, or there would be nothing to drop.
  seen = run(of_model(model, 8), images(N, 8, 8, 3), jax.random.key(1))
  return jax.tree.map(np.asarray, seen)


@pytest.mark.parametrize('family', FAMILIES)
def test_whole_samples_are_dropped_at_a_rate_that_grows_linearly(family):
  _, rates = create(family)
  seen, (x, out) = drops(family)
  masks = []
  for block, rate in zip(sorted(seen), rates, strict=True):
    before, after = seen[block]
    assert (np.abs(before).max((1, 2, 3)) > 0).all(), block
    masks.append((after == 0).all((1, 2, 3)))
    want = np.where(masks[-1][:, None, None, None], 0, before / (1 - rate))
    np.testing.assert_allclose(after, want, rtol=1e-5, atol=3e-7, err_msg=block)
    # Four standard deviations.
    tolerance = 4 * np.sqrt(rate * (1 - rate) / N)
    assert abs(masks[-1].mean() - rate) <= tolerance, block
  # Each block draws for itself.
  assert len({mask.tobytes() for mask in masks}) == len(rates)
  # What is left of the branch is added last.
  want = x + after
  if family not in ('wide', 'depthwise'):
    want = np.maximum(want, 0)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('family', ['basic', 'depthwise'])
def test_evaluation_drops_nothing(family):
  seen, _ = drops(family, train=False)
  assert len(seen) == len(FAMILIES[family][2])
  for before, after in seen.values():
    np.testing.assert_array_equal(before, after)


def test_a_rate_of_zero_changes_neither_program_nor_parameters():
  without, _ = create('basic')
  zero, _ = create('basic', stochastic_depth=0.0)
  half, _ = create('basic', stochastic_depth=0.5)
  variables, x = of_model(without, 8), images(2, 8, 8, 3)

  def text(model, **rngs):
    fields = dict(train=True, mutable=['batch_stats'], rngs=rngs)
    run = jax.jit(functools.partial(model.apply, **fields))
    return run.lower(variables, x).as_text()

  key = jax.random.key(0)
  # Without an rng: nothing random is in it.
  assert text(zero) == text(without) == text(zero, dropout=key)
  assert text(zero) != text(half, dropout=key) and 'select' not in text(zero)
  shapes = [models.shapes_of(model, 8) for model in (without, zero, half)]
  assert shapes[0] == shapes[1] == shapes[2]


def test_a_network_of_one_block_drops_nothing():
  model, _ = create('basic', stage_sizes=(1,), stochastic_depth=0.9)
  (parts,) = model.parts(1, True)
  assert parts['drop']().rate == 0
