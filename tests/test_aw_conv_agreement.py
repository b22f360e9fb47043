"""The forms of the AW-convolution agree with numpy loops, and with `vmap`.

Values and all three gradients; float64 within 1e-10, float32 within 1e-4 and
bfloat16 within 2e-2 of the largest value expected.
"""

import functools

from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest

from awconv_jax.ops import aw_conv as op

# `fused` has tiles for wider kernels than most here; see test_aw_conv_fused.py.
IMPLEMENTATIONS = [*op.FORMS]
OPTIONS = dict(strides=(1, 1), padding='SAME', dilation=(1, 1))
OPTIONS |= dict(groups=1, residual=True)
BASE = OPTIONS | dict(n=2, size=(5, 4), channels=4, features=4, g=2, p=4)
BASE |= dict(kernel_size=(3, 3))
# As wide as `fused` has tiles for.
WIDE = BASE | dict(channels=16, features=32, g=2, p=32)
# Every option once; `cases` mixes them.
CASES = {
    'plain': {},
    'kernel_1x1': dict(kernel_size=(1, 1)),
    'kernel_3x1': dict(kernel_size=(3, 1), size=(5, 3)),
    'stride_2': dict(strides=(2, 2), size=(6, 5)),
    'dilation_2': dict(dilation=(2, 2), size=(7, 6)),
    'stride_and_dilation': dict(strides=(2, 1), dilation=(2, 2), size=(9, 7)),
    'groups_2': dict(groups=2, g=1),
    'groups_2_full_maps': dict(groups=2, g=2),
    'depthwise': dict(groups=4, g=1),
    'depthwise_two_outputs_each': dict(groups=4, g=1, features=8, p=2),
    'same_lower': dict(padding='SAME_LOWER', strides=(2, 2), size=(6, 6)),
    'pairs_wider_than_the_kernel': dict(padding=((4, 0), (0, 5))),
    'negative': dict(padding=((-3, -1), (2, 0)), size=(8, 6), strides=(2, 1)),
    'one_map_for_all': dict(g=1, p=1),
    'shared_by_pairs_of_outputs': dict(g=4, p=2),
    'no_residual': dict(residual=False),
    'input_smaller_than_kernel': dict(size=(1, 2)),
}
TOLERANCES = {'float64': 1e-10, 'float32': 1e-4, 'bfloat16': 2e-2}
PARTS = ('value', 'input gradient', 'kernel gradient', 'attention gradient')
DOUBLE, HALF = ('float64',) * 3, ('bfloat16',) * 3
MIXED = BASE | CASES['stride_and_dilation'] | dict(groups=2)
# XLA:CPU gets convolutions in float32 wrong whose padding is (-n, n).
SHIFTED = BASE | dict(padding=((0, 0), (-1, 1)), size=(5, 6))
# Each example compiles every form anew: too slow for shrinking what failed.
PROPERTY = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)


