"""The AW-convolution's transformations, choice, memory, errors and sharding."""

import functools
import math

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from random_values import close
from test_aw_conv_agreement import (
    BASE,
    CASES,
    IMPLEMENTATIONS,
    WIDE,
    draw,
    floats,
    form,
    options_of,
    with_gradients,
)

from awconv_jax.ops import aw_conv as op
from awconv_jax.ops.aw_conv import aw_conv, choice, forms, loops

# Backward passes of their own; JAX derives the others forward, too.
REVERSE_ONLY = ('loop_dot', 'loop_conv', 'fused')
MANY = BASE | dict(n=7, size=(5, 5), channels=8, g=4)


def case_of(implementation):
  # So that there are kernels for 'auto', too.
  return WIDE if implementation in ('auto', 'fused') else BASE


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
@pytest.mark.parametrize(
    'implementation', [*IMPLEMENTATIONS[1:], 'auto', 'fused']
)
def test_export_with_a_symbolic_batch_size(implementation):
  case = case_of(implementation) | CASES['stride_2'] | dict(n=3)
  options, operands = options_of(case), floats(case)
  (n,) = jax.export.symbolic_shape('n')
  shapes = [jax.ShapeDtypeStruct((n, *o.shape[1:]), o.dtype) for o in operands]
  shapes[1] = operands[1]
  run = jax.jit(form(implementation, **options))
  exported = jax.export.export(run)(*shapes)
  close(exported.call(*operands), naive.aw_conv(*operands, **options), 1e-4)


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('implementation', ['auto', *REVERSE_ONLY])
def test_gradient_of_gradient(implementation):
  case = case_of(implementation) | dict(n=1, size=(2, 2), kernel_size=(2, 1))
  x, kernel, maps = floats(case)
  x2, _, maps2 = floats(case, seed=1)

  def loss(x, maps):
    return jnp.sum(form(implementation)(x, kernel, maps) ** 2)

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def second(x, maps):
    own = jax.grad(loss, argnums=(0, 1))(x, maps)
    return jnp.vdot(own[0], x2) + jnp.vdot(own[1], maps2)

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
@pytest.mark.parametrize('implementation', ['loop_dot', 'auto', 'fused'])
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
  kernel, maps = jnp.asarray(rng.normal(size=(2, 3, 3, 8, 8)), jnp.bfloat16)
  exact = np.float64(kernel) * (1 + np.float64(maps))
  wanted = exact.astype(np.float32).astype(jnp.bfloat16)
  for function in (forms.modulate, jax.jit(forms.modulate)):
    np.testing.assert_array_equal(function(kernel, maps), wanted)
  # The test would see a sum rounded before the product.
  assert np.any(wanted != np.asarray(kernel * (jnp.bfloat16(1) + maps)))


SHAPES = (1, 4, 4, 4), (3, 3, 2, 4), (1, 3, 3, 2, 2)  # In two groups.


@pytest.mark.parametrize(
    'number, shape',
    [
        (0, (4, 4, 4)),
        (0, (1, 4, 4, 3)),
        (1, (3, 3, 2, 3)),
        *[(2, (2, 3, 3, 2, 2)), (2, (1, 3, 1, 2, 2)), (2, (1, 3, 3, 3, 2))],
        *[(2, (1, 3, 3, 2, 3)), (2, (1, 3, 3, 0, 2))],
    ],
)
def test_shapes_that_do_not_fit_are_named(number, shape):
  shapes = [*SHAPES]
  shapes[number] = shape
  operands = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  with pytest.raises(ValueError) as error:
    jax.eval_shape(functools.partial(aw_conv, groups=2), *operands)
  assert all(str(s) in str(error.value) for s in shapes)


def test_lists_and_numpy_integers_will_do():
  two = [np.int64(2), np.int32(2)]
  options = dict(strides=two, dilation=two, padding=[two, two])
  close(aw_conv(*floats(), **options), naive.aw_conv(*floats(), **options))


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(implementation='loop'), "'loop'.*known: auto, fused, im2col"),
        (dict(implementation='map', chunk=2), "chunk=2: 'map' takes no .*taps"),
    ],
)
def test_forms_and_chunks_that_there_are_not(options, words):
  with pytest.raises(ValueError, match=words):
    aw_conv(*floats(), **options)


