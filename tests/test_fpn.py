"""The feature pyramid against loops, and images in their padding."""

import jax
import jax.numpy as jnp
from naive_detection import conv
import numpy as np
import pytest
import random_values

from awconv_jax.models.detection import fpn

SHAPES = {'c2': (9, 14, 3), 'c3': (5, 7, 4), 'c4': (3, 4, 5)}
MODEL = fpn.FPN(features=6)
NONE = [None] * 3

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def draw(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {
      name: rng.normal(size=(2, *shape)).astype(np.float32)
      for name, shape in shapes.items()
  }


@pytest.fixture(scope='module')
def variables():
  init = jax.eval_shape(MODEL.init, jax.random.key(0), draw(SHAPES), NONE)
  return random_values.like(init)


def naive_pyramid(stages, params):
  """The equations of the file, from the coarsest level up."""
  levels, above = {}, None
  for stage in (4, 3, 2):
    x = conv(params[f'lateral{stage}'], stages[f'c{stage}'])
    if above is not None:
      for i, j in np.ndindex(x.shape[1:3]):
        x[:, i, j] += above[:, i // 2, j // 2]
    above = x
    levels[f'p{stage}'] = conv(params[f'output{stage}'], x)
  levels['p5'] = levels['p4'][:, ::2, ::2]
  return levels


def test_levels_are_those_of_the_loops_for_odd_sizes_too(variables):
  stages = draw(SHAPES)
  got = jax.jit(MODEL.apply)(variables, stages, NONE)
  assert list(got) == ['p2', 'p3', 'p4', 'p5']
  assert got['p5'].shape == (2, 2, 2, 6)
  for name, level in naive_pyramid(stages, variables['params']).items():
    np.testing.assert_allclose(got[name], level, atol=1e-4)


def test_a_padded_image_has_the_levels_it_has_alone(variables):
  alone = draw({'c2': (6, 9, 3), 'c3': (3, 5, 4), 'c4': (2, 3, 5)})
  # Whatever the padding holds; the second image fills its canvas.
  padded = draw(SHAPES, seed=2)
  for name, x in alone.items():
    padded[name][0] = np.nan
    padded[name][0, : x.shape[1], : x.shape[2]] = x[0]
  sizes = [-(-jnp.array([[24, 36], [36, 56]]) // s) for s in (4, 8, 16)]
  want = MODEL.apply(variables, alone, NONE)
  got = MODEL.apply(variables, padded, sizes)
  full = MODEL.apply(variables, {n: x[1:] for n, x in padded.items()}, NONE)
  for name, level in want.items():
    _, height, width, _ = level.shape
    cut = got[name][0, :height, :width]
    np.testing.assert_allclose(cut, level[0], atol=1e-5)
    np.testing.assert_allclose(got[name][1], full[name][0], atol=1e-5)
