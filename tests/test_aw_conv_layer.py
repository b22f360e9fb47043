"""AWConv against numpy float64, and as a drop-in for `nn.Conv`."""

import functools

from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp
from layer_cases import KEY, check_gradients, close, images, random_variables
import naive
import numpy as np
import pytest

from awconv_jax import config
from awconv_jax.layers.attention import IN_BLOCK
from awconv_jax.layers.aw_conv import AWConv, expansion_factor
from awconv_jax.layers.conv import Conv, pair

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def apply(layer, variables, x, mutable=(), **options):
  """Returns the jitted call's result; train is static."""
  call = functools.partial(layer.apply, mutable=list(mutable) or False)
  if 'train' in options:
    call = functools.partial(call, train=options.pop('train'))
  return jax.jit(call)(variables, x, **options)


def sown_maps(layer, variables, x, **options):
  """Returns the output and the attention maps of one call."""
  out, sown = apply(layer, variables, x, ['intermediates'], **options)
  return out, sown['intermediates']['attention_maps'][0]


# Fields that the reference has by the same names, those it has not, and train.
PLACES = dict(strides=(2, 1), padding=((2, 1), (0, 3)))
REFERENCE = {
    'paper_train': ({}, {}, True),
    'paper_inference': ({}, {}, False),
    'out_tanh_train': (
        dict(gate='tanh'),
        dict(expansion_axis='out', kernel_dilation=2),
        True,
    ),
    'relu_layer_norm_full_maps': (
        dict(gate='relu', norm='layer'),
        dict(expansion_axis='none', use_bias=False),
        True,
    ),
    'no_norm_no_residual': (
        dict(norm='none', gate='none', residual=False),
        {},
        False,
    ),
    'groups_strides_padding': (PLACES, dict(feature_group_count=2), True),
}


@pytest.mark.parametrize('name', REFERENCE)
def test_layer_and_its_gradient_equal_numpy(name):
  known, fields, train = REFERENCE[name]
  fields = known | fields
  reference = known | dict(
      train=train,
      groups_out=3 if fields.get('expansion_axis') == 'out' else 6,
      groups=fields.get('feature_group_count', 1),
      dilation=(fields.get('kernel_dilation', 1),) * 2,
  )
  with jax.enable_x64(True):
    layer = AWConv(6, (3, 3), expansion=2, param_dtype=jnp.float64, **fields)
    x = images(2, 6, 5, 4, dtype=np.float64)
    variables = random_variables(layer, x, dtype=np.float64)
    parts = x, variables['params']
    expected = naive.aw_conv_layer(x, variables, **reference)
    weights = images(*expected.shape, seed=1, dtype=np.float64)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(parts):
      own = variables | {'params': parts[1]}
      options = dict(train=train, mutable=['batch_stats'])
      out, _ = layer.apply(own, parts[0], **options)
      return jnp.sum(out * weights), out

    gradients, out = jax.tree.map(np.asarray, run(parts))
  assert out.dtype == np.float64
  np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)

  def naive_loss(parts):
    own = variables | {'params': parts[1]}
    return np.sum(naive.aw_conv_layer(parts[0], own, **reference) * weights)

  check_gradients(naive_loss, parts, gradients, atol=1e-5)


def test_running_statistics_move_towards_the_batchs_in_training():
  layer = AWConv(4, (3, 3), norm_momentum=0.75)
  x = images(2, 6, 5, 4)
  variables = random_variables(layer, x)
  _, moved = apply(layer, variables, x, ['batch_stats'], train=True)
  dense = variables['params']['attention']['pointwise1']
  hidden = naive.dense(naive.adaptive_pool(x, (3, 3)), dense)
  old = variables['batch_stats']['attention']['norm1']
  new = moved['batch_stats']['attention']['norm1']
  close(new['mean'], 0.75 * old['mean'] + 0.25 * hidden.mean((0, 1, 2)), 1e-4)
  close(new['var'], 0.75 * old['var'] + 0.25 * hidden.var((0, 1, 2)), 1e-4)


