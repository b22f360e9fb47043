"""Random images and variables, and how arrays are compared."""

import jax
import numpy as np

from awconv_jax import models

# Compiles several times faster than the default generator.
KEY = jax.random.key(0, impl='rbg')


def images(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def like(shapes, seed=0):
  """Returns random arrays of a tree of shapes, which keep signals in range."""
  rng = np.random.default_rng(seed)

  def value(path, leaf):
    values = rng.normal(size=leaf.shape)
    if path[-1].key in ('scale', 'var'):
      values = 1 + 0.2 * np.tanh(values)
    elif path[-1].key == 'kernel':
      values /= np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(value, shapes)


def of_model(model, *side, seed=0):
  """Returns variables of a network; nothing is compiled."""
  return like(models.shapes_of(model, *side), seed)


def randomize(tree, seed=0, dtype=np.float32, scale=1):
  """Returns random values for all variables, none at a special point."""
  rng = np.random.default_rng(seed)

  def value(path, leaf):
    values = rng.normal(size=leaf.shape)
    is_variance = path[-1].key == 'var'
    values = 0.5 + values**2 if is_variance else values * scale
    return values.astype(dtype)

  return jax.tree_util.tree_map_with_path(value, tree)


def of_layer(layer, x, seed=0, dtype=np.float32):
  return randomize(jax.eval_shape(layer.init, KEY, x), seed, dtype)


def close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