@pytest.mark.parametrize('implementation', ['auto', 'im2col', 'fused'])
def test_a_sharded_batch_is_not_gathered(implementation):
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
  operands = floats(BASE | dict(n=number))
  with jax.set_mesh(jax.sharding.Mesh(np.array(jax.devices()), (axis,))):
    out = jax.jit(aw_conv)(*operands)
  close(out, naive.aw_conv(*operands), 1e-4)


def pulled(function, arrays):
  """Returns the value, and the gradients of half its squared norm."""
  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, jax.jit(with_gradients(function))(*arrays))


def same(own, expected):
  jax.tree.map(functools.partial(close, tolerance=1e-9), own, expected)


@pytest.mark.parametrize('implementation', op.CHUNKED)
@pytest.mark.parametrize('chunk', [3, 9])
def test_chunks_change_nothing(implementation, chunk):
  arrays = draw(MANY)
  own = pulled(form(implementation, chunk=chunk), arrays)
  same(own, pulled(form('map'), arrays))


def temporary_bytes(function, arrays):
  lowered = jax.jit(with_gradients(function)).lower(*arrays)
  return lowered.compile().memory_analysis().temp_size_in_bytes


def test_chunks_bound_the_memory():
  arrays = floats(MANY | dict(n=16, size=(16, 16)))
  whole = temporary_bytes(form('im2col'), arrays)
  assert temporary_bytes(form('im2col', chunk=2), arrays) < whole / 3


def test_auto_bounds_the_memory_of_batched_forms(monkeypatch):
  arrays = floats(MANY | dict(n=16, size=(16, 16)))
  expected = jax.jit(with_gradients(aw_conv))(*arrays)
  monkeypatch.setitem(choice.TABLE, 'cpu', choice.TABLE['default'])
  whole = temporary_bytes(aw_conv, arrays)
  # Patches and kernels of two samples, and one value more.
  most = 2 * 4 * (256 * 9 * 8 + 9 * 8 * 4) + 4
  monkeypatch.setattr(choice, '_CHUNK_BYTES', most)
  assert most < temporary_bytes(aw_conv, arrays) < whole / 3
  own = jax.jit(with_gradients(aw_conv))(*arrays)
  jax.tree.map(functools.partial(close, tolerance=1e-4), own, expected)


@pytest.mark.parametrize('channels, side', [(64, 28), (256, 14)])
def test_auto_keeps_neither_patches_nor_a_kernel_per_sample(channels, side):
  images, kernel = (8, side, side, channels), (3, 3, channels, channels)
  maps = (8, 3, 3, channels // 16, channels)
  arrays = [jax.ShapeDtypeStruct(s, 'float32') for s in (images, kernel, maps)]
  most = 4 * (3 * math.prod(images) + 2 * math.prod(kernel))
  assert temporary_bytes(aw_conv, arrays) <= most
  assert temporary_bytes(form('im2col'), arrays) > most


@pytest.mark.parametrize('implementation', ['loop_dot', 'loop_conv'])
def test_backward_in_blocks_of_input_channels(implementation, monkeypatch):
  arrays = draw(MANY)
  expected = pulled(form('map'), arrays)
  for runs, blocks in ((8, 8), (1, 1), (4, 2)):
    monkeypatch.setattr(loops, '_BLOCK_BYTES', arrays[1].nbytes / blocks)
    assert loops._count_blocks(arrays[1], runs) == blocks
  same(pulled(form(implementation), arrays), expected)


def test_depthwise_taps_are_no_matrix_products():
  arrays = floats(BASE | CASES['depthwise_two_outputs_each'])
  # One for K * (1 + A), none for the taps.
  traced = jax.make_jaxpr(form('taps', groups=4))(*arrays)
  assert str(traced).count('= dot_general') == 1


@pytest.mark.parametrize('implementation', ['map', 'taps', 'loop_conv'])
def test_products_of_bfloat16_are_summed_in_float32(implementation):
  arrays = [jnp.asarray(a, jnp.bfloat16) for a in floats()]
  text = str(jax.make_jaxpr(with_gradients(form(implementation)))(*arrays))
  products = [line for line in text.splitlines() if '= dot_general' in line]
  assert len(products) > 1 and all(':f32[' in line for line in products)
