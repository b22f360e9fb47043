"""The AW-convolution against naive loops, its identities, and sharding."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
from jax import lax
import jax.numpy as jnp
import naive
import numpy as np
import pytest

from awconv_jax.ops import aw_conv as op
from awconv_jax.ops.aw_conv import aw_conv
from awconv_jax.ops.aw_conv_forms import modulate

IMPLEMENTATIONS = ('auto', *op.IMPLEMENTATIONS)
FAST = [name for name in op.IMPLEMENTATIONS if name != 'vmap']
# JAX derives these by itself, so that they can be derived forward, too.
DERIVED = [name for name in FAST if not name.startswith('loop')]
BASE = dict(
    n=2,
    size=(5, 4),
    channels=4,
    features=4,
    kernel_size=(3, 3),
    g=2,
    p=4,
    strides=(1, 1),
    padding='SAME',
    dilation=(1, 1),
    groups=1,
    residual=True,
)
# Every listed form once; the property test below mixes them.
CASES = {
    'plain': {},
    'one_sample': dict(n=1, size=(4, 3)),
    'seven_samples': dict(n=7, size=(3, 5)),
    'kernel_1x1': dict(kernel_size=(1, 1)),
    'kernel_1x1_stride_2': dict(kernel_size=(1, 1), strides=(2, 2)),
    'kernel_5x5': dict(kernel_size=(5, 5), size=(6, 7)),
    'kernel_3x1': dict(kernel_size=(3, 1), size=(5, 3)),
    'stride_2': dict(strides=(2, 2), size=(7, 5)),
    'stride_2_1': dict(strides=(2, 1), size=(7, 5)),
    'dilation_2': dict(dilation=(2, 2), size=(7, 6)),
    'stride_and_dilation': dict(strides=(2, 1), dilation=(2, 2), size=(9, 7)),
    'groups_2': dict(groups=2, g=1),
    'groups_2_full_maps': dict(groups=2, g=2),
    'depthwise': dict(groups=4, g=1),
    'depthwise_two_outputs_each': dict(groups=4, g=1, features=8, p=2),
    'valid': dict(padding='VALID'),
    'same_lower': dict(padding='SAME_LOWER', strides=(2, 2), size=(6, 6)),
    'same_stride_2_even': dict(padding='SAME', strides=(2, 2), size=(6, 6)),
    'pairs': dict(padding=((0, 2), (1, 0))),
    'pairs_wider_than_the_kernel': dict(padding=((4, 0), (0, 5))),
    'one_map_for_all': dict(g=1, p=1),
    'maps_per_output': dict(g=1, p=4),
    'maps_per_input': dict(g=4, p=1),
    'shared_by_pairs_of_outputs': dict(g=4, p=2),
    'full_maps': dict(g=4, p=4),
    'no_residual': dict(residual=False),
    'input_smaller_than_kernel': dict(size=(1, 2)),
}
# XLA:CPU may abort while compiling the gradient of the vmapped form with
# groups, strides and dilation at once, so that form's gradient is tested here
# only, where it compiles; the loops' and the forward pass anywhere.
VMAP_GRADIENTS = ('plain', 'stride_2', 'full_maps', 'no_residual')


def draw(case, seed=0):
  """Returns float64 x, kernel and attention of a case."""
  rng = np.random.default_rng(seed)
  n, c, d = case['n'], case['channels'], case['features']
  kernel_shape = (*case['kernel_size'], c // case['groups'], d)
  return (
      rng.normal(size=(n, *case['size'], c)),
      rng.normal(size=kernel_shape),
      rng.normal(size=(n, *case['kernel_size'], case['g'], case['p'])),
  )


def options_of(case):
  names = ('strides', 'padding', 'dilation', 'groups', 'residual')
  return {name: case[name] for name in names}


def check(case, implementation, gradient, seed=0):
  """Compares values, and the gradient along a direction, in float64."""
  operands = draw(case, seed)
  options = options_of(case)
  expected = naive.aw_conv(*operands, **options)
  rng = np.random.default_rng(seed + 1)
  weights = rng.normal(size=expected.shape)
  function = functools.partial(
      aw_conv, implementation=implementation, **options
  )

  @jax.jit
  def run(operands, weights):
    if not gradient:
      return function(*operands), None
    out, pullback = jax.vjp(function, *operands)
    return out, pullback(weights)

  with jax.enable_x64(True):
    # To numpy here: outside of this context JAX would narrow to float32.
    out, gradients = jax.tree.map(np.asarray, run(operands, weights))
  assert out.dtype == np.float64
  np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-10)
  if not gradient:
    return
  for i, (operand, own) in enumerate(zip(operands, gradients, strict=True)):
    direction = rng.normal(size=operand.shape)

    def shifted(step, i=i, direction=direction):
      moved = [*operands]
      moved[i] = operands[i] + step * direction
      return naive.aw_conv(*moved, **options)

    # The operation is linear in each operand: the difference is exact.
    difference = np.sum(weights * (shifted(0.5) - shifted(-0.5)))
    np.testing.assert_allclose(
        np.sum(own * direction), difference, rtol=1e-9, atol=1e-9
    )


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('implementation', FAST)
@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_equal_the_loop(name, implementation):
  check(BASE | CASES[name], implementation, gradient=True)


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('name', CASES)
def test_vmap_equals_the_loop(name):
  check(BASE | CASES[name], 'vmap', gradient=name in VMAP_GRADIENTS)


@pytest.mark.parametrize('name', ['plain', 'stride_2_1', 'groups_2'])
def test_auto_equals_the_loop(name):
  check(BASE | CASES[name], 'auto', gradient=True)


@st.composite
def cases(draw):
  """Any mixture of the options, in tiny shapes."""
  sample = lambda values: draw(st.sampled_from(values))  # noqa: E731
  divisor = lambda n: sample([i for i in range(1, n + 1) if n % i == 0])  # noqa: E731
  channels = sample([2, 4])
  groups = sample([1, 2, channels])
  features = groups * sample([1, 2])
  kernel_size = sample([(1, 1), (3, 3), (5, 5), (3, 1)])
  dilation = sample([(1, 1), (2, 2)])
  padding = sample(
      ['SAME', 'VALID', 'SAME_LOWER', ((1, 1), (1, 1)), ((0, 3), (2, 1))]
  )
  extra = draw(st.tuples(*[st.integers(0, 3)] * 2))
  # Large enough for one window even without padding.
  size = [
      (k - 1) * d + 1 + e
      for k, d, e in zip(kernel_size, dilation, extra, strict=True)
  ]
  return dict(
      n=sample([1, 2, 7]),
      size=tuple(size),
      channels=channels,
      features=features,
      kernel_size=kernel_size,
      g=divisor(channels // groups),
      p=divisor(features),
      strides=sample([(1, 1), (2, 2), (2, 1)]),
      padding=padding,
      dilation=dilation,
      groups=groups,
      residual=draw(st.booleans()),
  )


@pytest.mark.usefixtures('quick_compiles')
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    case=cases(), seed=st.integers(0, 99), implementation=st.sampled_from(FAST)
)
def test_any_mixture_of_options_equals_the_loop(case, seed, implementation):
  check(case, implementation, gradient=True, seed=seed)
  check(case, 'vmap', gradient=False, seed=seed)


@pytest.mark.parametrize('implementation', op.IMPLEMENTATIONS)
@pytest.mark.parametrize(
    'dtype, tolerance', [('float32', 1e-4), ('bfloat16', 2e-2)]
)
@pytest.mark.parametrize('name', ['plain', 'groups_2', 'stride_and_dilation'])
def test_narrow_dtypes_stay_within_their_rounding(
    name, dtype, tolerance, implementation
):
  case = BASE | CASES[name]
  operands = [jnp.asarray(a, dtype) for a in draw(case)]
  expected = naive.aw_conv(
      *(np.asarray(a, np.float64) for a in operands), **options_of(case)
  )
  run = functools.partial(
      aw_conv, implementation=implementation, **options_of(case)
  )
  out = jax.jit(run)(*operands)
  assert out.dtype == dtype
  error = np.abs(np.asarray(out, np.float64) - expected).max()
  assert error <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize('implementation', op.IMPLEMENTATIONS)
def test_result_has_the_common_dtype_of_input_and_kernel(implementation):
  x, kernel, maps = draw(BASE)
  for first, second, common in (
      ('bfloat16', 'float32', 'float32'),
      ('float32', 'bfloat16', 'float32'),
      ('bfloat16', 'bfloat16', 'bfloat16'),
  ):
    out = jax.eval_shape(
        functools.partial(aw_conv, implementation=implementation),
        jnp.asarray(x, first),
        jnp.asarray(kernel, second),
        jnp.asarray(maps, 'float32'),
    )
    assert out.dtype == common


def floats(case=BASE, seed=0):
  return [a.astype(np.float32) for a in draw(case, seed)]


@jax.jit
def plain_conv(x, kernel):
  return lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=op.IMPLEMENTATIONS)
def run(request):

  def run(x, kernel, maps, **options):
    options['implementation'] = request.param
    return jax.jit(functools.partial(aw_conv, **options))(x, kernel, maps)

  return run


def test_no_attention_is_the_plain_convolution(run):
  x, kernel, maps = floats()
  close(run(x, kernel, 0 * maps), plain_conv(x, kernel))


def test_constant_attention_scales_the_convolution(run):
  x, kernel, maps = floats()
  out = run(x, kernel, np.full_like(maps, 0.75))
  close(out, 1.75 * plain_conv(x, kernel))


def test_without_residual_attention_one_is_the_convolution(run):
  x, kernel, maps = floats()
  out = run(x, kernel, np.ones_like(maps), residual=False)
  close(out, plain_conv(x, kernel))


def test_scaling_the_kernel_is_scaling_the_input_for_1x1(run):
  # conv(I * A, K) = conv(I, A * K) for maps of the input channel alone.
  x, kernel, maps = floats(BASE | dict(kernel_size=(1, 1), g=4, p=1))
  out = run(x, kernel, maps, residual=False)
  close(out, plain_conv(x * maps.reshape(2, 1, 1, 4), kernel))


def test_scaling_the_kernel_is_scaling_the_input_if_constant_over_taps(run):
  x, kernel, _ = floats()
  scale = np.random.default_rng(3).normal(size=(2, 4)).astype(x.dtype)
  maps = np.broadcast_to(scale[:, None, None, :, None], (2, 3, 3, 4, 1))
  out = run(x, kernel, maps, residual=False)
  close(out, plain_conv(x * scale[:, None, None], kernel))


def test_permuted_samples_give_permuted_outputs(run):
  x, kernel, maps = floats(BASE | dict(n=7))
  order = np.array([3, 0, 6, 1, 5, 2, 4])
  out = run(x, kernel, maps)
  close(run(x[order], kernel, maps[order]), out[order])


def test_a_sample_does_not_see_another(run):
  x, kernel, maps = floats()
  one = run(x, kernel, maps)
  # In copies: JAX may still be reading the first arrays.
  x, maps = x.copy(), maps.copy()
  x[1] *= -3
  maps[1] += 5
  other = run(x, kernel, maps)
  np.testing.assert_array_equal(one[0], other[0])
  assert not np.allclose(one[1], other[1])


@pytest.mark.parametrize('implementation', ['loop_dot', 'loop_conv'])
def test_forward_derivatives_of_the_loops_are_refused_clearly(implementation):
  operands = floats()
  run = functools.partial(aw_conv, implementation=implementation)
  with pytest.raises(TypeError, match='forward-mode'):
    jax.jvp(run, tuple(operands), tuple(operands))


@pytest.mark.parametrize('implementation', FAST)
@pytest.mark.parametrize('name', ['plain', 'stride_2', 'groups_2'])
def test_export_with_a_symbolic_batch_size(implementation, name):
  case = BASE | CASES[name]
  options = options_of(case)
  run = functools.partial(aw_conv, implementation=implementation, **options)
  _, kernel, _ = floats(case)
  (n,) = jax.export.symbolic_shape('n')
  shapes = [
      jax.ShapeDtypeStruct((n, *o.shape[1:]), o.dtype) for o in floats(case)
  ]
  shapes[1] = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
  exported = jax.export.export(jax.jit(run))(*shapes)
  for number in (1, 3):
    operands = floats(case | dict(n=number))
    close(exported.call(*operands), naive.aw_conv(*operands, **options), 1e-4)


@pytest.mark.parametrize('implementation', DERIVED)
def test_jvp(implementation):
  x, kernel, maps = floats()
  run = functools.partial(aw_conv, implementation=implementation)
  moved = floats(seed=1)
  out, tangent = jax.jit(lambda a, b: jax.jvp(run, a, b))(
      (x, kernel, maps), tuple(moved)
  )
  expected = [
      naive.aw_conv(x, kernel, maps),
      naive.aw_conv(moved[0], kernel, maps)
      + naive.aw_conv(x, moved[1], maps)
      + naive.aw_conv(x, kernel, moved[2], residual=False),
  ]
  close(out, expected[0], 1e-4)
  close(tangent, expected[1], 1e-4)


@pytest.mark.parametrize('implementation', FAST)
def test_gradient_of_gradient(implementation):
  case = BASE | dict(size=(2, 2), n=1)
  x, kernel, maps = floats(case)
  x2, _, maps2 = floats(case, seed=1)

  def loss(x, maps):
    run = functools.partial(aw_conv, implementation=implementation)
    return jnp.sum(run(x, kernel, maps) ** 2)

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


@pytest.mark.parametrize('implementation', FAST)
def test_vmap_and_checkpoint_over_the_whole_operation(implementation):
  many = [floats(seed=s) for s in range(3)]
  x, kernel, maps = (np.stack(a) for a in zip(*many, strict=True))
  run = functools.partial(aw_conv, implementation=implementation)
  out = jax.jit(jax.vmap(jax.checkpoint(run)))(x, kernel, maps)
  for own, operands in zip(out, many, strict=True):
    close(own, naive.aw_conv(*operands), 1e-4)


@pytest.mark.parametrize('compiled', [False, True])
def test_bfloat16_kernel_is_rounded_once(compiled):
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.normal(size=(3, 3, 8, 8)), jnp.bfloat16)
  maps = jnp.asarray(rng.uniform(size=(3, 3, 8, 8)), jnp.bfloat16)
  function = jax.jit(modulate) if compiled else modulate
  own = function(kernel, maps)
  exact = np.asarray(kernel, np.float64) * (1 + np.asarray(maps, np.float64))
  assert own.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
      np.asarray(own, np.float32),
      np.asarray(exact.astype(np.float32).astype(jnp.bfloat16), np.float32),
  )
  # The test would see a sum rounded before the product.
  twice = kernel * (jnp.bfloat16(1) + maps)
  assert np.any(np.asarray(own) != np.asarray(twice))


@pytest.mark.parametrize(
    'shapes, groups',
    [
        (((4, 4, 2), (3, 3, 2, 2), (1, 3, 3, 1, 1)), 1),
        (((1, 4, 4, 2), (3, 3, 2), (1, 3, 3, 1, 1)), 1),
        (((1, 4, 4, 2), (3, 3, 2, 2), (1, 3, 3, 1)), 1),
        (((1, 4, 4, 3), (3, 3, 2, 2), (1, 3, 3, 1, 1)), 1),
        (((1, 4, 4, 4), (3, 3, 2, 3), (1, 3, 3, 1, 1)), 2),
        (((1, 4, 4, 2), (3, 3, 2, 2), (2, 3, 3, 1, 1)), 1),
        (((1, 4, 4, 2), (3, 3, 2, 2), (1, 3, 1, 1, 1)), 1),
        (((1, 4, 4, 4), (3, 3, 4, 2), (1, 3, 3, 3, 1)), 1),
        (((1, 4, 4, 2), (3, 3, 2, 4), (1, 3, 3, 1, 3)), 1),
        (((1, 4, 4, 2), (3, 3, 2, 2), (1, 3, 3, 0, 1)), 1),
        (((1, 4, 4, 2), (3, 3, 2, 2), (1, 3, 3, 1, 0)), 1),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes, groups):
  operands = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  with pytest.raises(ValueError) as error:
    jax.eval_shape(functools.partial(aw_conv, groups=groups), *operands)
  named = [str(s) in str(error.value) for s in shapes]
  assert sum(named) >= 2, error.value


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(strides=2), 'strides must be a pair of ints, not 2'),
        (dict(dilation=2), 'dilation must be a pair of ints, not 2'),
        (dict(strides=(1, 1, 1)), r'pair of ints, not \(1, 1, 1\)'),
        (dict(strides=(1, 1.5)), r'pair of ints, not \(1, 1.5\)'),
        (dict(dilation='22'), "pair of ints, not '22'"),
        (dict(strides=(0, 1)), r'strides must be at least 1, not \(0, 1\)'),
        (dict(dilation=(1, -1)), 'dilation must be at least 1'),
        (dict(padding=1), r'padding must be a name or .* width, not 1'),
        (dict(padding=((1, 1),)), r'padding must be .*, not \(\(1, 1\),\)'),
        (dict(padding=(1, 1)), 'padding of each axis must be a pair .* not 1'),
    ],
)
def test_impossible_windows_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    aw_conv(*floats(), **options)


def test_numpy_integers_are_ints():
  two = (np.int64(2), np.int32(2))
  options = dict(strides=two, dilation=two, padding=(two, two))
  close(aw_conv(*floats(), **options), naive.aw_conv(*floats(), **options))


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('implementation', op.IMPLEMENTATIONS)
@pytest.mark.parametrize('strides', [(1, 1), (2, 1)])
@pytest.mark.parametrize(
    'padding', [((-1, 0), (0, -2)), ((-2, 1), (1, -1)), ((-3, -1), (2, 0))]
)
def test_negative_padding_crops(padding, strides, implementation):
  # As in `check`, for a reference that can only pad.
  operands = draw(BASE | dict(size=(8, 6)))
  weights = np.random.default_rng(1).normal(size=(2, 8, 6, 4))

  def crop(x):
    (top, bottom), (left, right) = np.minimum(padding, 0)
    return x[:, -top : 8 + bottom, -left : 6 + right]

  pads = np.maximum(padding, 0).tolist()
  run = functools.partial(aw_conv, implementation=implementation)

  def value_and_gradients(run, *operands):
    out, pullback = jax.vjp(run, *operands)
    return out, pullback(
        jnp.asarray(weights[:, : out.shape[1], : out.shape[2]])
    )

  with jax.enable_x64(True):
    own = jax.jit(
        functools.partial(
            value_and_gradients,
            functools.partial(run, padding=padding, strides=strides),
        )
    )(*operands)
    cropped = jax.jit(
        functools.partial(
            value_and_gradients,
            lambda x, *others: aw_conv(
                crop(x),
                *others,
                padding=pads,
                strides=strides,
                implementation='im2col',
            ),
        )
    )(*operands)
    own, cropped = jax.tree.map(np.asarray, (own, cropped))
  x, *others = operands
  expected = naive.aw_conv(crop(x), *others, padding=pads, strides=strides)
  close(own[0], expected, 1e-10)
  # The gradient of a crop is JAX's; that of the rest is tested above.
  jax.tree.map(lambda a, b: close(a, b, 1e-10), own[1], cropped[1])


def test_unknown_implementation_lists_the_known_ones():
  with pytest.raises(ValueError, match="'loop'; known: auto, vmap, map"):
    aw_conv(*floats(), implementation='loop')


def sharded_gradient(mesh, run, count):
  """Returns HLO and results over a batch on that mesh, and those without."""
  spec = jax.sharding.PartitionSpec
  batch = jax.sharding.NamedSharding(mesh, spec('data'))
  shared = jax.sharding.NamedSharding(mesh, spec())

  # By vjp and not grad: a scalar loss would bring an all-reduce of its own.
  def both(x, kernel, maps, weights):
    out, pullback = jax.vjp(run, x, kernel, maps)
    return out, pullback(weights)

  operands = floats(BASE | dict(n=count))
  operands.append(floats(BASE | dict(n=count), seed=1)[0])
  expected = jax.jit(both)(*operands)
  places = (batch, shared, batch, batch)
  with jax.set_mesh(mesh):
    compiled = jax.jit(both, in_shardings=places).lower(*operands).compile()
    result = compiled(*jax.device_put(tuple(operands), places))
  return compiled.as_text(), result, expected


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_a_sharded_batch_is_not_gathered(implementation):
  if jax.device_count() < 8:
    pytest.skip('needs XLA_FLAGS=--xla_force_host_platform_device_count=8')
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  run = functools.partial(aw_conv, implementation=implementation)
  count = 2 * jax.device_count()
  text, result, expected = sharded_gradient(mesh, run, count)
  for own, wanted in zip(
      jax.tree.leaves(result), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-4)
  assert 'all-gather' not in text and 'all-to-all' not in text
  # One, for the gradient of the shared kernel.
  assert text.count(' all-reduce(') == 1


def test_a_batch_the_mesh_does_not_divide_still_works():
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  operands = floats(BASE | dict(n=3))
  run = functools.partial(aw_conv, implementation='map')
  with jax.set_mesh(mesh):
    out = jax.jit(run)(*operands)
  close(out, naive.aw_conv(*operands), 1e-4)


def test_a_mesh_without_a_data_axis_changes_nothing():
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('model',))
  operands = floats()
  with jax.set_mesh(mesh):
    out = jax.jit(aw_conv)(*operands)
  close(out, naive.aw_conv(*operands), 1e-4)
