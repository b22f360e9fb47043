"""AWConv as a drop-in for `nn.Conv`, and its options."""

import dataclasses
import functools
import inspect

from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from random_values import KEY, close, images, of_layer

from awconv_jax import config
from awconv_jax.layers.attention import IN_BLOCK
from awconv_jax.layers.attention_augmented import AugmentedConv
from awconv_jax.layers.aw_conv import NORMS, AWConv, expansion_factor
from awconv_jax.layers.bam import BAM
from awconv_jax.layers.conv import (
    BatchNorm,
    Conv,
    ProductBatchNorm,
    batch_norm,
    pair,
)

IMAGES = (2, 6, 5, 4)

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def apply(layer, variables, x, mutable=(), **options):
  """Returns the jitted call's result; train is static."""
  call = functools.partial(layer.apply, mutable=list(mutable) or False)
  if 'train' in options:
    call = functools.partial(call, train=options.pop('train'))
  return jax.jit(call)(variables, x, **options)


def sown_maps(layer, variables, x):
  _, sown = apply(layer, variables, x, ['intermediates'])
  return sown['intermediates']['attention_maps'][0]


def test_train_may_be_given_in_the_call():
  layer, x = AWConv(4, (3, 3)), images(2, 4, 4, 4)
  variables = of_layer(layer, x)
  for train in (True, False):
    expected = apply(layer.clone(train=train), variables, x, ['batch_stats'])
    out = apply(layer, variables, x, ['batch_stats'], train=train)
    jax.tree.map(np.testing.assert_array_equal, out, expected)
  with pytest.raises(ValueError, match='train'):
    apply(layer.clone(train=True), variables, x, train=True)


@pytest.mark.parametrize(
    'fields, shape',
    [
        (dict(kernel_size=(1, 1)), IMAGES),
        (dict(kernel_size=(3, 1), use_bias=False), IMAGES),
        (dict(strides=None, kernel_dilation=None), IMAGES),
        (dict(padding=(1, (0, 3)), strides=(2, 1)), IMAGES),
        (dict(mask=np.arange(144).reshape(3, 3, 4, 4) % 3 > 0), IMAGES),
        (dict(padding='valid', input_dilation=np.array([1, 1])), IMAGES),
        (dict(padding='same', kernel_size=np.array([3, 2])), IMAGES),
        (dict(strides=np.array([2, 1]), kernel_dilation=[1, 2]), IMAGES),
        (dict(padding='SAME_LOWER', strides=2), (2, 6, 6, 4)),
        (dict(padding='CIRCULAR', kernel_size=(2, 4), strides=2), IMAGES),
        (dict(padding='REFLECT', kernel_dilation=(1, 2)), IMAGES),
        (dict(feature_group_count=4), IMAGES),
        ({}, (6, 5, 4)),
        (dict(strides=2), (2, 3, 6, 5, 4)),
        ({}, (2, 1, 1, 4)),
        ({}, (2, 2, 5, 4)),
    ],
)
def test_drop_in_for_flax_conv(fields, shape):
  fields, x = dict(features=4, kernel_size=(3, 3)) | fields, images(*shape)
  plain, layer = nn.Conv(**fields), AWConv(**fields, gate='tanh')
  # nn.Conv masks NumPy's arrays in place.
  loaded = jax.tree.map(jnp.asarray, of_layer(plain, x)['params'])
  variables = of_layer(layer, x)
  # `nn.Conv`'s own variables, under the same names; and maps of zero.
  assert set(loaded) == set(variables['params']) - {'attention'}
  variables['params'].update(loaded)
  last = variables['params']['attention']['norm2']
  last.update(scale=0 * last['scale'], bias=0 * last['bias'])

  @jax.jit
  def both(x):
    return plain.apply({'params': loaded}, x), layer.apply(variables, x)

  expected, out = both(x)
  assert out.shape == expected.shape and out.dtype == expected.dtype
  close(out, expected)