def test_who_decides_whether_the_batchs_statistics_are_used():
  layer, x = AWConv(4, (3, 3)), images(2, 4, 4, 4)
  variables = random_variables(layer, x)

  def call(mutable=('batch_stats',), field=None, **options):
    result = apply(layer.clone(train=field), variables, x, mutable, **options)
    return result[0] if mutable else result

  trained, evaluated = call(train=True), call(train=False)
  assert not np.allclose(trained, evaluated)
  np.testing.assert_array_equal(call(), trained)  # Mutable means training,
  np.testing.assert_array_equal(call(()), evaluated)  # fixed inference,
  np.testing.assert_array_equal(call(field=False), evaluated)  # or the field.
  with pytest.raises(ValueError, match='train'):
    call(field=True, train=True)


# `nn.Conv`'s call: fields, and the input's shape if it is not (2, 6, 5, 4).
DROP_IN = {
    'kernel_1x1': dict(kernel_size=(1, 1)),
    'kernel_3x1_no_bias': dict(kernel_size=(3, 1), use_bias=False),
    'none': dict(strides=None, kernel_dilation=None),
    'padding_number': dict(padding=2),
    'padding_list': dict(padding=[(0, 2), (1, 3)]),
    'padding_mixed_strided': dict(padding=(1, (0, 3)), strides=(2, 1)),
    'mask': dict(mask=np.arange(144).reshape(3, 3, 4, 4) % 3 > 0),
    'valid': dict(padding='VALID'),
    'same_lower': dict(padding='SAME_LOWER', strides=2, shape=(2, 6, 6, 4)),
    'circular_even_kernel_strided': dict(
        padding='CIRCULAR', kernel_size=(2, 4), strides=2
    ),
    'circular_dilated': dict(padding='CIRCULAR', kernel_dilation=2),
    'reflect': dict(padding='REFLECT', kernel_dilation=(1, 2)),
    'depthwise': dict(feature_group_count=4),
    'no_batch_axis': dict(shape=(6, 5, 4)),
    'two_batch_axes': dict(strides=2, shape=(2, 3, 6, 5, 4)),
    'one_position': dict(shape=(2, 1, 1, 4)),
    'smaller_than_the_grid': dict(shape=(2, 2, 5, 4)),
}


@pytest.mark.parametrize('name', DROP_IN)
def test_drop_in_for_flax_conv(name):
  fields = dict(features=4, kernel_size=(3, 3)) | DROP_IN[name]
  x = images(*fields.pop('shape', (2, 6, 5, 4)))
  plain, layer = nn.Conv(**fields), AWConv(**fields, gate='tanh')
  # nn.Conv masks NumPy's arrays in place.
  loaded = jax.tree.map(jnp.asarray, random_variables(plain, x)['params'])
  variables = random_variables(layer, x)
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


@pytest.mark.parametrize('layer', [AWConv(4, (3, 3)), Conv(4, (3, 3))])
def test_flax_records_the_output_once(layer):
  _, seen = jax.eval_shape(
      functools.partial(layer.init_with_output, capture_intermediates=True),
      KEY,
      images(1, 4, 4, 2),
  )
  assert len(seen['intermediates']['__call__']) == 1


def test_numpy_integers_are_integers():
  x = images(2, 7, 6, 4)
  numbers = dict(kernel_size=3, strides=2, kernel_dilation=2, pool_size=2)
  own = {k: np.int64(v) for k, v in numbers.items()}
  plain, own = AWConv(4, **numbers), AWConv(4, **own)
  variables = random_variables(plain, x)
  expected = apply(plain, variables, x)
  np.testing.assert_array_equal(apply(own, variables, x), expected)


@pytest.mark.parametrize(
    'norm, gate', [('batch', 'tanh'), ('layer', 'none'), ('none', 'tanh')]
)
def test_identity_start_has_zero_maps_but_a_gradient(norm, gate):
  layer = AWConv(4, (3, 3), gate=gate, identity_start=True, norm=norm)
  x = images(2, 5, 5, 4)
  variables = jax.jit(layer.init)(KEY, x)
  _, maps = sown_maps(layer, variables, x)
  np.testing.assert_array_equal(maps, 0)

  @jax.jit
  @jax.grad
  def gradient(params):
    out = layer.apply(
        variables | {'params': params}, x, train=True, mutable=['batch_stats']
    )[0]
    return jnp.sum(out**2)

  grads = gradient(variables['params'])['attention']
  check_that_all_learn(grads['pointwise2' if norm == 'none' else 'norm2'])


