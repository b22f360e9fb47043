"""The forms of the AW-convolution agree with numpy loops, and with `vmap`.

Values and all three gradients; float64 within 1e-10, float32 within 1e-4 and
bfloat16 within 2e-2 of the largest value expected.
"""

import functools

from aw_conv_cases import BASE, CASES, IMPLEMENTATIONS, cases, draw, options_of
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest

from awconv_jax.ops.aw_conv import aw_conv

TOLERANCES = {'float64': 1e-10, 'float32': 1e-4, 'bfloat16': 2e-2}
PARTS = ('value', 'input gradient', 'kernel gradient', 'attention gradient')
# Of input, kernel and attention.
MIXED = (
    ('bfloat16', 'bfloat16', 'float32'),
    ('float32', 'float32', 'bfloat16'),
    ('bfloat16', 'float32', 'float32'),
    ('float32', 'bfloat16', 'bfloat16'),
)
# Each example compiles every form anew: too slow for shrinking what failed.
PROPERTY = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
WIDE = ('float64',) * 3
MIXED_OPTIONS = BASE | CASES['stride_and_dilation'] | dict(groups=2)
# XLA:CPU gets convolutions in float32 wrong whose padding is (-n, n).
SHIFTED = BASE | dict(padding=((0, 0), (-1, 1)), size=(5, 6))
DEPTHWISE = BASE | CASES['depthwise_two_outputs_each']


def run_forms(names, case, operands, weights):
  """Returns value and, where they compile, gradients by each form's name."""

  # XLA:CPU may abort the process while compiling other cases' gradients.
  dense = case['strides'] == case['dilation'] == (1, 1)
  of_vmap = case['groups'] == 1 or dense

  @jax.jit
  def run(operands, weights):
    results, options = {}, options_of(case)
    for name in names:
      function = functools.partial(aw_conv, implementation=name, **options)
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
  check(IMPLEMENTATIONS, BASE | CASES[name], WIDE)


@pytest.mark.usefixtures('quick_compiles')
@PROPERTY(max_examples=5)
@given(case=cases(), seed=st.integers(0, 99))
def test_any_mixture_of_options_equals_the_loop(case, seed):
  check(IMPLEMENTATIONS, case, WIDE, seed)


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@PROPERTY(max_examples=6)
@given(case=cases(), seed=st.integers(0, 99))
@example(case=MIXED_OPTIONS, seed=0)
@example(case=DEPTHWISE, seed=0)
@example(case=SHIFTED, seed=0)
def test_any_mixture_of_options_in_narrow_numbers(dtype, case, seed):
  check(IMPLEMENTATIONS, case, (dtype,) * 3, seed)


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('number', range(len(MIXED)))
def test_mixed_dtypes(number):
  case = (BASE, MIXED_OPTIONS)[number % 2]
  check(IMPLEMENTATIONS, case, MIXED[number])


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize(
    'case',
    [
        dict(n=1, size=(17, 16), channels=32, features=32),
        dict(n=400, size=(1, 1), kernel_size=(1, 1), channels=2, features=2),
    ],
    ids=['many_channels_and_positions', 'many_samples'],
)
def test_long_sums_of_bfloat16_are_taken_in_float32(case):
  # Sums of positive bfloat16 stop growing after some 256 terms.
  case = BASE | dict(g=1, p=1) | case
  check(IMPLEMENTATIONS, case, ('bfloat16',) * 3)


@pytest.mark.parametrize('name', ['plain', 'groups_2', 'negative_with_stride'])
def test_gradients_of_the_loop_are_its_differences(name):
  case = BASE | CASES[name]
  operands, options = draw(case), options_of(case)
  weights = np.random.default_rng(1).normal(
      size=naive.aw_conv(*operands, **options).shape
  )
  gradients = naive.aw_conv_gradients(*operands, weights, **options)
  rng = np.random.default_rng(2)
  for i, own in enumerate(gradients):
    along = rng.normal(size=own.shape)
    values = []
    # Linear in each operand: the difference is exact for any step.
    for step in (0.5, -0.5):
      moved = [*operands]
      moved[i] = operands[i] + step * along
      values.append(np.sum(weights * naive.aw_conv(*moved, **options)))
    np.testing.assert_allclose(
        np.sum(own * along), values[0] - values[1], rtol=1e-9, atol=1e-9
    )
