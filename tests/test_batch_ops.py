"""Mixup and CutMix by numpy and the laws of their numbers, and data shards."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from awconv_jax.ops import data_shards, mixing
from awconv_jax.train import partition

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

ON = dict(mixup=0.2, cutmix=1.0, probability=1.0, switch_probability=0.5)
MIXUP = ON | dict(cutmix=0.0)
CUTMIX = ON | dict(mixup=0.0)
SIZE = (6, 9)


def draw(number, *, size=SIZE, **options):
  """Returns mixes: weights [number, H, W, 1] and shares [number]."""
  keys = jax.random.split(jax.random.key(0), number)
  one = functools.partial(mixing.draw, size=size, **options)
  mix = jax.jit(jax.vmap(one))(keys)
  return mixing.Mix(*map(np.asarray, mix))


def batch(rows):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (rows, *SIZE, 3)).astype(np.uint8)
  return images, rng.dirichlet(np.ones(4), rows).astype(np.float32)


def box_of_the_authors(size, share, centre):
  """Returns top, bottom, left and right, as CutMix's own code computes them."""
  bounds = []
  for length, middle in zip(size, centre, strict=True):
    cut = int(length * np.sqrt(np.float32(1) - np.float32(share)))
    bounds += [max(middle - cut // 2, 0), min(middle + cut // 2, length)]
  return bounds


@pytest.mark.parametrize('options', [MIXUP, CUTMIX])
@pytest.mark.parametrize('rows', [4, 5])
def test_rows_are_mixed_with_the_rows_from_the_other_end(options, rows):
  images, targets = batch(rows)
  for mix in map(mixing.Mix, *draw(4, **options)):
    for function, x, weight in (
        (mixing.mix_images, images, mix.weights),
        (mixing.mix_targets, targets, mix.share),
    ):
      want = weight * x.astype(float) + (1 - weight) * x[::-1].astype(float)
      got = function(x, mix)
      assert got.dtype == jnp.float32
      atol = 4e-7 * x.max()
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=atol)


@pytest.mark.parametrize('size', [(32, 32), (7, 5)])
def test_the_box_is_that_of_the_authors(size):
  rng = np.random.default_rng(0)
  cut_box = jax.jit(mixing.cut_box, static_argnums=0)
  for share in [0.0, 1.0, *rng.random(60)]:
    centre = rng.integers(0, size)
    top, bottom, left, right = box_of_the_authors(size, share, centre)
    want = np.zeros(size)
    want[top:bottom, left:right] = 1
    got = cut_box(size, jnp.float32(share), jnp.array(centre))
    np.testing.assert_array_equal(got, want)


def test_the_share_is_the_mean_weight():
  weights, share = draw(50, **MIXUP)
  assert (weights == share[:, None, None, None]).all()
  weights, share = draw(300, **CUTMIX)
  assert set(np.unique(weights)) == {0.0, 1.0}
  outside = weights.sum((1, 2, 3))
  np.testing.assert_allclose(share, outside / np.prod(SIZE), rtol=1e-6)


@pytest.mark.parametrize('alpha', [0.1, 4.0])
def test_the_share_of_mixup_is_distributed_as_beta(alpha):
  share = draw(4000, size=(1, 1), **MIXUP | dict(mixup=alpha)).share
  points = np.linspace(0.001, 0.999, 200)  # Almost 1, float32 is coarse.
  got = (share[:, None] <= points).mean(0)
  want = stats.beta(alpha, alpha).cdf(points)
  np.testing.assert_allclose(got, want, atol=0.03)


def test_boxes_lie_anywhere():
  rng = np.random.default_rng(0)
  want = np.zeros(SIZE)
  for share in rng.beta(1.0, 1.0, 4000):
    bounds = box_of_the_authors(SIZE, share, rng.integers(0, SIZE))
    want[bounds[0] : bounds[1], bounds[2] : bounds[3]] += 1 / 4000
  weights, _ = draw(4000, **CUTMIX)
  np.testing.assert_allclose(1 - weights.mean((0, 3)), want, atol=0.035)


@pytest.mark.parametrize('chance', [0.0, 0.3, 1.0])
def test_how_often_a_batch_is_mixed_and_by_which(chance):
  # Of mixup with alpha 1 hardly a share is 0 or 1.
  weights, share = draw(4000, **MIXUP | dict(mixup=1.0, probability=chance))
  mixed = share < 1
  assert (weights[~mixed] == 1).all()
  assert mixed.mean() == pytest.approx(chance, abs=0.03)
  weights, _ = draw(4000, **ON | dict(mixup=1.0, switch_probability=chance))
  cut = ((weights == 0) | (weights == 1)).all((1, 2, 3))
  assert cut.mean() == pytest.approx(chance, abs=0.03)


def test_what_is_off_is_not_done():
  assert draw(200, **CUTMIX | dict(switch_probability=0.0)).share.min() < 0.5
  images, targets = batch(5)
  off = draw(9, **ON | dict(mixup=0.0, cutmix=0.0))
  assert (off.weights == 1).all() and (off.share == 1).all()
  mix = mixing.Mix(off.weights[0], off.share[0])
  np.testing.assert_array_equal(mixing.mix_images(images, mix), images)
  np.testing.assert_array_equal(mixing.mix_targets(targets, mix), targets)


def test_a_sharded_batch_is_mixed_as_on_one_device():
  images, targets = batch(16)

  def run(images, targets, rng):
    mix = mixing.draw(rng, SIZE, **ON)
    return mixing.mix_images(images, mix), mixing.mix_targets(targets, mix)

  mesh = partition.create_mesh()
  assert mesh.size == 8
  rows, whole = partition.over_batch(mesh), partition.replicated(mesh)
  sharded = jax.jit(run, in_shardings=(rows, rows, whole), out_shardings=rows)
  for seed in range(4):
    inputs = images, targets, jax.random.key(seed)
    for got, want in zip(sharded(*inputs), jax.jit(run)(*inputs), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-6)
  # Rows go to their place and nowhere else, and as small as they came.
  text = sharded.lower(*inputs).compile().as_text()
  moves = re.findall(r'= (\S+)\{\S* (?:all-|collective-)[a-z-]+\(', text)
  assert sorted(moves) == ['f32[2,4]', 'u8[2,6,9,3]']


def best(scores, rest):
  top, index = jax.lax.top_k(scores, 2)
  halvings, _ = jax.lax.while_loop(
      lambda s: s[1] > 1, lambda s: (s[0] + 1, s[1] / 2), (0, top[0])
  )
  return dict(index=index, halvings=halvings, rest=rest.get('offset', 0))


@pytest.mark.parametrize('count', [16, 3])
def test_a_mesh_does_not_change_what_comes_out_but_who_waits(count):
  scores = np.random.default_rng(0).uniform(1, 99, (count, 9)).astype('f')
  rest = dict(offset=np.arange(count), nothing=None)
  want = [best(s, dict(offset=n)) for n, s in enumerate(scores)]
  mesh = partition.create_mesh()
  assert mesh.size == 8
  texts = []
  for in_force in (False, True):
    run = jax.jit(lambda *batch: data_shards.per_image(best, *batch))
    with jax.set_mesh(mesh) if in_force else contextlib.nullcontext():
      got = run(scores, rest)
      if count == 16:
        rows = partition.over_batch(mesh)
        run = jax.jit(
            lambda s: data_shards.per_image(best, s, {}), in_shardings=rows
        )
        texts.append(run.lower(scores).compile().as_text())
    for name, values in got.items():
      np.testing.assert_array_equal(values, [w[name] for w in want])
  if texts:  # What the compiler does by itself, and what it is kept from.
    assert 'all-gather' in texts[0] and 'all-reduce' in texts[0]
    assert 'all-' not in texts[1]


def test_what_is_shared_is_whole_and_gradients_come_back():
  x, weights = np.random.default_rng(1).normal(size=(2, 16, 16)).astype('f')

  def total(x, weights):
    out = data_shards.over_data_shards(
        lambda x, y, weights: x * y @ weights, (x, x), (weights,)
    )
    return jnp.sum(out**2)

  gradient = jax.grad(total, (0, 1))
  want = gradient(x, weights)
  with jax.set_mesh(partition.create_mesh()):
    got = jax.jit(gradient)(x, weights)
  for own, wanted in zip(got, want, strict=True):
    np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-4)