def test_bfloat16_computes_narrow_and_keeps_wide():
  x = images(2, 6, 5, 4)
  layer = AWConv(4, (3, 3))
  variables = jax.jit(layer.init)(KEY, x)
  wide, _ = apply(layer, variables, x, ['batch_stats'], train=True)
  layer = AWConv(4, (3, 3), dtype=jnp.bfloat16)
  out, moved = apply(layer, variables, x, ['batch_stats'], train=True)
  assert out.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
  for leaf in jax.tree.leaves((variables, moved)):
    assert leaf.dtype == jnp.float32
  assert np.abs(np.float32(out) - wide).max() <= 3e-2 * np.abs(wide).max()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_without_dtype_the_wider_of_input_and_parameters_is_taken(dtype):
  layer = AWConv(4, (3, 3), param_dtype=dtype)
  x = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.bfloat16)
  variables = jax.eval_shape(layer.init, KEY, x)
  assert variables['params']['kernel'].dtype == dtype
  assert jax.eval_shape(layer.apply, variables, x).dtype == dtype


def test_maps_of_a_padded_image_are_those_of_the_cropped_one():
  layer = AWConv(4, (3, 3))
  sizes = np.array([(4, 7), (6, 2)])
  x = images(2, 6, 7, 4)
  variables = random_variables(layer, x)
  _, maps = sown_maps(layer, variables, x, valid_size=sizes)
  for n, (h, w) in enumerate(sizes):
    crop = x[n : n + 1, :h, :w]
    out, own = sown_maps(layer, variables, crop)
    close(maps[n], own[0])
    # So the whole output is, where the padding is zero as a convolution's is.
    padded = np.zeros_like(x[:1])
    padded[:, :h, :w] = crop
    whole = apply(layer, variables, padded, valid_size=sizes[n : n + 1])
    close(whole[:, :h, :w], out)
  ignored = sown_maps(layer, variables, x)[1]
  assert not np.allclose(maps, ignored, atol=1e-3)


def test_content_of_the_padding_never_reaches_maps_and_statistics():
  layer = AWConv(4, (3, 3), train=True)
  x = images(2, 6, 7, 4)
  variables = random_variables(layer, x)
  soiled = x.copy()
  soiled[0, 4:] = 1e6
  soiled[1, :, 2:] = -1e6
  options = dict(valid_size=np.array([(4, 7), (6, 2)]))
  watched = ['intermediates', 'batch_stats']
  _, clean = apply(layer, variables, x, watched, **options)
  _, dirty = apply(layer, variables, soiled, watched, **options)
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_valid_size_follows_the_batch_axes():
  layer = AWConv(4, (3, 3))
  x = images(2, 3, 6, 7, 4)
  sizes = np.random.default_rng(0).integers(1, 6, (2, 3, 2))
  variables = jax.jit(layer.init)(KEY, x)
  assert set(variables) == {'params', 'batch_stats'}  # No maps.
  out = apply(layer, variables, x, valid_size=sizes)
  one = apply(layer, variables, x[1, 2], valid_size=sizes[1, 2])
  close(out[1, 2], one)


def check_that_all_learn(gradients):
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), path


def step_of_one(layer):
  """Returns the result and the gradients for a batch of one."""
  x = images(1, 5, 4, 4)
  variables = random_variables(layer, x)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient(params):
    own = variables | {'params': params}
    result = layer.apply(own, x, mutable=['batch_stats'])
    return jnp.sum(result[0] * images(1, 5, 4, 4, seed=1)), result

  gradients, result = gradient(variables['params'])
  return result, gradients


@pytest.mark.parametrize(
    'kernel_size, norm', [(3, 'batch'), (3, 'none'), (1, 'layer')]
)
def test_every_parameter_learns_from_a_batch_of_one(kernel_size, norm):
  layer = AWConv(4, kernel_size, norm=norm, train=True)
  check_that_all_learn(step_of_one(layer)[1])


