"""The AW-convolution's identities, transformations, errors and sharding."""

import functools

from aw_conv_cases import (
    BASE,
    CASES,
    IMPLEMENTATIONS,
    WIDE,
    floats,
    options_of,
    plain_conv,
    with_gradients,
)
import jax
import jax.numpy as jnp
from layer_cases import close
import naive
import numpy as np
import pytest

from awconv_jax.ops import aw_conv as op
from awconv_jax.ops.aw_conv import aw_conv
from awconv_jax.ops.aw_conv.forms import modulate

# Backward passes of their own; JAX derives the others forward, too.
REVERSE_ONLY = ('loop_dot', 'loop_conv', 'fused')


def case_of(implementation):
  return WIDE if implementation == 'fused' else BASE


def form(implementation, **options):
  return functools.partial(aw_conv, implementation=implementation, **options)


def test_maps_that_scale_the_convolution_its_input_or_its_output():
  x, kernel, maps = floats()
  plain = plain_conv(x, kernel)
  close(aw_conv(x, kernel, 0 * maps), plain)
  close(aw_conv(x, kernel, np.full_like(maps, 0.75)), 1.75 * plain)
  close(aw_conv(x, kernel, np.ones_like(maps), residual=False), plain)
  scale = np.random.default_rng(3).normal(size=(2, 4)).astype(x.dtype)
  # Of input channels alone, constant over the taps; and of outputs alone.
  of_inputs = np.broadcast_to(scale[:, None, None, :, None], (2, 3, 3, 4, 1))
  out = aw_conv(x, kernel, of_inputs, residual=False)
  close(out, plain_conv(x * scale[:, None, None], kernel))
  of_outputs = np.broadcast_to(scale[:, None, None, None], (2, 3, 3, 1, 4))
  out = aw_conv(x, kernel, of_outputs, residual=False)
  close(out, plain_conv(x, kernel) * scale[:, None, None])


def test_samples_do_not_see_each_other_nor_their_order():
  x, kernel, maps = floats(BASE | dict(n=7))
  order = np.array([3, 0, 6, 1, 5, 2, 4])
  out = aw_conv(x, kernel, maps)
  close(aw_conv(x[order], kernel, maps[order]), out[order])
  # In copies: JAX may still be reading the first arrays.
  moved, moved_maps = x.copy(), maps.copy()
  moved[1] *= -3
  moved_maps[1] += 5
  other = aw_conv(moved, kernel, moved_maps)
  rest = np.arange(7) != 1
  np.testing.assert_array_equal(out[rest], other[rest])
  assert not np.allclose(out[1], other[1])


@pytest.mark.parametrize('implementation', op.IMPLEMENTATIONS)
def test_derivatives_forward_where_there_are_any(implementation):
  operands = tuple(floats(case_of(implementation)))
  derive = functools.partial(jax.jvp, form(implementation))
  if implementation not in REVERSE_ONLY:
    jax.eval_shape(derive, operands, operands)
    return
  with pytest.raises(TypeError, match='forward-mode') as error:
    derive(operands, operands)
  assert "say implementation='map'" in error.value.__notes__[0]


@pytest.mark.usefixtures('quick_compiles')
def test_jvp():
  x, kernel, maps = floats()
  moved = floats(seed=1)
  derive = jax.jit(functools.partial(jax.jvp, form('map')))
  slopes = (
      naive.aw_conv(moved[0], kernel, maps),
      naive.aw_conv(x, moved[1], maps),
      naive.aw_conv(x, kernel, moved[2], residual=False),
  )
  expected = naive.aw_conv(x, kernel, maps), sum(slopes)
  close(derive((x, kernel, maps), tuple(moved)), expected, 1e-4)


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('implementation', [*IMPLEMENTATIONS[1:], 'fused'])
def test_export_with_a_symbolic_batch_size(implementation):
  case = case_of(implementation) | CASES['stride_2']
  options = options_of(case)
  operands = floats(case | dict(n=3))
  (n,) = jax.export.symbolic_shape('n')
  shapes = [jax.ShapeDtypeStruct((n, *o.shape[1:]), o.dtype) for o in operands]
  shapes[1] = operands[1]
  run = jax.jit(form(implementation, **options))
  exported = jax.export.export(run)(*shapes)
  close(exported.call(*operands), naive.aw_conv(*operands, **options), 1e-4)


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('implementation', REVERSE_ONLY)
def test_gradient_of_gradient(implementation):
  case = case_of(implementation) | dict(n=1, size=(2, 2), kernel_size=(2, 1))
  x, kernel, maps = floats(case)
  x2, _, maps2 = floats(case, seed=1)

  def loss(x, maps):
    return jnp.sum(form(implementation)(x, kernel, maps) ** 2)

  @jax.jit
  def second(x, maps):
    def slope(x, maps):
      own = jax.grad(loss, argnums=(0, 1))(x, maps)
      return jnp.vdot(own[0], x2) + jnp.vdot(own[1], maps2)

    return jax.grad(slope, argnums=(0, 1))(x, maps)

  def naive_loss(t):
    # Along one line the loss is a polynomial of degree 4.
    x64, m64 = np.float64(x) + t * x2, np.float64(maps) + t * maps2
    return np.sum(naive.aw_conv(x64, kernel, m64) ** 2)

  own = second(x, maps)
  along = jnp.vdot(own[0], x2) + jnp.vdot(own[1], maps2)
  h = 1e-3
  expected = (naive_loss(h) - 2 * naive_loss(0) + naive_loss(-h)) / h**2
  np.testing.assert_allclose(along, expected, rtol=1e-4)


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('implementation', ['loop_dot', 'fused'])
def test_vmap_and_checkpoint_over_the_whole_operation(implementation):
  many = [floats(case_of(implementation), seed=s) for s in range(2)]
  run = jax.jit(jax.vmap(jax.checkpoint(form(implementation))))
  out = run(*map(np.stack, zip(*many, strict=True)))
  for own, operands in zip(out, many, strict=True):
    close(own, naive.aw_conv(*operands), 1e-4)


