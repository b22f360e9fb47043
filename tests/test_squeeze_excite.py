"""Squeeze-and-excitation against numpy float64."""

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest

from awconv_jax.layers.squeeze_excite import SqueezeExcite

# Compiles several times faster than the default generator.
KEY = jax.random.key(0, impl='rbg')


def draw(layer, *shape, dtype=np.float32, seed=0):
  """Returns random images and parameters."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=shape).astype(dtype)
  shapes = jax.eval_shape(layer.init, KEY, x)['params']
  params = jax.tree.map(
      lambda a: rng.normal(size=a.shape).astype(dtype), shapes
  )
  return x, params


def test_layer_and_its_gradient_equal_numpy():
  with jax.enable_x64(True):
    layer = SqueezeExcite(reduction=2, param_dtype=jnp.float64)
    x, params = draw(layer, 2, 5, 3, 8, dtype=np.float64)
    weights = np.random.default_rng(1).normal(size=x.shape)

    def loss(x, params):
      out = layer.apply({'params': params}, x)
      return jnp.sum(out * weights), out

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    gradients, out = jax.tree.map(np.asarray, jax.jit(gradient)(x, params))
  np.testing.assert_allclose(out, naive.squeeze_excite(x, params), rtol=1e-12)

  leaves, structure = jax.tree.flatten((x, params))

  def naive_loss(values):
    moved = jax.tree.unflatten(structure, list(values.values()))
    return np.sum(naive.squeeze_excite(*moved) * weights)

  values = dict(enumerate(leaves))
  for i, own in enumerate(jax.tree.leaves(gradients)):
    directions = {k: np.zeros_like(v) for k, v in values.items()}
    directions[i] = np.random.default_rng(i).normal(size=leaves[i].shape)
    np.testing.assert_allclose(
        np.sum(own * directions[i]),
        naive.directional(naive_loss, values, directions),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    'channels, reduction, hidden', [(64, 16, 4), (8, 16, 1), (40, 16, 2)]
)
def test_parameters_have_biases_and_the_reduced_width(
    channels, reduction, hidden
):
  layer = SqueezeExcite(reduction=reduction)
  x = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
  shapes = jax.eval_shape(layer.init, KEY, x)['params']
  assert jax.tree.map(lambda a: a.shape, shapes) == {
      'reduce': {'kernel': (channels, hidden), 'bias': (hidden,)},
      'expand': {'kernel': (hidden, channels), 'bias': (channels,)},
  }


def test_padding_is_left_out_of_the_gate():
  layer = SqueezeExcite(reduction=2)
  x, params = draw(layer, 2, 5, 6, 4)
  sizes = np.array([(5, 2), (3, 6)])
  apply = jax.jit(layer.apply)
  out = apply({'params': params}, x, valid_size=sizes)
  for n, (h, w) in enumerate(sizes):
    crop = x[n : n + 1, :h, :w]
    np.testing.assert_allclose(
        out[n : n + 1, :h, :w], naive.squeeze_excite(crop, params), rtol=1e-4
    )
  assert not np.allclose(out, apply({'params': params}, x))


def test_bfloat16_computes_narrow_with_wide_parameters():
  layer = SqueezeExcite(reduction=2, dtype=jnp.bfloat16)
  x, _ = draw(layer, 2, 5, 3, 8)
  narrow = jnp.asarray(x, jnp.bfloat16)
  variables = jax.jit(layer.init)(KEY, narrow)
  for leaf in jax.tree.leaves(variables):
    assert leaf.dtype == jnp.float32
  out = jax.jit(layer.apply)(variables, narrow)
  assert out.dtype == jnp.bfloat16
  expected = naive.squeeze_excite(
      x, jax.tree.map(np.float64, variables['params'])
  )
  np.testing.assert_allclose(np.float32(out), expected, rtol=3e-2, atol=1e-2)
