"""The attention-augmented convolution against numpy float64, and its counts."""

import functools

import jax
import jax.numpy as jnp
import layer_cases
from layer_cases import KEY, check_gradients
import naive
import naive_augmented
import numpy as np
import pytest

from awconv_jax.layers.attention_augmented import AugmentedConv
from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.layers.conv import Conv, pair

SIDES = ((1, 1), (1, 1))

close = functools.partial(layer_cases.close, tolerance=1e-4)
pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

# Two heads of three key dimensions, and two of the six features.
small = functools.partial(
    AugmentedConv,
    features=6,
    kernel_size=(3, 3),
    padding=SIDES,
    heads=2,
    min_key_dims=3,
)


def draw(layer, *shape, dtype=np.float32, init_size=None):
  """Returns random images and parameters, these for another size if given."""
  seen = jax.ShapeDtypeStruct((1, *(init_size or shape[1:3]), shape[3]), dtype)
  variables = layer_cases.random_variables(layer, seen, 1, dtype)
  return layer_cases.images(*shape, dtype=dtype), variables['params']


def apply(layer, params, x, **options):
  return jax.jit(layer.apply)({'params': params}, x, **options)


def reference(layer, x, params, **options):
  """Returns the numpy layer's output for the fields of a layer of two heads."""
  return naive_augmented.augmented_conv(
      x,
      params,
      2,
      strides=pair(layer.strides),
      padding=layer.padding,
      downsample=layer.downsample,
      **options,
  )


# Fields, the image's height and width, and those at init.
PLACES = {
    'plain': (dict(), (3, 4), None),
    'strided': (dict(strides=(2, 2), use_bias=False), (5, 6), None),
    'strided_coarse': (dict(strides=(2, 1), downsample=2), (6, 5), None),
    'not_relative': (dict(relative=False), (3, 4), None),
    'taller_than_at_init': (dict(), (5, 2), (3, 4)),
}
MORE_PLACES = {
    'coarse': (dict(downsample=3), (5, 4), None),
    'same': (dict(padding='SAME', strides=(2, 2)), (6, 5), None),
    'asymmetric': (dict(padding=((2, 0), (0, 1))), (4, 4), None),
    'smaller_than_at_init': (dict(), (3, 2), (4, 5)),
}


@pytest.mark.parametrize('name', PLACES)
def test_layer_and_its_gradient_equal_numpy(name):
  fields, size, init_size = PLACES[name]
  with jax.enable_x64(True):
    layer = small(**fields, param_dtype=jnp.float64)
    x, params = draw(layer, 2, *size, 3, dtype=np.float64, init_size=init_size)
    expected = reference(layer, x, params)
    weights = np.random.default_rng(1).normal(size=expected.shape)

    def loss(x, params):
      out = layer.apply({'params': params}, x)
      return jnp.sum(out * weights), out

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    gradients, out = jax.tree.map(np.asarray, jax.jit(gradient)(x, params))
  np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)

  def naive_loss(parts):
    return np.sum(reference(layer, *parts) * weights)

  check_gradients(naive_loss, (x, params), gradients)


@pytest.mark.parametrize('name', MORE_PLACES)
def test_layer_equals_numpy(name):
  fields, size, init_size = MORE_PLACES[name]
  layer = small(**fields)
  x, params = draw(layer, 2, *size, 3, init_size=init_size)
  close(apply(layer, params, x), reference(layer, x, params))


def test_the_convolution_may_be_an_aw_convolution():
  aw = functools.partial(AWConv, reduction=1, norm='layer', gate='tanh')
  layer = small(convolution=aw, use_bias=False)
  x, params = draw(layer, 2, 4, 5, 3)
  out = apply(layer, params, x)
  options = dict(train=False, gate='tanh', norm='layer', padding=SIDES)
  own = {'params': params['conv']}
  branch = naive.aw_conv_layer(x, own, groups_out=4, **options)
  close(out, reference(layer, x, params, conv=branch))
  assert 'bias' not in params['conv'] and 'attention' in params['conv']


def test_a_partials_own_fields_win():
  layer = small(
      convolution=functools.partial(Conv, kernel_dilation=2, use_bias=False)
  )
  wide = small(convolution=layer.convolution, padding=2, relative=False)
  x, params = draw(wide, 1, 5, 5, 3)
  assert (
      'bias' not in params['conv'] and 'bias' in params['attention']['project']
  )
  # Dilated windows are wider, and centred on the same positions: attention is
  # that of a plain window with its padding.
  dense = small(padding=1, relative=False)
  plain = params | {'conv': params['conv'] | {'bias': np.zeros(4, np.float32)}}
  out, own = apply(wide, params, x), apply(dense, plain, x)
  close(out[..., 4:], own[..., 4:])
  assert not np.allclose(out[..., :4], own[..., :4])


