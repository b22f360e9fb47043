"""The fused AW-convolution's kernels for TPU, in Pallas' interpreter.

It is slow, and compiles them anew for every shape: most are left to
`make test-slow`. Where the taps look is tested in all mixtures of options.
"""

import functools
import itertools

from hypothesis import given
from hypothesis import strategies as st
import jax
from jax._src.pallas import primitives
import jax.numpy as jnp
import numpy as np
import pytest
from random_values import images
from test_aw_conv_agreement import (
    BASE,
    HALF,
    PROPERTY,
    check,
    draw,
    form,
    with_gradients,
)

from awconv_jax.ops.aw_conv import choice
from awconv_jax.ops.aw_conv.plan import Plan
from awconv_jax.ops.aw_conv.tpu import kernels, maps, pairs, views

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

WIDE = BASE | dict(channels=128, features=128, g=8, p=128, size=(3, 4))
# Two pixels of 64 channels fill the lanes.
NARROW = WIDE | dict(channels=64, features=64, g=4, p=64)
SQUARE = dict(padding=((1, 1), (1, 1)))
CASES = {
    'few_taps': dict(kernel_size=(2, 1), strides=(1, 2), size=(3, 3), g=4, p=8),
    'strides': dict(strides=(1, 2), padding=((0, 1), (2, 1)), g=4, p=8),
    'plain': {},
    'stride_2': dict(strides=(2, 2), size=(5, 6), **SQUARE),
    'stride_2_odd': dict(strides=(2, 2), size=(7, 7), **SQUARE),
    'kernel_1x1': dict(kernel_size=(1, 1)),
    'kernel_1x1_stride_2': dict(kernel_size=(1, 1), strides=(2, 2)),
    'dilation': dict(dilation=(1, 2), size=(5, 5)),
    'kernel_2x5': dict(kernel_size=(2, 5)),
    'valid': dict(padding='VALID'),
    'no_residual': dict(residual=False),
    'many_samples': dict(n=33, size=(2, 3)),
    'two_tiles': dict(channels=256, features=256, g=16, p=256, size=(2, 3)),
    'many_inputs': dict(channels=384, g=24, size=(2, 3)),
    'maps_moved': dict(channels=256, g=16, n=17, size=(1, 2)),
    'many_outputs': dict(features=384, p=384, size=(2, 3)),
    # Taps that no position sees.
    'one_pixel': dict(size=(1, 1), strides=(2, 2), **SQUARE),
}
CASES = {name: WIDE | case for name, case in CASES.items()}
CASES |= {
    'pairs': NARROW | SQUARE | dict(size=(2, 3)),
    'pairs_odd': NARROW | SQUARE | dict(size=(6, 5), residual=False),
    'pairs_shared': NARROW | SQUARE | dict(g=2, p=4, n=17),
    'pairs_of_one': NARROW | SQUARE | dict(size=(2, 1)),
}
QUICK = ('few_taps',)


@pytest.fixture
def interpreted(monkeypatch):
  """On CPU `fused` are the kernels for TPU, in memory full of NaN."""
  monkeypatch.setattr(choice, 'INTERPRETED', 'tpu')
  fill = primitives.uninitialized_value
  nan = 0x7FC07FC0  # As two of bfloat16.

  def filled(shape, dtype):
    words = jnp.full(shape, nan, jnp.int32)
    return words if dtype == jnp.int32 else fill(shape, dtype)

  monkeypatch.setattr(primitives, 'uninitialized_value', filled)
  for function in (choice._forward, choice._backward):
    function.clear_cache()
  yield
  for function in (choice._forward, choice._backward):
    function.clear_cache()


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(n, marks=() if n in QUICK else pytest.mark.slow)
        for n in CASES
    ],
)
@pytest.mark.usefixtures('interpreted')
def test_values_and_gradients_equal_the_loop(name, monkeypatch):
  called = set()
  for function in ('forward', 'input_gradient', 'kernel_gradient'):
    right = getattr(kernels, function)

    def spy(*operands, function=function, right=right):
      called.add(function)
      return right(*operands)

    monkeypatch.setattr(kernels, function, spy)
  check(['fused'], CASES[name], HALF)
  assert len(called) == 3


@pytest.mark.slow
@pytest.mark.parametrize('name', ['stride_2_odd', 'pairs_odd'])
@pytest.mark.usefixtures('interpreted')
def test_it_is_vmap_and_repeatable(name):
  # Normal numbers of both signs, and the norm of the difference.
  case = CASES[name]
  operands = [jnp.asarray(a, jnp.bfloat16) for a in draw(case)]
  options = {n: case[n] for n in ('strides', 'padding', 'residual')}
  own = jax.jit(with_gradients(form('fused', **options)))
  wide = [a.astype(jnp.float32) for a in operands]
  wanted = jax.jit(with_gradients(form('vmap', **options)))(*wide)
  first, again = own(*operands), own(*operands)
  for one, two, right in zip(first, again, wanted, strict=True):
    np.testing.assert_array_equal(one, two)
    one, right = np.float64(one), np.float64(right)
    assert np.linalg.norm(one - right) <= 1e-2 * np.linalg.norm(right)


@pytest.mark.parametrize('function', [maps.for_kernels, maps.for_xla])
@pytest.mark.parametrize('runs', [8, 16])
def test_maps_stay_what_they_are(function, runs):
  # A kernel moves them where there are 16 runs.
  values = jnp.asarray(images(32, 2, runs, 256), jnp.bfloat16)
  moved = jax.jit(functools.partial(function, interpret=True))
  np.testing.assert_array_equal(moved(values), values)
  text = str(jax.make_jaxpr(moved)(values))
  assert ('pallas_call' in text) == (runs == 16)


