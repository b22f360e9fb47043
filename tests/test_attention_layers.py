"""What single attention layers do; test_layers.py has what all of them do."""

import functools

import jax
import jax.numpy as jnp
import naive
import naive_attention
import numpy as np
import pytest
from random_values import KEY, close, images, of_layer

from awconv_jax.errors import InputError
from awconv_jax.layers.attention_augmented import AugmentedConv
from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.layers.bam import BAM
from awconv_jax.layers.cbam import CBAM
from awconv_jax.layers.conv import Conv
from awconv_jax.layers.coordinate_attention import CoordinateAttention
from awconv_jax.layers.eca import ECA
from awconv_jax.layers.gather_excite import GatherExcite
from awconv_jax.layers.simam import SimAM
from awconv_jax.layers.squeeze_excite import SqueezeExcite

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

SIDES = ((1, 1), (1, 1))
small = functools.partial(
    AugmentedConv, 6, (3, 3), padding=SIDES, heads=2, min_key_dims=3
)


def params_of(layer, *shape):
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  params = jax.eval_shape(layer.init, KEY, x)['params']
  return jax.tree.map(lambda a: a.shape, params)


@pytest.mark.parametrize(
    'layer', [SqueezeExcite(), CBAM(), BAM(), GatherExcite(form='theta_plus')]
)
def test_there_is_a_hidden_channel_however_few_there_are(layer):
  name = 'channel_reduce' if isinstance(layer, BAM) else 'reduce'
  assert params_of(layer, 4, 4, 8)[name]['kernel'] == (8, 1)


def test_the_spatial_gate_of_cbam_starts_as_one_half():
  layer, x = CBAM(reduction=2), images(2, 6, 5, 6)
  variables = jax.jit(layer.init)(KEY, x)
  # Without the last layer the gate of the channels is sigmoid(0), too.
  expand = jax.tree.map(jnp.zeros_like, variables['params']['expand'])
  variables['params']['expand'] = expand
  np.testing.assert_array_equal(jax.jit(layer.apply)(variables, x), x / 4)


@pytest.mark.parametrize(
    'channels, size, fields',
    [
        *((1, 1, {}), (3, 1, {}), (8, 3, {}), (64, 3, {}), (128, 5, {})),
        *((1024, 5, {}), (2048, 7, {}), (256, 11, dict(b=-30))),
        *((256, 9, dict(gamma=1, b=0.5)), (256, 9, dict(kernel_size=9))),
    ],
)
def test_the_kernel_of_eca_grows_with_the_channels(channels, size, fields):
  kernel = params_of(ECA(**fields), 4, 4, channels)['conv']['kernel']
  assert kernel == (size, 1, 1)


def test_coordinate_attention_adds_to_mobile_net_what_its_authors_count():
  added = 0
  # The channels inside of its blocks, and how many blocks have them.
  for channels, blocks in zip(
      (96, 144, 192, 384, 576, 960), (1, 2, 3, 4, 3, 3), strict=True
  ):
    params = jax.eval_shape(
        CoordinateAttention().init, KEY, jnp.ones((1, 4, 4, channels))
    )['params']
    added += blocks * sum(leaf.size for leaf in jax.tree.leaves(params))
  assert f'{(3_504_872 + added) / 1e6:.2f}' == '3.95'


def test_one_position_is_as_likely_as_any_other_of_simam():
  x = images(2, 1, 1, 3)
  close(jax.jit(SimAM().apply)({}, x), x / (1 + np.exp(-0.5)))


@pytest.mark.parametrize(
    'fields, words',
    [
        (dict(extent=6), "extent=6 must be a power of two.*'theta'"),
        (dict(extent=1), 'extent=1 must be'),
        ({}, r'at most \(4, 5\), as at init, not \(4, 6\); .*extent=8'),
    ],
)
def test_where_gather_excite_has_no_weights_is_one_line(fields, words):
  layer = GatherExcite(form='theta', **fields)
  seen, larger = np.ones((1, 4, 5, 2)), np.ones((1, 4, 6, 2))
  with pytest.raises(InputError, match=words):
    variables = jax.eval_shape(layer.init, KEY, seen)
    jax.eval_shape(layer.apply, variables, larger)