@pytest.mark.parametrize(
    'fields, sizes',
    [
        (dict(strides=(3, 3)), [(4, 2), (3, 6)]),
        (dict(strides=(2, 2), downsample=2), [(5, 4), (2, 3)]),
        (dict(padding='VALID'), [(5, 3), (3, 6)]),
    ],
)
def test_a_padded_image_gives_what_the_image_alone_does(fields, sizes):
  layer = small(**fields)
  # Tables smaller than the images, whose offsets must not move in the padding.
  x, params = draw(layer, 2, 5, 6, 3, init_size=(3, 4))
  cleared = np.zeros_like(x)
  for n, (h, w) in enumerate(sizes):
    cleared[n, :h, :w] = x[n, :h, :w]
  out = apply(layer, params, cleared, valid_size=np.array(sizes))
  for n, (h, w) in enumerate(sizes):
    alone = reference(layer, x[n : n + 1, :h, :w], params)
    assert alone.size
    close(out[n : n + 1, : alone.shape[1], : alone.shape[2]], alone)
  assert not np.allclose(out, reference(layer, cleared, params), atol=1e-2)


def test_content_of_the_padding_never_reaches_attention():
  layer = small(strides=2, downsample=2)
  x, params = draw(layer, 1, 5, 6, 3)
  sizes = np.array([(3, 4)])
  x[:, 3:] = x[:, :, 4:] = np.nan

  def loss(params):
    out = layer.apply({'params': params}, x, valid_size=sizes)
    return jnp.sum(out[..., 4:] ** 2)

  value, gradients = jax.jit(jax.value_and_grad(loss))(params)
  assert np.isfinite(value) and value > 0
  leaves = jax.tree.leaves(gradients['attention'])
  assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_memory_is_of_pairs_of_positions_and_not_times_dimensions():
  layer = small()
  x = jax.ShapeDtypeStruct((1, 12, 12, 3), jnp.float32)
  variables = jax.eval_shape(layer.init, KEY, x)
  jaxpr = jax.make_jaxpr(layer.apply)(variables, x)
  sizes = [var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars]
  assert max(sizes) == 2 * 144**2  # the logits of two heads


def test_bfloat16_computes_narrow_with_wide_parameters():
  layer = small(dtype=jnp.bfloat16, downsample=2, strides=2)
  x, _ = draw(layer, 2, 7, 5, 3)
  narrow = jnp.asarray(x, jnp.bfloat16)
  variables = jax.jit(layer.init)(KEY, narrow)
  for leaf in jax.tree.leaves(variables):
    assert leaf.dtype == jnp.float32
  out = jax.jit(layer.apply)(variables, narrow)
  assert out.dtype == jnp.bfloat16
  wide = jax.tree.map(np.float64, variables['params'])
  layer_cases.close(np.float32(out), reference(layer, x, wide), 3e-2)


def shapes(layer, size, channels):
  x = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
  params = jax.eval_shape(layer.init, KEY, x)['params']
  return jax.tree.map(lambda a: a.shape, params)


def test_parameters_of_a_layer():
  layer = AugmentedConv(256, 3, strides=2, padding=1)
  assert shapes(layer, (28, 20), 64) == {
      'conv': {'kernel': (3, 3, 64, 232), 'bias': (232,)},
      'attention': {
          'qkv': {'kernel': (64, 344)},
          'relative_rows': (27, 20),
          'relative_columns': (19, 20),
          'project': {'kernel': (24, 24), 'bias': (24,)},
      },
  }
  plain = AugmentedConv(256, 3, relative=False, use_bias=False, downsample=2)
  own = shapes(plain, (9, 9), 64)
  assert set(own['attention']) == {'qkv', 'project'}
  assert 'bias' not in own['conv'] and 'bias' not in own['attention']['project']


@pytest.mark.parametrize(
    'features, fields, dk, dv',
    [
        (512, dict(), 160, 48),
        (1024, dict(), 208, 104),
        (40, dict(), 160, 8),
        (64, dict(heads=4, min_key_dims=1), 12, 8),
    ],
)
def test_dimensions_are_the_nearest_multiple_of_heads(features, fields, dk, dv):
  tree = shapes(AugmentedConv(features, 1, **fields), (2, 2), 4)
  assert tree['attention']['project']['kernel'] == (dv, dv)
  assert tree['attention']['qkv']['kernel'] == (4, 2 * dk + dv)
  assert tree['conv']['kernel'][-1] == features - dv


def test_attention_must_leave_features_to_the_convolution():
  with pytest.raises(ValueError, match='6 heads take 6 of 6 features'):
    jax.eval_shape(small(heads=6).init, KEY, jnp.ones((1, 4, 4, 3)))
