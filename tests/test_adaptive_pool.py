"""Adaptive average pooling against a naive loop, and valid areas."""

import functools

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
import random_values

from awconv_jax.ops import adaptive_pool
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.valid_area import mask_padding

images = functools.partial(random_values.images, dtype=np.float64)
GRIDS = [(1, 1), (3, 3), (1, 3), (5, 4), (7, 7)]


def check(x, valid_size=None, meant=None):
  """Compares every grid with the loop, compiled at once to save time."""
  pool = functools.partial(adaptive_average_pool, valid_size=valid_size)

  @jax.jit
  def both(x, cotangents):
    outs, pull = jax.vjp(lambda x: [pool(x, grid) for grid in GRIDS], x)
    return outs, [
        pull([g * (i == j) for j, g in enumerate(cotangents)])[0]
        for i in range(len(GRIDS))
    ]

  rng = np.random.default_rng(0)
  cotangents = [rng.normal(size=(len(x), *grid, x.shape[3])) for grid in GRIDS]
  with jax.enable_x64(True):
    outs, gradients = both(x, cotangents)
  for grid, out, g, gradient in zip(
      GRIDS, outs, cotangents, gradients, strict=True
  ):
    assert out.dtype == np.float64
    expected = naive.adaptive_pool(x, grid, meant)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    # It is linear, so the gradient is known by its products with images.
    other = rng.normal(size=x.shape)
    seen = naive.adaptive_pool(other, grid, meant)
    np.testing.assert_allclose(
        np.sum(np.asarray(gradient) * other, (1, 2)),
        np.sum(g * seen, (1, 2)),
        rtol=1e-9,
    )


@pytest.mark.parametrize('size', [(1, 1), (2, 5), (9, 2), (11, 13)])
def test_equals_the_loop_for_any_size_and_grid(size):
  check(images(2, *size, 2))


def test_the_form_for_tpu_equals_that_for_others():
  x = images(3, 5, 7, 128, dtype=np.float32)
  bins = [adaptive_pool._bins(np.array([n]), n, 3) for n in (5, 7)]
  forms = adaptive_pool._at_once, adaptive_pool._by_axes
  random_values.close(*(jax.jit(form)(x, *bins) for form in forms))


def test_equals_the_loop_for_every_valid_size():
  valid = np.array([(h, w) for h in range(1, 6) for w in range(1, 7)])
  check(images(len(valid), 5, 6, 2), valid, valid)


def test_gradient_reaches_valid_positions_only_and_by_their_share():
  @jax.jit
  @jax.grad
  def gradient(x):
    valid = jnp.array([[4, 3]])
    return jnp.sum(adaptive_average_pool(x, (2, 2), valid_size=valid))

  # Columns 0-1 and 1-2: the middle one lies in both bins.
  expected = np.zeros((1, 5, 6, 2))
  expected[0, :4, :3] = np.array([1, 2, 1])[:, None] / 4
  np.testing.assert_allclose(gradient(images(1, 5, 6, 2)), expected, rtol=1e-6)


@pytest.mark.parametrize('valid_size', [None, [[5, 4]]])
def test_the_gradient_of_bfloat16_is_rounded_once(valid_size):
  pool = functools.partial(
      adaptive_average_pool, grid=(3, 3), valid_size=valid_size
  )
  x = jnp.asarray(images(1, 5, 4, 2), jnp.bfloat16)
  pull = lambda x, g: jax.vjp(pool, x)[1](g)[0]  # noqa: E731
  g = jnp.asarray(images(1, 3, 3, 2), jnp.float32)
  exact = pull(x.astype(jnp.float32), g)
  np.testing.assert_array_equal(pull(x, g), exact.astype(jnp.bfloat16))


def test_bfloat16_is_summed_and_returned_in_float32():
  # 1025 values: a bfloat16 sum or count would stop growing at 256.
  x = jnp.ones((1, 25, 41, 1), jnp.bfloat16) * 1.5
  out = adaptive_average_pool(x, (1, 1))
  assert out.dtype == jnp.float32
  np.testing.assert_array_equal(out, 1.5)


@pytest.mark.parametrize(
    'given, meant',
    [
        ([[50, 50], [0, 3]], [(5, 5), (1, 3)]),
        (np.array([[200, 0], [3, 3]], np.uint8), [(5, 1), (3, 3)]),
    ],
)
def test_valid_size_is_clipped_to_the_image(given, meant):
  x = images(2, 5, 5, 2)
  check(x, given, meant)
  mask = np.zeros((2, 5, 5, 1), bool)
  for n, (h, w) in enumerate(meant):
    mask[n, :h, :w] = True
  with jax.enable_x64(True):
    masked = mask_padding(x, given)
  np.testing.assert_array_equal(masked, np.where(mask, x, 0))


@pytest.mark.parametrize('shape', [(1, 2), (2,), (2, 3)])
def test_valid_size_of_another_shape_is_refused(shape):
  for take_part in (mask_padding, adaptive_average_pool):
    grid = () if take_part is mask_padding else ((1, 1),)
    with pytest.raises(ValueError) as error:
      take_part(images(2, 5, 4, 2), *grid, valid_size=np.ones(shape, int))
    assert str(shape) in str(error.value) and '(2, 5, 4, 2)' in str(error.value)


@pytest.mark.parametrize('dtype, fill', [('float32', 0), ('bfloat16', -np.inf)])
def test_mask_replaces_whatever_is_in_the_padding(dtype, fill):
  x = images(2, 5, 4, 2)
  x[0, 3:] = np.nan
  x[1, :, 1:] = np.inf
  x = jnp.asarray(x, dtype)
  mask = jax.jit(functools.partial(mask_padding, fill=fill))
  out = mask(x, np.array([(3, 4), (5, 1)]))
  assert out.dtype == dtype
  expected = jnp.where(jnp.isfinite(x), x, fill)
  np.testing.assert_array_equal(np.float32(out), np.float32(expected))
  assert mask_padding(x, None) is x  # It costs nothing.


def test_export_with_a_symbolic_batch_size():
  pool = lambda x, size: adaptive_average_pool(x, (3, 3), valid_size=size)  # noqa: E731
  (n,) = jax.export.symbolic_shape('n')
  shapes = (n, 6, 5, 128), (n, 2)
  operands = map(jax.ShapeDtypeStruct, shapes, (jnp.float32, jnp.int32))
  exported = jax.export.export(jax.jit(pool), platforms=('cpu', 'tpu'))
  x, size = np.ones((2, 6, 5, 128), np.float32), np.full((2, 2), 4, np.int32)
  np.testing.assert_allclose(exported(*operands).call(x, size), 1, rtol=1e-6)
