"""The attention layers for activations (SE, CBAM, BAM, ECA) against float64."""

import functools

import jax
import jax.numpy as jnp
from layer_cases import KEY, check_gradients, images, random_variables
import naive_attention
import numpy as np
import pytest

from awconv_jax.layers.bam import BAM
from awconv_jax.layers.cbam import CBAM
from awconv_jax.layers.eca import ECA
from awconv_jax.layers.squeeze_excite import SqueezeExcite

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

LAYERS = {
    'se': functools.partial(SqueezeExcite, reduction=2),
    'cbam': functools.partial(CBAM, reduction=2),
    'bam': functools.partial(BAM, reduction=2),
    'eca': ECA,
}
NORMED = ('cbam', 'bam')
# The layer, the fields that the reference knows, and the others.
CASES = {
    'se': ('se', {}, {}),
    'cbam_train': ('cbam', {}, dict(train=True)),
    'cbam_inference': ('cbam', {}, dict(train=False, spatial_size=3)),
    'bam_product_train': ('bam', {}, dict(train=True)),
    'bam_sum_train': (
        'bam',
        dict(combine='sum', dilation=1),
        dict(train=True, norm_momentum=0.25, norm_epsilon=0.5),
    ),
    'bam_inference': ('bam', dict(dilation=2), dict(train=False)),
    'eca': ('eca', {}, dict(kernel_size=5)),
}


def shapes_of(layer, channels):
  x = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
  return jax.eval_shape(layer.init, KEY, x)['params']


def reference(name, x, variables, layer, **known):
  """Returns the output and the batch's statistics by numpy."""
  if name in NORMED:
    known['epsilon'] = layer.norm_epsilon
  train = getattr(layer, 'train', False)
  return getattr(naive_attention, name)(x, variables, train=train, **known)


@pytest.mark.parametrize('case', CASES)
def test_layer_gradient_and_statistics_equal_numpy(case):
  name, known, fields = CASES[case]
  with jax.enable_x64(True):
    layer = LAYERS[name](param_dtype=jnp.float64, **known, **fields)
    # Three images: a norm over two values knows nothing but their order.
    x = images(3, 6, 5, 6, dtype=np.float64)
    variables = random_variables(layer, x, dtype=np.float64)
    stats = {k: v for k, v in variables.items() if k != 'params'}
    expected, batch = reference(name, x, variables, layer, **known)
    weights = images(*x.shape, seed=2, dtype=np.float64)

    @jax.jit
    def run(x, params):
      def loss(x, params):
        variables = {'params': params, **stats}
        out, moved = layer.apply(variables, x, mutable=['batch_stats'])
        return jnp.sum(out * weights), (out, moved)

      return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)

    result = run(x, variables['params'])
    gradients, (out, moved) = jax.tree.map(np.asarray, result)
  np.testing.assert_allclose(out, expected, rtol=1e-10)
  old, new = stats.get('batch_stats', {}), moved.get('batch_stats', {})
  assert set(old) == set(batch) == set(new)
  for norm, of_batch in batch.items():
    default = dict(cbam=0.99, bam=0.9)[name]
    keep = fields.get('norm_momentum', default) if layer.train else 1
    for key in ('mean', 'var'):
      wanted = keep * old[norm][key] + (1 - keep) * of_batch[key]
      np.testing.assert_allclose(new[norm][key], wanted, rtol=1e-10)

  def naive_loss(parts):
    variables = {'params': parts[1], **stats}
    out, _ = reference(name, parts[0], variables, layer, **known)
    return np.sum(out * weights)

  check_gradients(naive_loss, (x, variables['params']), gradients)


@pytest.mark.parametrize('name', NORMED)
def test_without_train_mutable_statistics_decide(name):
  x = images(3, 6, 5, 6)
  variables = random_variables(LAYERS[name](), x)

  def run(train, mutable):
    apply = functools.partial(LAYERS[name](train=train).apply, mutable=mutable)
    result = jax.jit(apply)(variables, x)
    return result[0] if mutable else result

  trained, evaluated = run(True, ['batch_stats']), run(False, False)
  assert not np.allclose(trained, evaluated)
  np.testing.assert_array_equal(run(None, ['batch_stats']), trained)
  np.testing.assert_array_equal(run(None, False), evaluated)


@pytest.mark.parametrize('name', LAYERS)
def test_padding_changes_nothing_of_the_image(name):
  layer = LAYERS[name]()
  # Below zero, so that a zero in the padding would be the largest.
  x = images(2, 7, 9, 4) - 4
  variables = random_variables(layer, x)
  sizes = np.array([(7, 6), (4, 9)])
  soiled = x.copy()
  soiled[0, :, 6:] = 100
  soiled[1, 4:] = -100
  apply = jax.jit(layer.apply)
  out = apply(variables, soiled, valid_size=sizes)
  for n, (h, w) in enumerate(sizes):
    crop = x[n : n + 1, :h, :w]
    expected, _ = reference(name, crop, variables, layer)
    np.testing.assert_allclose(out[n : n + 1, :h, :w], expected, rtol=1e-4)
  assert not np.allclose(out, apply(variables, soiled))


@pytest.mark.parametrize('name', NORMED)
def test_content_of_the_padding_never_reaches_the_statistics(name):
  layer = LAYERS[name](train=True)
  x = images(3, 7, 9, 4)
  variables = random_variables(layer, x)
  soiled = x.copy()
  soiled[:, 5:] = 1e4
  soiled[:, :, 6:] = -1e4
  sizes = np.array([(5, 6)] * 3)
  apply = jax.jit(functools.partial(layer.apply, mutable=['batch_stats']))
  clean = apply(variables, x, valid_size=sizes)[1]
  dirty = apply(variables, soiled, valid_size=sizes)[1]
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)


@pytest.mark.parametrize('name', LAYERS)
def test_bfloat16_computes_narrow_with_wide_parameters(name):
  layer = LAYERS[name](dtype=jnp.bfloat16)
  narrow = jnp.asarray(images(2, 6, 5, 8), jnp.bfloat16)
  shapes = jax.eval_shape(layer.init, KEY, narrow)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {'float32'}
  # Small enough that no gate turns on the rounding of a large sum.
  variables = jax.tree.map(lambda v: v / 4, random_variables(layer, narrow))
  out = jax.jit(layer.apply)(variables, narrow)
  assert out.dtype == jnp.bfloat16
  expected, _ = reference(name, np.float64(narrow), variables, layer)
  np.testing.assert_allclose(np.float32(out), expected, rtol=4e-2, atol=2e-2)


@pytest.mark.parametrize('layer', [SqueezeExcite(), CBAM(), BAM()])
def test_there_is_a_hidden_channel_however_few_there_are(layer):
  shapes = shapes_of(layer, 8)
  name = 'channel_reduce' if isinstance(layer, BAM) else 'reduce'
  assert shapes[name]['kernel'].shape == (8, 1)


def test_the_spatial_gate_of_cbam_starts_as_one_half():
  layer = LAYERS['cbam']()
  x = images(2, 6, 5, 6)
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
  shapes = shapes_of(ECA(**fields), channels)
  assert shapes['conv']['kernel'].shape == (size, 1, 1)