def test_arguments_by_position_are_those_of_flax_conv():
  def by_position(layer):
    parameters = inspect.signature(layer).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

  for layer in (AWConv, AugmentedConv, Conv):
    assert set(by_position(layer)) <= set(by_position(nn.Conv))
    made, plain = (
        of(16, (3, 3), 1, 'SAME', 1, 2, 4, False) for of in (layer, nn.Conv)
    )
    for field in dataclasses.fields(nn.Conv):
      if field.name not in ('parent', 'name'):
        assert getattr(made, field.name) == getattr(plain, field.name)


@pytest.mark.parametrize('mean', [0.0, 1000.0])
def test_norms_in_attention_are_exact_at_any_mean(mean):
  x = np.float32(mean + images(64, 3, 3, 8))
  exact, batch = np.float64(x), dict(use_running_average=False)
  for make, axes in (
      (functools.partial(NORMS['batch'], **batch), (0, 1, 2)),
      (batch_norm(BAM(train=True)), (0, 1, 2)),
      (NORMS['layer'], -1),
  ):
    # An epsilon of a thousandth of the variance weighs nothing.
    out, _ = make(epsilon=1e-9).init_with_output(KEY, x)
    want = exact - exact.mean(axes, keepdims=True)
    want /= exact.std(axes, keepdims=True)
    np.testing.assert_allclose(out, want, atol=1e-3)


@pytest.mark.parametrize('train', [True, False])
def test_the_norm_of_a_product_may_be_had_from_its_factors(train):
  fields = dict(use_running_average=not train)
  kernel, x = images(5, 7, seed=1), images(4, 3, 2, 5, seed=2)
  variables = of_layer(BatchNorm(**fields), x @ kernel)

  def step(norm, *args):
    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def gradient(variables, x, kernel):
      operands = (x, kernel) if norm is ProductBatchNorm else (x @ kernel,)
      layer = norm(**fields)
      out = layer.apply(variables, *operands, mutable=['batch_stats'])
      return jnp.sum(out[0] ** 3), out

    return gradient(*args)

  def wide(norm, x):
    with jax.enable_x64(True):
      return step(norm, *jax.tree.map(np.float64, (variables, x, kernel)))

  same = lambda tolerance: functools.partial(close, tolerance=tolerance)  # noqa: E731
  jax.tree.map(same(1e-10), wide(ProductBatchNorm, x), wide(BatchNorm, x))
  x += 300  # Far from zero by the standard deviation.
  (_, exact), _ = wide(BatchNorm, x)
  (_, out), _ = step(ProductBatchNorm, variables, x, kernel)
  jax.tree.map(same(1e-3), out, exact)


def test_inference_in_bfloat16_is_not_off_in_its_mean():
  x = jnp.asarray(images(256, 16, seed=1) + 30, jnp.bfloat16)
  kernel = images(16, 64, seed=2)
  norm = functools.partial(ProductBatchNorm, momentum=0, dtype=jnp.bfloat16)
  train, infer = norm(use_running_average=False), norm(use_running_average=True)
  variables = of_layer(BatchNorm(use_running_average=False), x @ kernel)
  _, found = train.apply(variables, x, kernel, mutable=['batch_stats'])
  out = infer.apply(variables | found, x, kernel).astype(jnp.float32)
  bias = variables['params']['bias']
  np.testing.assert_allclose(out.mean(0), bias, atol=3e-3)


@pytest.mark.parametrize('layer', [AWConv(4, (3, 3)), Conv(4, (3, 3))])
def test_flax_records_the_output_once(layer):
  init = functools.partial(layer.init_with_output, capture_intermediates=True)
  _, seen = jax.eval_shape(init, KEY, images(1, 4, 4, 2))
  assert len(seen['intermediates']['__call__']) == 1


def step(layer, x, variables):
  """Returns the gradients, the output and the statistics."""

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient(params):
    own = variables | {'params': params}
    result = layer.apply(own, x, mutable=['batch_stats'])
    return jnp.sum(result[0] * images(*x.shape, seed=1)), result

  return gradient(variables['params'])


def check_that_all_learn(gradients):
  for path, leaf in jax.tree.leaves_with_path(gradients):
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), path


