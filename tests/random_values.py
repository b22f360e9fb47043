"""Variables as if a network had been trained, without compiling an init."""

import jax
import numpy as np


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
