"""What is of single images, on the device that has them."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awconv_jax.ops import data_shards
from awconv_jax.train import partition

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


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