@pytest.mark.parametrize(
    'norm, gate', [('batch', 'tanh'), ('layer', 'none'), ('none', 'tanh')]
)
def test_identity_start_has_zero_maps_but_a_gradient(norm, gate):
  layer = AWConv(4, (3, 3), gate=gate, identity_start=True, norm=norm)
  x = images(2, 5, 5, 4)
  variables = jax.jit(layer.init)(KEY, x)
  np.testing.assert_array_equal(sown_maps(layer, variables, x), 0)
  gradients = step(layer, x, variables)[0]['attention']
  check_that_all_learn(gradients['pointwise2' if norm == 'none' else 'norm2'])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_without_dtype_the_wider_of_input_and_parameters_is_taken(dtype):
  layer = AWConv(4, (3, 3), param_dtype=dtype)
  x = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.bfloat16)
  variables = jax.eval_shape(layer.init, KEY, x)
  assert variables['params']['kernel'].dtype == dtype
  assert jax.eval_shape(layer.apply, variables, x).dtype == dtype


def test_valid_size_follows_the_batch_axes():
  layer = AWConv(4, (3, 3))
  x = images(2, 3, 6, 7, 4)
  sizes = np.random.default_rng(0).integers(1, 6, (2, 3, 2))
  variables = jax.jit(layer.init)(KEY, x)
  assert set(variables) == {'params', 'batch_stats'}  # No maps.
  out = apply(layer, variables, x, valid_size=sizes)
  one = apply(layer, variables, x[1, 2], valid_size=sizes[1, 2])
  close(out[1, 2], one)


@pytest.mark.parametrize(
    'kernel_size, norm',
    [(3, 'batch'), (3, 'none'), (1, 'layer'), (1, 'batch')],
)
def test_parameters_learn_from_a_batch_of_one(kernel_size, norm):
  layer, x = AWConv(4, kernel_size, norm=norm, train=True), images(1, 5, 4, 4)
  gradients, result = step(layer, x, of_layer(layer, x))
  if (kernel_size, norm) == (1, 'batch'):
    # As the class says: if this changes, so must its docstring.
    branch = gradients.pop('attention')
    check_that_all_learn(branch['norm2'].pop('bias'))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(branch))
  check_that_all_learn((gradients, result))


@pytest.mark.parametrize(
    'channels, expansion, factor',
    [(64, 16, 16), (24, 16, 12), (7, 16, 7), (17, 16, 1), (3, 2, 1), (8, 1, 1)],
)
def test_expansion_falls_to_the_largest_divisor(channels, expansion, factor):
  assert expansion_factor(channels, expansion) == factor


@pytest.mark.parametrize(
    'fields, hidden', [({}, 4), ({'reduction': 2}, 16), ({'min_hidden': 1}, 2)]
)
def test_sizes_of_the_branch(fields, hidden):
  layer = AWConv(8, (3, 3), expansion=12, **fields)
  shapes = jax.eval_shape(layer.init, KEY, images(1, 3, 3, 32))
  branch = shapes['params']['attention']
  assert branch['pointwise1']['kernel'].shape == (32, hidden)
  assert branch['pointwise2']['kernel'].shape == (hidden, 4 * 8)