def test_the_convolution_of_aa_may_be_an_aw_convolution():
  aw = functools.partial(AWConv, reduction=1, norm='layer', gate='tanh')
  layer, x = small(convolution=aw, use_bias=False), images(2, 4, 5, 3)
  variables = of_layer(layer, x)
  own = variables['params']['conv']
  options = dict(train=False, groups_out=4, gate='tanh', norm='layer')
  branch = naive.aw_conv_layer(x, {'params': own}, padding=SIDES, **options)
  options = dict(heads=2, padding=SIDES, conv=branch)
  expected, _ = naive_attention.aa(x, variables, **options)
  close(jax.jit(layer.apply)(variables, x), expected, 1e-4)
  assert 'bias' not in own and 'attention' in own


def test_a_partials_own_fields_win():
  dilated = functools.partial(Conv, kernel_dilation=2, use_bias=False)
  wide = small(convolution=dilated, padding=2, relative=False)
  x = images(1, 5, 5, 3)
  params = of_layer(wide, x)['params']
  assert 'bias' not in params['conv']
  assert 'bias' in params['attention']['project']
  # Dilated windows are wider, and centred on the same positions: attention is
  # that of a plain window with its padding.
  plain = params | {'conv': params['conv'] | {'bias': np.zeros(4, np.float32)}}
  out = wide.apply({'params': params}, x)
  own = small(relative=False).apply({'params': plain}, x)
  close(out[..., 4:], own[..., 4:], 1e-4)
  assert not np.allclose(out[..., :4], own[..., :4])


def test_content_of_the_padding_never_reaches_the_gradient_of_aa():
  layer, x = small(strides=2, downsample=2), images(1, 5, 6, 3)
  params = of_layer(layer, x)['params']
  x[:, 3:] = x[:, :, 4:] = np.nan

  def loss(params):
    out = layer.apply({'params': params}, x, valid_size=np.array([(3, 4)]))
    return jnp.sum(out[..., 4:] ** 2)

  value, gradients = jax.jit(jax.value_and_grad(loss))(params)
  assert np.isfinite(value) and value > 0
  leaves = jax.tree.leaves(gradients['attention'])
  assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_memory_of_aa_is_of_pairs_of_positions_and_not_times_dimensions():
  layer, x = small(), jax.ShapeDtypeStruct((1, 12, 12, 3), jnp.float32)
  variables = jax.eval_shape(layer.init, KEY, x)
  jaxpr = jax.make_jaxpr(layer.apply)(variables, x)
  sizes = [var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars]
  assert max(sizes) == 2 * 144**2  # the logits of two heads


@pytest.mark.parametrize(
    'features, fields, dk, dv',
    [
        (256, dict(strides=2, padding=1), 160, 24),
        (256, dict(relative=False, use_bias=False, downsample=2), 160, 24),
        (512, {}, 160, 48),
        (1024, {}, 208, 104),
        (40, {}, 160, 8),
        (64, dict(heads=4, min_key_dims=1), 12, 8),
    ],
)
def test_parameters_of_aa(features, fields, dk, dv):
  tree = params_of(AugmentedConv(features, 3, **fields), 28, 20, 64)
  rows, columns = (14, 10) if 'strides' in fields else (28, 20)
  heads = fields.get('heads', 8)
  want = {
      'conv': {'kernel': (3, 3, 64, features - dv), 'bias': (features - dv,)},
      'attention': {
          'qkv': {'kernel': (64, 2 * dk + dv)},
          'relative_rows': (2 * rows - 1, dk // heads),
          'relative_columns': (2 * columns - 1, dk // heads),
          'project': {'kernel': (dv, dv), 'bias': (dv,)},
      },
  }
  if 'relative' in fields:
    for part in (want['conv'], want['attention']['project']):
      del part['bias']
    del (
        want['attention']['relative_rows'],
        want['attention']['relative_columns'],
    )
  assert tree == want


def test_attention_must_leave_features_to_the_convolution():
  with pytest.raises(ValueError, match='6 heads take 6 of 6 features'):
    params_of(small(heads=6), 4, 4, 3)
