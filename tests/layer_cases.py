"""What the tests of layers share: random images, variables and directions."""

import jax
import naive
import numpy as np
from random_values import images

# Compiles several times faster than the default generator.
KEY = jax.random.key(0, impl='rbg')


def randomize(tree, seed=0, dtype=np.float32, scale=1):
  """Random values for all variables, so that none is at a special point."""
  rng = np.random.default_rng(seed)

  def value(path, leaf):
    values = rng.normal(size=leaf.shape)
    is_variance = path[-1].key == 'var'
    values = 0.5 + values**2 if is_variance else values * scale
    return values.astype(dtype)

  return jax.tree_util.tree_map_with_path(value, tree)


def random_variables(layer, x, seed=0, dtype=np.float32):
  return randomize(jax.eval_shape(layer.init, KEY, x), seed, dtype)


def close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def check_gradients(loss, tree, gradients, atol=1e-7):
  """Compares gradients with the differences of a loss by numpy, in float64.

  Args:
    loss: function of the tree.
    tree: arrays.
    gradients: of each of them, along one random direction each.
    atol: of gradients that are zero.
  """
  leaves, structure = jax.tree.flatten(tree)
  values = dict(enumerate(leaves))
  for i, gradient in enumerate(jax.tree.leaves(gradients)):
    directions = {k: np.zeros_like(v) for k, v in values.items()}
    directions[i] = images(*leaves[i].shape, seed=i, dtype=np.float64)
    np.testing.assert_allclose(
        np.sum(gradient * directions[i]),
        naive.directional(
            lambda values: loss(structure.unflatten(values.values())),
            values,
            directions,
        ),
        rtol=1e-5,
        atol=atol,
    )