@pytest.mark.parametrize(
    'pool_size, rows, columns',
    [
        (1, [0, 0, 0], [0, 0, 0]),
        (np.int64(4), [0, 2, 3], [0, 2, 3]),
        ((3, 5), [0, 1, 2], [0, 2, 4]),
    ],
)
def test_a_tap_takes_the_nearest_cell_of_another_grid(pool_size, rows, columns):
  layer = AWConv(4, (3, 3), pool_size=pool_size)
  x = images(2, 7, 6, 4)
  variables = of_layer(layer, x)
  maps = sown_maps(layer, variables, x)
  branch = (variables[k]['attention'] for k in ('params', 'batch_stats'))
  grid = naive.attention_maps(x, *branch, pair(pool_size), 4)
  close(maps, grid[:, rows][:, :, columns], 1e-4)
  text = {'config.pool_size': str(pool_size)}
  assert config.complete({}, AWConv, text).pool_size == pool_size


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(gate='sigmoyd'), "gate 'sigmoyd' .did you mean 'sigmoid'"),
        (dict(norm=None), 'norm None .*known: batch, layer, none'),
        (dict(expansion_axis='c'), "axis 'c'; known: in, none, out"),
        (dict(refinement='sse'), "refinement 'sse' .*known: cbam, coord, eca"),
        (dict(identity_start=True, gate='relu'), "'none'.*gate='relu'"),
        (dict(identity_start=True, gate='none', residual=False), 'l=False'),
        (dict(feature_group_count=3), 'group_count=3 .* the 4 channels of'),
        (dict(kernel_size=(3,)), r'kernel_size=\(3,\) .* each of two axes'),
        (dict(padding=(1, 1, 1)), r'padding.*\(1, 1, 1\)'),
        (dict(input_dilation=2), 'input_dilation=2 .*nn.ConvTranspose'),
        (
            dict(conv_general_dilated=jax.lax.conv),
            'dilated=.* for every sample',
        ),
        (dict(padding='casual'), "padding 'CASUAL'.*known: CIRC.*, VALID"),
        (dict(mask=np.ones((3, 3, 1, 4))), r'mask is \(3, 3, 1, 4\), want'),
    ],
)
def test_impossible_fields_are_named(fields, message):
  layer = AWConv(**(dict(features=4, kernel_size=(3, 3)) | fields))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(layer.init, KEY, images(1, 4, 4, 4))


def test_a_sharded_batch_has_the_whole_batchs_statistics():
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  shared, batch = (
      jax.sharding.NamedSharding(mesh, p) for p in (jax.P(), jax.P('data'))
  )
  layer = AWConv(4, (3, 3))
  x = images(2 * jax.device_count(), 4, 3, 4)
  variables = of_layer(layer, x)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def step(variables, x):
    out, moved = layer.apply(variables, x, mutable=['batch_stats'])
    return jnp.mean(out**2), moved

  expected = jax.jit(step)(variables, x)
  with jax.set_mesh(mesh):
    sharded = jax.jit(step, in_shardings=(shared, batch))
    compiled = sharded.lower(variables, x).compile()
    out = compiled(jax.device_put(variables, shared), jax.device_put(x, batch))
  assert 'all-gather' not in compiled.as_text()
  jax.tree.map(lambda a, b: close(a, b, 1e-4), out, expected)


@pytest.mark.slow  # The layer for nnx is in test_nnx.
def test_works_and_learns_under_nnx():
  x, train = images(2, 5, 4, 4), dict(train=True, mutable=['batch_stats'])
  layer = nnx.bridge.ToNNX(AWConv(4, (3, 3)), rngs=nnx.Rngs(0)).lazy_init(x)
  assert layer(x, train=False).shape == (2, 5, 4, 4)
  before = jax.tree.map(np.asarray, nnx.state(layer, nnx.BatchStat))
  gradient = nnx.grad(lambda layer, x: jnp.mean(layer(x, **train) ** 2))
  check_that_all_learn(nnx.jit(gradient)(layer, x))
  # Mean and variance of both norms.
  after = nnx.state(layer, nnx.BatchStat)
  moved = jax.tree.map(lambda a, b: np.any(a != b), before, after)
  assert jax.tree.leaves(moved) == [True] * 4


@pytest.mark.parametrize('name', IN_BLOCK)
def test_maps_are_refined_as_an_activation_of_the_outputs(name):
  plain = AWConv(6, (3, 3), expansion=4)
  layer = plain.clone(refinement=name)
  x = images(2, 7, 6, 8)
  variables = of_layer(layer, x)
  inner = {k: v.pop('refinement', {}) for k, v in variables.items()}
  maps = sown_maps(plain, variables, x)
  variables = {k: v | {'refinement': inner[k]} for k, v in variables.items()}
  refined = sown_maps(layer, variables, x)
  assert maps.shape == refined.shape == (2, 3, 3, 2, 6)
  for run in range(2):
    expected = apply(IN_BLOCK[name](), inner, maps[:, :, :, run])
    close(refined[:, :, :, run], expected)
  assert not np.allclose(maps, refined)
  # By name, and by what makes it.
  made = plain.clone(refinement=IN_BLOCK[name])
  np.testing.assert_array_equal(sown_maps(made, variables, x), refined)