@pytest.mark.parametrize('implementation', ['loop_conv', 'fused'])
@pytest.mark.parametrize('empty', [dict(n=0), dict(size=(2, 2))])
def test_nothing_to_compute(implementation, empty):
  operands = floats(WIDE | empty)
  run = jax.jit(with_gradients(form(implementation, padding='VALID')))
  out, *gradients = run(*operands)
  assert out.size == 0
  for gradient, operand in zip(gradients, operands, strict=True):
    np.testing.assert_array_equal(gradient, np.zeros_like(operand))


def test_bfloat16_kernel_is_rounded_once():
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.normal(size=(3, 3, 8, 8)), jnp.bfloat16)
  maps = jnp.asarray(rng.uniform(size=(3, 3, 8, 8)), jnp.bfloat16)
  exact = np.float64(kernel) * (1 + np.float64(maps))
  wanted = exact.astype(np.float32).astype(jnp.bfloat16)
  for function in (modulate, jax.jit(modulate)):
    np.testing.assert_array_equal(function(kernel, maps), wanted)
  # The test would see a sum rounded before the product.
  assert np.any(wanted != np.asarray(kernel * (jnp.bfloat16(1) + maps)))


@pytest.mark.parametrize(
    'x, kernel, maps, groups',
    [
        ((4, 4, 2), (3, 3, 2, 2), (1, 3, 3, 1, 1), 1),
        ((1, 4, 4, 3), (3, 3, 2, 2), (1, 3, 3, 1, 1), 1),
        ((1, 4, 4, 4), (3, 3, 2, 3), (1, 3, 3, 1, 1), 2),
        ((1, 4, 4, 2), (3, 3, 2, 2), (2, 3, 3, 1, 1), 1),
        ((1, 4, 4, 2), (3, 3, 2, 2), (1, 3, 1, 1, 1), 1),
        ((1, 4, 4, 4), (3, 3, 4, 2), (1, 3, 3, 3, 1), 1),
        ((1, 4, 4, 2), (3, 3, 2, 4), (1, 3, 3, 1, 3), 1),
        ((1, 4, 4, 2), (3, 3, 2, 2), (1, 3, 3, 0, 1), 1),
    ],
)
def test_shapes_that_do_not_fit_are_named(x, kernel, maps, groups):
  operands = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (x, kernel, maps)]
  with pytest.raises(ValueError) as error:
    jax.eval_shape(functools.partial(aw_conv, groups=groups), *operands)
  assert all(str(s) in str(error.value) for s in (x, kernel, maps))


def test_lists_and_numpy_integers_will_do():
  two = [np.int64(2), np.int32(2)]
  options = dict(strides=two, dilation=two, padding=[two, two])
  close(aw_conv(*floats(), **options), naive.aw_conv(*floats(), **options))


def test_unknown_implementation_lists_the_known_ones():
  with pytest.raises(ValueError, match="'loop'.*known: fused, im2col"):
    aw_conv(*floats(), implementation='loop')


@pytest.mark.parametrize('implementation', ['auto', 'im2col', 'fused'])
def test_a_sharded_batch_is_not_gathered(implementation):
  assert jax.device_count() == 8
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  batch = jax.sharding.NamedSharding(mesh, jax.P('data'))
  shared = jax.sharding.NamedSharding(mesh, jax.P())
  both = with_gradients(form(implementation))
  operands = floats(case_of(implementation) | dict(n=16, size=(3, 3)))
  expected = jax.jit(both)(*operands)
  places = (batch, shared, batch)
  with jax.set_mesh(mesh):
    compiled = jax.jit(both, in_shardings=places).lower(*operands).compile()
    result = compiled(*jax.device_put(tuple(operands), places))
  jax.tree.map(lambda a, b: close(a, b, 1e-4), result, expected)
  text = compiled.as_text()
  assert 'all-gather' not in text and 'all-to-all' not in text
  # One, for the gradient of the shared kernel.
  assert text.count(' all-reduce(') == 1


@pytest.mark.parametrize('axis, number', [('data', 3), ('model', 2)])
def test_a_batch_that_no_mesh_divides_still_works(axis, number):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), (axis,))
  operands = floats(BASE | dict(n=number))
  with jax.set_mesh(mesh):
    out = jax.jit(aw_conv)(*operands)
  close(out, naive.aw_conv(*operands), 1e-4)
