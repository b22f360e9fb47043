"""What holds for all layers with attention, against numpy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import naive
import naive_attention
import naive_kernels
import numpy as np
import pytest
from random_values import KEY, images, of_layer

from awconv_jax.errors import InputError
from awconv_jax.layers.attention import partial_of
from awconv_jax.layers.attention_augmented import AugmentedConv
from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.layers.bam import BAM
from awconv_jax.layers.cbam import CBAM
from awconv_jax.layers.condconv import CondConv
from awconv_jax.layers.coordinate_attention import CoordinateAttention
from awconv_jax.layers.dynamic_conv import DynamicConv
from awconv_jax.layers.eca import ECA
from awconv_jax.layers.gather_excite import GatherExcite
from awconv_jax.layers.odconv import ODConv
from awconv_jax.layers.selective_kernel import SelectiveKernelConv
from awconv_jax.layers.simam import SimAM
from awconv_jax.layers.squeeze_excite import SqueezeExcite

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

SE, CBAM, BAM = (
    functools.partial(layer, reduction=2)
    for layer in (SqueezeExcite, CBAM, BAM)
)
ECA, SIMAM = functools.partial(ECA), functools.partial(SimAM)
COORD = functools.partial(CoordinateAttention, reduction=2, min_hidden=1)
GE = functools.partial(GatherExcite, form='theta_plus', extent=4, reduction=2)
AW = functools.partial(AWConv, features=6, kernel_size=(3, 3), expansion=2)
# Two heads of three key dimensions, and two of the six features.
AA = functools.partial(
    AugmentedConv,
    features=6,
    kernel_size=(3, 3),
    padding=((1, 1), (1, 1)),
    heads=2,
    min_key_dims=3,
)
COND, DYNAMIC, OD, SK = (
    functools.partial(layer, features=6, kernel_size=(3, 3))
    for layer in (CondConv, DynamicConv, ODConv, SelectiveKernelConv)
)
OD.keywords['min_hidden'] = SK.keywords['min_hidden'] = 5
DYNAMIC.keywords['temperature'] = 2.0
REFERENCES = {
    SE.func: naive_attention.se,
    CBAM.func: naive_attention.cbam,
    BAM.func: naive_attention.bam,
    ECA.func: naive_attention.eca,
    SIMAM.func: naive_attention.simam,
    COORD.func: naive_attention.coord,
    GE.func: naive_attention.ge,
    AW.func: naive_attention.aw,
    AA.func: naive_attention.aa,
    COND.func: naive_kernels.condconv,
    DYNAMIC.func: naive_kernels.dynamic,
    OD.func: naive_kernels.odconv,
    SK.func: naive_kernels.sk,
}
ACTIVATIONS = SE, CBAM, BAM, ECA, SIMAM, COORD, GE
NORMED = AW, CBAM, BAM
IN_PLACE = COND, DYNAMIC, OD, SK
ALL = *ACTIVATIONS, AW, AA


def reference(layer, x, variables):
  """Returns the output and the statistics after it by numpy."""
  return REFERENCES[layer.func](x, variables, **layer.keywords)


def make(layer, **dtypes):
  """Returns a layer with the dtypes that it has."""
  return partial_of(layer.func, dtypes, **layer.keywords)()


def apply(layer, variables, x, mutable=False, **options):
  call = functools.partial(layer.apply, mutable=mutable)
  return jax.jit(call)(variables, x, **options)


TRAIN, TEST = dict(train=True), dict(train=False)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
CASES = [
    (SE, {}),
    (CBAM, TRAIN),
    (CBAM, TEST | dict(spatial_size=3)),
    (BAM, TRAIN),
    (BAM, TRAIN | dict(combine='sum', dilation=1, norm_momentum=0.25)),
    (BAM, TEST | dict(dilation=2, norm_epsilon=0.5)),
    (ECA, dict(kernel_size=5)),
    (SIMAM, dict(regularization=0.25)),
    (COORD, TRAIN | dict(norm_epsilon=0.5)),
    (GE, TRAIN | dict(norm_momentum=0.75)),
    (GE, TRAIN | dict(form='theta', extent=None)),
    (GE, dict(form='theta_minus', extent=None)),
    (GE, dict(form='theta_minus', extent=4)),
    (AW, TRAIN),
    (AW, TRAIN | dict(expansion_axis='out', gate='tanh', norm_momentum=0.75)),
    (AW, TRAIN | dict(padding=((2, 1), (0, 3)), feature_group_count=2)),
    (AW, TEST | dict(kernel_dilation=2, strides=(2, 1))),
    (AW, dict(expansion_axis='none', gate='relu', norm='layer')),
    (AW, dict(gate='none', norm='none', residual=False, use_bias=False)),
    (AA, dict(strides=2, use_bias=False)),
    (AA, dict(strides=(2, 1), downsample=2)),
    (AA, dict(relative=False, padding=((2, 0), (0, 1)))),
    (AA, dict(padding='SAME', strides=2)),
    (AA, dict(downsample=4)),
    slow(COND, dict(experts=3)),
    (COND, dict(strides=2, padding=((1, 1), (0, 2)), feature_group_count=2)),
    (DYNAMIC, dict(reduction=2)),
    slow(DYNAMIC, dict(experts=1, use_bias=False)),
    (OD, TRAIN | dict(norm_momentum=0.75)),
    slow(OD, TEST | dict(feature_group_count=2, temperature=3.0, strides=2)),
    slow(OD, TEST | dict(experts=1, features=4, feature_group_count=4)),
    slow(OD, TRAIN | dict(experts=1, kernel_size=(1, 1))),
    slow(SK, TRAIN | dict(branches=3, use_bias=False)),
    (SK, TEST | dict(strides=2, padding=((1, 1), (0, 2)))),
    (SK, TEST | dict(kernel_dilation=2, padding=((2, 1), (2, 3)))),
]


@pytest.mark.parametrize('layer, fields', CASES)
def test_output_gradient_and_statistics_equal_numpy(layer, fields):
  layer = functools.partial(layer, **fields)
  with jax.enable_x64(True):
    # Three images: a norm over two values knows nothing but their order.
    x = images(3, 5, 4, 4, dtype=np.float64)
    made = make(layer, param_dtype=jnp.float64)
    # Tables of relative positions are of other sizes than the images, and a
    # window of the whole image is larger.
    seen = np.zeros((1, 6 if layer.func is GE.func else 4, 7, 4))
    variables = of_layer(made, seen, dtype=np.float64)
    stats = {k: v for k, v in variables.items() if k != 'params'}
    expected, moved_by_numpy = reference(layer, x, variables)
    weights = images(*expected.shape, seed=2, dtype=np.float64)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(parts):
      own = {'params': parts[1], **stats}
      result = made.apply(own, parts[0], mutable=['batch_stats'])
      return jnp.sum(result[0] * weights), result

    parts = x, variables.get('params', {})
    gradients, (out, moved) = jax.tree.map(np.asarray, run(parts))
  assert out.dtype == np.float64
  same = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
  same(out, expected)
  jax.tree.map(same, moved, moved_by_numpy)
  # Along one random direction for each array.
  leaves, structure = jax.tree.flatten(parts)
  values = dict(enumerate(leaves))

  def loss(values):
    x, params = structure.unflatten(values.values())
    return np.sum(reference(layer, x, {'params': params, **stats})[0] * weights)

  for i, gradient in enumerate(jax.tree.leaves(gradients)):
    directions = {k: np.zeros_like(v) for k, v in values.items()}
    directions[i] = images(*leaves[i].shape, seed=i, dtype=np.float64)
    want = naive.directional(loss, values, directions)
    got = np.sum(gradient * directions[i])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'layer', (COND, functools.partial(DYNAMIC, reduction=1))
)
def test_mixtures_are_sown_and_the_mask_is_of_every_expert(layer):
  x = images(3, 6, 5, 6)
  mask = np.arange(54 * 6).reshape(3, 3, 6, 6) % 3 > 0
  made = layer(experts=3, use_bias=False, mask=mask, padding='REFLECT')
  variables = of_layer(made, x)
  out, sown = apply(made, variables, x, ['intermediates'])
  (mixture,) = sown['intermediates']['kernel_weights']
  assert mixture.shape == (3, 3) and np.ptp(mixture, 0).min() > 1e-4
  kernels = np.tensordot(mixture, mask * variables['params']['kernel'], 1)
  wide = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], 'reflect')
  for n, kernel in enumerate(kernels):
    want = naive.conv(wide[n : n + 1], kernel, padding='VALID')
    np.testing.assert_allclose(out[n : n + 1], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('layer', (*ACTIVATIONS, *IN_PLACE, AA))
def test_other_axes_are_refused(layer):
  for shape in ((6, 5, 4), (1, 2, 6, 5, 4), (2, 0, 5, 4)):
    with pytest.raises(InputError, match=r'input is \(.*\), want \[N, H, W'):
      jax.eval_shape(layer().init, KEY, images(*shape))


@pytest.mark.parametrize('layer', ACTIVATIONS)
def test_a_gate_of_integers_would_be_zero_or_one(layer):
  with pytest.raises(InputError, match='of int32, want a floating dtype'):
    layer().init(KEY, np.ones((1, 2, 2, 4), np.int32))


@pytest.mark.parametrize(
    'layer, fields, words',
    [
        (DYNAMIC, dict(temperature=0), 'must be a number, greater than 0'),
        (OD, dict(norm_momentum=1.0), 'at least 0 and less than 1'),
        (OD, dict(norm_epsilon=float('nan')), 'must be a number, at least 0'),
        (COND, dict(experts=True), 'must be a whole number, at least 1'),
        (COND, dict(kernel_dilation=(1, 0)), 'for each of two axes'),
        (COND, dict(chunk=0), 'must be a whole number, at least 1'),
        (SK, dict(branches=1.5), 'must be a whole number, at least 1'),
        (SK, dict(feature_group_count=3), 'the 4 channels of the input'),
        (AA, dict(value_ratio=0.0), 'greater than 0 and less than 1'),
        (GE, dict(reduction=-1), 'must be a whole number, at least 1'),
        (AW, dict(pool_size=(2, 0)), 'must be a whole number, at least 1'),
        (AW, dict(pool_size=(2, 3, 3)), 'must be a whole number, at least 1'),
    ],
)
def test_fields_out_of_their_bounds_are_named(layer, fields, words):
  made = layer(**fields)
  with pytest.raises(InputError, match=words) as error:
    made.init(KEY, images(2, 6, 5, 4))
  assert str(error.value).startswith(f'{layer.func.__name__}: {[*fields][0]}=')


def test_a_number_may_be_numpys_or_traced():
  x = images(2, 6, 5, 4)
  made = DYNAMIC(experts=np.int64(3), temperature=np.float32(2))
  variables = of_layer(made, x)
  traced = jax.jit(lambda t: made.clone(temperature=t).apply(variables, x))
  np.testing.assert_allclose(traced(2.0), made.apply(variables, x), rtol=1e-5)


@pytest.mark.parametrize('layer', (*NORMED, slow(OD), slow(SK)))
def test_without_train_mutable_statistics_decide(layer):
  x = images(3, 6, 5, 6)
  variables = of_layer(layer(), x)

  def run(train, mutable):
    result = apply(layer(train=train), variables, x, mutable)
    return result[0] if mutable else result

  trained, evaluated = run(True, ['batch_stats']), run(False, ['batch_stats'])
  assert not np.allclose(trained, evaluated)
  np.testing.assert_array_equal(run(None, ['batch_stats']), trained)
  np.testing.assert_array_equal(run(None, False), evaluated)


@pytest.mark.parametrize(
    'layer, fields',
    [
        *((GE, dict(form='theta_minus', extent=e)) for e in (None, 4)),
        *((layer, {}) for layer in (*ACTIVATIONS, AW, OD)),
        *(slow(layer, {}) for layer in (COND, DYNAMIC)),
        (SK, dict(strides=2, padding=((1, 1), (1, 1)))),
        (AA, dict(strides=3)),
        (AA, dict(strides=2, downsample=2)),
        (AA, dict(padding='VALID')),
    ],
)
def test_a_padded_image_gives_what_the_image_alone_does(layer, fields):
  layer = functools.partial(layer, **fields)
  # Below zero, so that a zero in the padding would be the largest.
  x = images(2, 7, 9, 4) - 4
  # Tables smaller than the images, whose offsets must not move in the padding.
  variables = of_layer(layer(), x[:, :4, :5])
  sizes = np.array([(7, 6), (4, 9)])
  padded = x.copy()
  # A convolution sees the padding, and wants it zero.
  fill = 0 if issubclass(layer.func, nn.Conv) else 100
  padded[0, :, 6:], padded[1, 4:] = fill, -fill
  out = apply(layer(), variables, padded, valid_size=sizes)
  for n, (h, w) in enumerate(sizes):
    alone, _ = reference(layer, x[n : n + 1, :h, :w], variables)
    own = out[n : n + 1, : alone.shape[1], : alone.shape[2]]
    assert own.size
    np.testing.assert_allclose(own, alone, rtol=1e-4, atol=1e-4)
  assert not np.allclose(out, apply(layer(), variables, padded), atol=1e-2)


@pytest.mark.parametrize('layer', (*NORMED, COORD, GE))
def test_content_of_the_padding_never_reaches_maps_and_statistics(layer):
  x = images(3, 7, 9, 4)
  variables = of_layer(layer(), x)
  soiled = x.copy()
  soiled[:, 5:] = 1e6
  soiled[:, :, 6:] = -1e6
  sizes = np.array([(5, 6)] * 3)
  watched = ['batch_stats', 'intermediates']
  clean, dirty = (
      apply(layer(train=True), variables, x, watched, valid_size=sizes)[1]
      for x in (x, soiled)
  )
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)


@pytest.mark.parametrize('layer', (*ALL, *map(slow, IN_PLACE)))
def test_bfloat16_computes_narrow_with_wide_parameters(layer):
  narrow = jnp.asarray(images(2, 6, 5, 8), jnp.bfloat16)
  made = make(layer, dtype=jnp.bfloat16)
  shapes = jax.eval_shape(made.init, KEY, narrow)
  call = functools.partial(made.apply, mutable=['batch_stats'])
  moved = jax.eval_shape(call, shapes, narrow)[1]
  for leaf in jax.tree.leaves((shapes, moved)):
    assert leaf.dtype == jnp.float32
  # Small enough that no gate turns on the rounding of a large sum.
  variables = jax.tree.map(lambda v: v / 4, of_layer(made, narrow))
  out = apply(made, variables, narrow)
  assert out.dtype == jnp.bfloat16
  expected, _ = reference(layer, np.float64(narrow), variables)
  np.testing.assert_allclose(np.float32(out), expected, rtol=4e-2, atol=2e-2)