def test_batch_norm_over_a_single_cell_is_finite():
  result = step_of_one(AWConv(4, 1, train=True))
  for path, leaf in jax.tree_util.tree_leaves_with_path(result):
    assert np.all(np.isfinite(leaf)), path
  learn = jax.tree.map(lambda leaf: bool(np.any(leaf != 0)), result[-1])
  attention = learn.pop('attention')
  # As the class says: if this changes, so must its docstring.
  assert attention.pop('norm2') == {'scale': False, 'bias': True}
  assert not any(jax.tree.leaves(attention))
  assert all(jax.tree.leaves(learn))


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
        (4, [0, 2, 3], [0, 2, 3]),
        ((3, 5), [0, 1, 2], [0, 2, 4]),
    ],
)
def test_a_tap_takes_the_nearest_cell_of_another_grid(pool_size, rows, columns):
  layer = AWConv(4, (3, 3), pool_size=pool_size)
  x = images(2, 7, 6, 4)
  variables = random_variables(layer, x)
  _, maps = sown_maps(layer, variables, x)
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
        (dict(refinement='sse'), "refinement 'sse' .*known: cbam, eca, se"),
        (dict(identity_start=True, gate='relu'), "'none'.*gate='relu'"),
        (
            dict(identity_start=True, gate='tanh', residual=False),
            'residual=False',
        ),
        (dict(feature_group_count=3), r'x \(1, 4, 4, 4\).*groups=3'),
        (dict(kernel_size=(3,)), r'each of two axes, not \(3,\)'),
        (dict(padding=(1, 1, 1)), r'padding.*\(1, 1, 1\)'),
        (dict(input_dilation=2), 'input_dilation'),
        (dict(conv_general_dilated=jax.lax.conv), 'conv_general_dilated'),
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
  variables = random_variables(layer, x)

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


def test_works_and_learns_inside_an_nnx_model():
  x = images(2, 5, 4, 3)

  class Model(nnx.Module):

    def __init__(self, rngs):
      self.first = nnx.Conv(3, 4, (1, 1), rngs=rngs)
      layer = nnx.bridge.ToNNX(AWConv(4, (3, 3)), rngs=rngs)
      self.second = layer.lazy_init(jnp.zeros((1, 5, 4, 4)))

    def __call__(self, x, train):
      mutable = ['batch_stats'] if train else False
      return self.second(self.first(x), train=train, mutable=mutable)

  model = Model(nnx.Rngs(0))
  assert model(x, train=False).shape == (2, 5, 4, 4)
  before = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))

  @nnx.jit
  @nnx.grad
  def gradient(model, x):
    return jnp.mean(model(x, train=True) ** 2)

  check_that_all_learn(gradient(model, x))
  # Mean and variance of both norms.
  after = nnx.state(model, nnx.BatchStat)
  moved = jax.tree.map(lambda a, b: np.any(a != b), before, after)
  assert jax.tree.leaves(moved) == [True] * 4


@pytest.mark.parametrize('name', IN_BLOCK)
def test_maps_are_refined_as_an_activation_of_the_outputs(name):
  plain = AWConv(6, (3, 3), expansion=4)
  layer = plain.clone(refinement=name)
  x = images(2, 7, 6, 8)
  variables = random_variables(layer, x)
  inner = {k: v.pop('refinement', {}) for k, v in variables.items()}
  _, maps = sown_maps(plain, variables, x)
  variables = {k: v | {'refinement': inner[k]} for k, v in variables.items()}
  _, refined = sown_maps(layer, variables, x)
  assert maps.shape == refined.shape == (2, 3, 3, 2, 6)
  for run in range(2):
    expected = apply(IN_BLOCK[name](), inner, maps[:, :, :, run])
    close(refined[:, :, :, run], expected)
  assert not np.allclose(maps, refined)
  # By name, and by what makes it.
  made = plain.clone(refinement=IN_BLOCK[name])
  np.testing.assert_array_equal(sown_maps(made, variables, x)[1], refined)