@st.composite
def plans(draw):
  numbers = lambda most: st.tuples(*[st.integers(1, most)] * 2)  # noqa: E731
  plan = dict(size=draw(numbers(9)), kernel_size=draw(numbers(5)))
  plan |= dict(strides=draw(numbers(3)), dilation=draw(numbers(3)))
  padding = []
  three = (plan[name] for name in ('size', 'kernel_size', 'dilation'))
  for size, taps, gap in zip(*three, strict=True):
    low = draw(st.integers(0, 4))
    least = max(0, (taps - 1) * gap + 1 - size - low)
    padding.append((low, draw(st.integers(least, least + 4))))
  plan |= dict(padding=tuple(padding), groups=1, residual=True)
  return Plan(**plan, precision=None, chunk=None, interpret=True)


def looks(plan, backward):
  """Yields position of the target, tap, and what the tap sees of the image.

  By the definition: output y sees, by tap i, the input s y + d i - low.
  """
  outputs, taps = plan.output, plan.kernel_size
  places = [range(n) for n in (*outputs, *taps)]
  steps = plan.strides, plan.dilation, plan.before
  for *output, row, column in itertools.product(*places):
    parts = zip(output, (row, column), *steps, strict=True)
    seen = [y * s + i * d - low for y, i, s, d, low in parts]
    if all(0 <= n < m for n, m in zip(seen, plan.size, strict=True)):
      tap, output, seen = row * taps[1] + column, tuple(output), tuple(seen)
      yield (seen, tap, output) if backward else (output, tap, seen)


def looks_of(seen: views.Views):
  """Yields the same, by planes filled with the positions of an image."""
  planes = {}
  for plane in seen.slots:
    rows, columns = seen.plane_size(plane)
    planes[plane] = {
        seen.origin
        + y * seen.pitch
        + x: tuple(
            first + n * s
            for first, n, s in zip(plane, (y, x), seen.strides, strict=True)
        )
        for y in range(rows)
        for x in range(columns)
    }
    assert max(planes[plane], default=-1) < seen.places
  for part in seen.parts:
    for view in part.views:
      slot, word = seen.place(view)
      (shift,) = [s for s, n in seen.slots[view.plane].items() if n == slot]
      places = range(seen.run(part))
      for place in places:
        row, column = divmod(place, seen.pitch)
        found = planes[view.plane].get(2 * word - shift + place)
        if column < part.size[1] and found:
          steps = zip(part.first, (row, column), seen.step, strict=True)
          yield tuple(f + n * s for f, n, s in steps), view.tap, found


@PROPERTY(max_examples=150)
@given(plan=plans(), backward=st.booleans())
def test_every_tap_sees_what_it_should(plan, backward):
  found = (views.backward if backward else views.forward)(plan)
  assert found.pitch % 2 == found.origin % 2 == 0
  assert sorted(looks_of(found)) == sorted(looks(plan, backward))


def lowered(operands):
  """Returns how many kernels are lowered for TPU."""
  both = jax.jit(with_gradients(form('fused', **SQUARE)))
  text = both.trace(*operands).lower(lowering_platforms=('tpu',)).as_text()
  return text.count('stablehlo.custom_call @tpu_custom_call')


@pytest.mark.parametrize('case', [WIDE, NARROW])
def test_kernels_are_lowered_whatever_is_configured(case):
  operands = [jnp.asarray(a, jnp.bfloat16) for a in draw(case)]
  with jax.enable_x64(True), jax.default_matmul_precision('high'):
    assert lowered(operands) == 3


@pytest.mark.parametrize(
    'axis, number, kernels', [('data', 4, 3), ('data', 3, 0), ('other', 4, 0)]
)
def test_no_kernel_is_left_to_be_divided(axis, number, kernels):
  operands = [jnp.asarray(a, jnp.bfloat16) for a in draw(WIDE | dict(n=number))]
  mesh = jax.make_mesh((2,), (axis,), (jax.sharding.AxisType.Auto,))
  with jax.set_mesh(mesh):
    assert lowered(operands) == kernels


def takes(case, dtype='bfloat16', **changes):
  case = case | changes
  x, kernel, maps = (jnp.zeros(a.shape, dtype) for a in draw(case))
  options = {n: case[n] for n in ('strides', 'dilation', 'groups', 'residual')}
  options |= dict(padding=case['padding'], precision=None, chunk=None)
  return kernels.has_tiles(x, kernel, maps, choice.Options(**options))


def test_what_the_kernels_take():
  wide, narrow = WIDE | SQUARE, NARROW | SQUARE
  assert takes(wide) and takes(wide, g=2) and takes(narrow)
  assert not takes(wide, 'float32') and not takes(wide, g=16)
  assert not takes(wide, groups=2, g=4) and not takes(wide, features=192, p=1)
  assert not takes(narrow, strides=(2, 2)) and not takes(narrow, features=128)
  # As much as they hold of 16 images, or of a kernel, at once.
  assert takes(wide, size=(48, 48)) and not takes(wide, size=(64, 64))
  assert pairs.needed(56, 56) < kernels.MEMORY < pairs.needed(72, 72)
  nothing = dict(kernel_size=(1, 1), size=(1, 1), strides=(3, 3))
  assert not takes(wide, **nothing)  # Sees the padding alone.
  huge = dict(channels=1024, features=1024, g=64, p=1024)
  assert not takes(wide, **huge)