def draw(case, seed=0, positive=False):
  """Returns float64 x, kernel and attention of a case."""
  rng = np.random.default_rng(seed)
  n, c, d = case['n'], case['channels'], case['features']
  shapes = (
      (n, *case['size'], c),
      (*case['kernel_size'], c // case['groups'], d),
      (n, *case['kernel_size'], case['g'], case['p']),
  )
  if positive:
    return tuple(rng.uniform(0.25, 1.75, size=shape) for shape in shapes)
  return tuple(rng.normal(size=shape) for shape in shapes)


def floats(case=BASE, seed=0):
  return [a.astype(np.float32) for a in draw(case, seed)]


def form(implementation, **options):
  return functools.partial(op.aw_conv, implementation=implementation, **options)


def with_gradients(run):
  """Returns value and gradients, as one function of the operands."""

  # By vjp and not grad: a scalar loss would bring an all-reduce of its own.
  def both(*operands):
    out, pullback = jax.vjp(run, *operands)
    return out, *pullback(out)

  return both


def options_of(case):
  return {name: case[name] for name in OPTIONS}


@st.composite
def cases(draw):
  """Any mixture of the options, in tiny shapes."""
  sample = lambda values: draw(st.sampled_from(values))  # noqa: E731
  divisor = lambda n: sample([i for i in range(1, n + 1) if n % i == 0])  # noqa: E731
  channels = sample([6, 4, 3])
  groups = divisor(channels)
  features = groups * sample([4, 2, 1, 3])
  kernel_size = sample([(3, 3), (1, 1), (3, 1), (2, 3), (5, 4)])
  dilation = sample([(1, 1), (2, 2), (1, 3)])
  edge = st.tuples(st.integers(-2, 3), st.integers(-2, 3))
  padding = draw(
      st.sampled_from(['SAME', 'VALID', 'SAME_LOWER']) | st.tuples(edge, edge)
  )
  size = []
  for axis in range(2):
    # At least one window, and something left where the padding crops.
    window = (kernel_size[axis] - 1) * dilation[axis] + 1
    least = window if padding == 'VALID' else 1
    if not isinstance(padding, str):
      low, high = padding[axis]
      least = max(1, 1 - min(low, 0) - min(high, 0), window - low - high)
    size.append(draw(st.integers(least, max(least, window) + 3)))
  case = dict(n=sample([2, 1, 5]), size=tuple(size), kernel_size=kernel_size)
  case |= dict(channels=channels, features=features, groups=groups)
  case |= dict(g=divisor(channels // groups), p=divisor(features))
  case |= dict(padding=padding, dilation=dilation, residual=draw(st.booleans()))
  return case | dict(strides=sample([(1, 1), (2, 2), (2, 1), (3, 2)]))


def run_forms(names, case, operands, weights):
  """Returns value and, where they compile, gradients by each form's name."""

  # XLA:CPU may abort the process while compiling other cases' gradients.
  dense = case['strides'] == case['dilation'] == (1, 1)
  of_vmap = case['groups'] == 1 or dense

  @jax.jit
  def run(operands, weights):
    results = {}
    for name in names:
      function = form(name, **options_of(case))
      if name == 'vmap' and not of_vmap:
        results[name] = (function(*operands),)
      else:
        out, pullback = jax.vjp(function, *operands)
        results[name] = out, *pullback(weights)
    return results

  return jax.tree.map(np.asarray, run(tuple(operands), weights))


def prepare(case, dtypes, seed):
  """Returns operands and the gradient of the output, rounded to their dtypes.

  Narrow ones are positive: where sums cancel to almost nothing, no form could
  keep a relative error.
  """
  narrow = 'float64' not in dtypes
  operands = draw(case, seed, positive=narrow)
  shape = naive.aw_conv(*operands, **options_of(case)).shape
  rng = np.random.default_rng(seed + 1)
  weights = rng.uniform(0.25, 1.75, shape) if narrow else rng.normal(size=shape)
  common = jnp.promote_types(*dtypes[:2])
  operands = [jnp.asarray(a, d) for a, d in zip(operands, dtypes, strict=True)]
  return operands, jnp.asarray(weights, common)


def check(names, case, dtypes, seed=0):
  """Compares forms with numpy."""
  with jax.enable_x64('float64' in dtypes):
    operands, weights = prepare(case, dtypes, seed)
    results = run_forms(names, case, operands, weights)
  options = options_of(case)
  expected = (
      naive.aw_conv(*operands, **options),
      *naive.aw_conv_gradients(*operands, weights, **options),
  )
  common = weights.dtype.name
  found = []
  for name in names:
    # Zips the shorter: of `vmap` there may be the value only.
    for part, own, wanted, kind in zip(
        PARTS, results[name], expected, (common, *dtypes), strict=False
    ):
      assert (own.shape, own.dtype) == (wanted.shape, kind), (name, part)
      error = np.abs(own.astype(np.float64) - wanted).max()
      scale = np.abs(wanted).max()
      # A result is as coarse as its own dtype or that of the sums.
      if not error <= scale * max(TOLERANCES[common], TOLERANCES[kind]):
        found.append(f'{name}, {part}: off by {error:.3g} of {scale:.3g}')
  assert not found, '\n'.join(found)


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_equal_the_loop(name):
  check(IMPLEMENTATIONS, BASE | CASES[name], DOUBLE)


@pytest.mark.usefixtures('quick_compiles')
@PROPERTY(max_examples=3)
@given(case=cases(), seed=st.integers(0, 99))
def test_any_mixture_of_options_equals_the_loop(case, seed):
  check(IMPLEMENTATIONS, case, DOUBLE, seed)


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@PROPERTY(max_examples=6)
@given(case=cases(), seed=st.integers(0, 99))
@example(case=MIXED, seed=0)
@example(case=BASE | CASES['depthwise_two_outputs_each'], seed=0)
@example(case=SHIFTED, seed=0)
def test_any_mixture_of_options_in_narrow_numbers(dtype, case, seed):
  check(IMPLEMENTATIONS, case, (dtype,) * 3, seed)


# Sums of positive bfloat16 stop growing after some 256 terms.
LONG = BASE | dict(g=1, p=1, n=1, size=(17, 16), channels=32, features=32)
MANY = LONG | dict(n=400, size=(1, 1), kernel_size=(1, 1))


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize(
    'case, dtypes',
    [
        (BASE, ('bfloat16', 'bfloat16', 'float32')),
        (MIXED, ('float32', 'float32', 'bfloat16')),
        (BASE, ('bfloat16', 'float32', 'float32')),
        (MIXED, ('float32', 'bfloat16', 'bfloat16')),
        (LONG, HALF),
        (MANY | dict(channels=2, features=2), HALF),
    ],
)
def test_mixed_dtypes_and_long_sums_of_bfloat16(case, dtypes):
  check(IMPLEMENTATIONS, case, dtypes)
