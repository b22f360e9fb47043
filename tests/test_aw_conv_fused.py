"""The fused AW-convolution: its kernels in Pallas' interpreter, and for CUDA.

In the interpreter a result is not a number where no program writes it.
"""

import re

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest
from test_aw_conv_agreement import (
    BASE,
    HALF,
    TOLERANCES,
    WIDE,
    check,
    draw,
    floats,
    form,
    with_gradients,
)

from awconv_jax.ops.aw_conv import choice
from awconv_jax.ops.aw_conv.forms import modulate
from awconv_jax.ops.aw_conv.gpu import kernels as aw_conv_kernels
from benchmarks.op import SHAPES

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

TILED = {
    'plain': {},
    'many_positions': dict(n=1, size=(13, 11)),  # Two tiles of them.
    # An odd number of samples shares no tile of the kernel.
    'stride_2_even': dict(strides=(2, 2), size=(6, 6), n=3),
    'many_positions_stride_2': dict(n=1, size=(25, 25), strides=(2, 2)),
    'kernel_1x1_stride_2': dict(kernel_size=(1, 1), strides=(2, 2)),
    'kernel_4x5': dict(kernel_size=(4, 5), size=(7, 9), strides=(2, 3), n=1),
    'dilation': dict(dilation=(2, 3), size=(7, 6)),
    'dilation_and_stride': dict(dilation=(2, 1), strides=(1, 2), size=(7, 6)),
    'valid': dict(padding='VALID', strides=(2, 2), size=(6, 5)),
    'pairs': dict(padding=((0, 2), (3, 0)), strides=(2, 2)),
    'negative': dict(padding=((-1, 0), (0, -2)), size=(6, 7)),
    'no_residual': dict(residual=False),
    'maps_per_input': dict(g=16, p=1),
    'shared_by_pairs_of_outputs': dict(g=8, p=16),
    'runs_of_both': dict(channels=48, features=48, g=16, p=16),
    'sixteen_runs_of_3': dict(channels=48, g=16, p=32),
    # Four tiles of terms, two of outputs.
    'many_channels': dict(channels=128, features=256, g=8, p=256, size=(3, 2)),
    'many_outputs': dict(channels=256, features=128, g=16, p=8, size=(2, 2)),
}
SINGLE = ('float32',) * 3
KERNELS = ['forward', 'input_gradient', 'kernel_gradient']


def both(name='fused', **options):
  """Returns a function of the operands that gives value and gradients."""
  return with_gradients(form(name, **options))


@pytest.fixture
def tiled(monkeypatch):
  """Notes the calls of the kernels."""
  choice._forward.clear_cache()
  choice._backward.clear_cache()
  calls = set()
  for name in KERNELS:
    right = getattr(aw_conv_kernels, name)

    def spy(*operands, name=name, right=right):
      calls.add(name)
      return right(*operands)

    monkeypatch.setattr(aw_conv_kernels, name, spy)
  return calls


@pytest.mark.parametrize('name', TILED)
def test_values_and_gradients_equal_the_loop(name, tiled):
  check(['fused'], WIDE | TILED[name], SINGLE)
  assert tiled == {*KERNELS}


def test_sums_in_half_precision_are_rounded_once():
  case = dict(channels=128, features=128, size=(2, 2), n=1)
  halves = [jnp.asarray(abs(o), jnp.bfloat16) for o in floats(WIDE | case)]
  halves[2] *= 0
  out = np.float64(jax.jit(form('fused'))(*halves))
  with jax.enable_x64(True):
    exact = form('map')(*(jnp.asarray(h, jnp.float64) for h in halves))
    exact, once = np.asarray(exact), np.float64(exact.astype(jnp.bfloat16))
  # By half of the last of 8 bits, and what is next to halves of it.
  assert np.max(np.abs(out - exact) / exact) < 2**-7.9
  assert np.mean(out == once) > 0.98


@pytest.mark.parametrize('number', [5, 6])
@pytest.mark.usefixtures('tiled')  # Nothing is traced yet.
def test_samples_in_groups_equal_the_loop(number, monkeypatch):
  # So many programs as make two groups of three samples, or of three and two.
  monkeypatch.setattr(aw_conv_kernels, '_CORES', 2 * 9)
  check(['fused'], WIDE | dict(n=number), SINGLE)


def test_single_precision_where_wide_numbers_are_on():
  with jax.enable_x64(True):
    operands = [jnp.asarray(o, jnp.float32) for o in floats(WIDE)]
    own, wanted = (jax.jit(both(name))(*operands) for name in ('fused', 'map'))
  for a, b in zip(own, wanted, strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'name, dtypes',
    [
        ('stride_2_even', ('bfloat16', 'bfloat16', 'float32')),
        ('stride_2_even', ('float16',) * 3),
        ('stride_2_even', HALF),
        ('many_channels', HALF),  # Sums of 1152 terms, and more than a tile.
    ],
)
def test_half_precision_equals_the_loop(name, dtypes, monkeypatch):
  monkeypatch.setitem(TOLERANCES, 'float16', TOLERANCES['bfloat16'])
  check(['fused'], WIDE | TILED[name], dtypes)


