"""What the AW-convolution is tried on: listed options, and any mixture."""

from hypothesis import strategies as st
import jax
import numpy as np

from awconv_jax.ops import aw_conv as op

# `fused` has tiles for wider kernels than most here; see test_aw_conv_fused.py.
IMPLEMENTATIONS = [name for name in op.IMPLEMENTATIONS if name != 'fused']
SHAPES = dict(n=2, size=(5, 4), channels=4, features=4, kernel_size=(3, 3))
BASE = SHAPES | dict(g=2, p=4, strides=(1, 1), padding='SAME')
BASE |= dict(dilation=(1, 1), groups=1, residual=True)
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
    'negative_and_positive': dict(padding=((-2, 1), (1, -1)), size=(8, 6)),
    'negative_with_stride': dict(
        padding=((-3, -1), (2, 0)), size=(8, 6), strides=(2, 1)
    ),
    'one_map_for_all': dict(g=1, p=1),
    'shared_by_pairs_of_outputs': dict(g=4, p=2),
    'no_residual': dict(residual=False),
    'input_smaller_than_kernel': dict(size=(1, 2)),
}


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


def with_gradients(run):
  """Returns value and gradients, as one function of the operands."""

  # By vjp and not grad: a scalar loss would bring an all-reduce of its own.
  def both(*operands):
    out, pullback = jax.vjp(run, *operands)
    return out, *pullback(out)

  return both


def plain_conv(x, kernel, maps=None):
  del maps
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def options_of(case):
  names = ('strides', 'padding', 'dilation', 'groups', 'residual')
  return {name: case[name] for name in names}


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
    least = 1
    if padding == 'VALID':
      least = window
    elif not isinstance(padding, str):
      low, high = padding[axis]
      least = max(1, 1 - min(low, 0) - min(high, 0), window - low - high)
    size.append(draw(st.integers(least, max(least, window) + 3)))
  return dict(
      n=sample([2, 1, 5]),
      size=tuple(size),
      channels=channels,
      features=features,
      kernel_size=kernel_size,
      g=divisor(channels // groups),
      p=divisor(features),
      strides=sample([(1, 1), (2, 2), (2, 1), (3, 2)]),
      padding=padding,
      dilation=dilation,
      groups=groups,
      residual=draw(st.booleans()),
  )