def test_half_precision_is_within_a_hundredth_of_vmap():
  # Normal numbers of both signs, and the norm of the difference.
  case = WIDE | dict(n=4, size=(14, 14), channels=128, g=8)
  operands = [jnp.asarray(a, jnp.bfloat16) for a in draw(case)]
  results = (jax.jit(both(name))(*operands) for name in ('fused', 'vmap'))
  for own, wanted in zip(*results, strict=True):
    own, wanted = np.float64(own), np.float64(wanted)
    assert np.linalg.norm(own - wanted) <= 1e-2 * np.linalg.norm(wanted)


def test_the_samples_kernel_is_rounded_once():
  case = dict(size=(4, 4), kernel_size=(1, 1), g=16)
  _, kernel, maps = (jnp.asarray(a, jnp.bfloat16) for a in draw(WIDE | case))
  # Each position picks one row of the kernel.
  x = jnp.stack([jnp.eye(16, dtype=jnp.bfloat16).reshape(4, 4, 16)] * 2)
  out = form('fused')(x, kernel, maps)
  for own, one in zip(out, maps, strict=True):
    own, wanted = np.float32(own), np.float32(modulate(kernel, one)[0, 0])
    np.testing.assert_array_equal(own.reshape(16, 32), wanted)


@pytest.mark.parametrize(
    'case, dtype',
    [
        (BASE, 'float32'),  # Four channels.
        (WIDE | dict(channels=24, g=2), 'float32'),
        (WIDE | dict(features=40, p=40), 'float32'),
        (WIDE | dict(groups=2, channels=32, g=1), 'float32'),
        (WIDE | dict(strides=(2, 1), dilation=(2, 2)), 'float32'),
        (WIDE, 'float64'),
    ],
)
def test_operands_without_tiles_take_another_form(case, dtype, tiled):
  with jax.enable_x64(dtype == 'float64'):
    check(['fused'], case, (dtype,) * 3)
  assert not tiled


def equations_in(jaxpr, name):
  """Yields the equations of that name, those inside of others, too."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == name:
      yield equation
    for inner in core.jaxprs_in_params(equation.params):
      yield from equations_in(inner, name)


def test_what_the_interpreter_does_not_show():
  operands = [jnp.asarray(a, jnp.bfloat16) for a in floats(WIDE)]
  traced = jax.make_jaxpr(both(precision='highest'))(*operands)
  kernels = list(equations_in(traced.jaxpr, 'pallas_call'))
  assert len(kernels) == 3  # CPU's; others are traced where they are lowered.
  for kernel in kernels:
    products = list(equations_in(kernel.params['jaxpr'], 'dot_general'))
    assert products
    for product in products:
      assert product.params['precision'] == (jax.lax.Precision.HIGHEST,) * 2
      assert product.outvars[0].aval.dtype == jnp.float32
    # A GPU writes beyond an image unless it is told not to: here 20 positions
    # are in a tile of 32.
    stores = list(equations_in(kernel.params['jaxpr'], 'masked_swap'))
    assert stores
    for store in stores:
      masked = store.invars[-1].aval.dtype == bool
      assert masked == (len(kernel.outvars) == 1)
  # Sums over groups of samples go on in float32.
  of_kernel = [k for k in kernels if len(k.outvars) == 2]
  assert len(of_kernel) == 1
  assert {k.outvars[0].aval.dtype for k in of_kernel} == {jnp.dtype('float32')}


# Newer versions of JAX ask for the device that is not there.
GPU = jax.sharding.AbstractMesh(
    (1,),
    ('x',),
    axis_types=(jax.sharding.AxisType.Auto,),
    abstract_device=jax.sharding.AbstractDevice('NVIDIA H100', 132, 'gpu'),
)


@pytest.mark.parametrize(
    'name, dtype, axis',
    [('auto', 'bfloat16', 'in'), ('fused', 'float32', 'out')],
)
def test_all_of_it_is_kernels_on_cuda(name, dtype, axis):
  for c, _, side, stride, *_ in SHAPES['dense'] + SHAPES['strided']:
    runs = (c // 16, c) if axis == 'in' else (c, c // 16)
    shapes = (256, side, side, c), (3, 3, c, c), (256, 3, 3, *runs)
    operands = [jax.ShapeDtypeStruct(s, dtype) for s in shapes]
    with jax.sharding.use_abstract_mesh(GPU):
      traced = jax.jit(both(name, strides=(stride, stride))).trace(*operands)
      text = traced.lower(lowering_platforms=('cuda',)).as_text()
    names = re.findall(r'call @__gpu\$xla.gpu.triton.*?name = "(\w+)"', text)
    assert names == KERNELS
    assert 'stablehlo.convolution' not in text
    assert 'stablehlo.dot_general' not in text
    # No array is as large as the samples' own kernels.
    shapes = re.findall(r'tensor<((?:\d+x)+)(?:bf16|f32)>', text)
    sizes = [np.prod([int(n) for n in s.split('x')[:-1]]) for s in shapes]
    images, own = 256 * side**2 * c, 256 * 9 * c**2
    assert max(sizes) <= max(images, own // 16)
