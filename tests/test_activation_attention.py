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
from awconv_jax.layers.eca import ECA, adaptive_kernel_size
from awconv_jax.layers.squeeze_excite import SqueezeExcite

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

LAYERS = {
    'se': functools.partial(SqueezeExcite, reduction=2),
    'cbam': functools.partial(CBAM, reduction=2),
    'bam': functools.partial(BAM, reduction=2),
    'eca': ECA,
}
REFERENCES = {
    'se': naive_attention.squeeze_excite,
    'cbam': naive_attention.cbam,
    'bam': naive_attention.bam,
    'eca': naive_attention.eca,
}
# The layers' own share of the old in the running statistics.
MOMENTUM = {'cbam': 0.99, 'bam': 0.9}


def shapes_of(layer, channels):
  x = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
  return jax.eval_shape(layer.init, KEY, x)['params']


def count(layer, channels):
  """Returns the number of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(layer, channels)))


# The layer, the fields that the reference knows, the others, and train.
CASES = {
    'se': ('se', {}, {}, False),
    'cbam_train': ('cbam', {}, {}, True),
    'cbam_inference': ('cbam', {}, dict(spatial_size=3), False),
    'bam_product_train': ('bam', {}, {}, True),
    'bam_sum_train': ('bam', dict(combine='sum', dilation=1), {}, True),
    'bam_inference': ('bam', dict(dilation=2), {}, False),
    'eca': ('eca', {}, dict(kernel_size=5), False),
}


@pytest.mark.parametrize('case', CASES)
def test_layer_gradient_and_statistics_equal_numpy(case):
  name, known, fields, train = CASES[case]
  own_fields = dict(train=train) if name in MOMENTUM else {}
  with jax.enable_x64(True):
    layer = LAYERS[name](
        param_dtype=jnp.float64, **known, **fields, **own_fields
    )
    # Three images: a norm over two values knows nothing but their order.
    x = images(3, 6, 5, 6, dtype=np.float64)
    variables = random_variables(layer, x, dtype=np.float64)
    stats = {k: v for k, v in variables.items() if k != 'params'}
    reference = functools.partial(REFERENCES[name], train=train, **known)
    expected, batch = reference(x, variables)
    weights = images(*x.shape, seed=2, dtype=np.float64)

    @jax.jit
    def run(x, params):
      def loss(x, params):
        out, moved = layer.apply(
            {'params': params, **stats}, x, mutable=['batch_stats']
        )
        return jnp.sum(out * weights), (out, moved)

      return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)

    result = run(x, variables['params'])
    gradients, (out, moved) = jax.tree.map(np.asarray, result)
  np.testing.assert_allclose(out, expected, rtol=1e-10)
  check_statistics(name, train, variables, batch, moved)

  def naive_loss(parts):
    x, params = parts
    return np.sum(reference(x, {'params': params, **stats})[0] * weights)

  check_gradients(naive_loss, (x, variables['params']), gradients)


def check_statistics(name, train, variables, batch, moved):
  """Checks that the running statistics moved as far as they should."""
  old, new = variables.get('batch_stats', {}), moved.get('batch_stats', {})
  assert set(old) == set(batch) == set(new)
  keep = MOMENTUM.get(name) if train else 1
  for norm, own in batch.items():
    for key in ('mean', 'var'):
      expected = keep * old[norm][key] + (1 - keep) * own[key]
      np.testing.assert_allclose(new[norm][key], expected, rtol=1e-10)


@pytest.mark.parametrize('name', MOMENTUM)
def test_the_fields_of_the_norms_are_theirs(name):
  layer = LAYERS[name](norm_momentum=0.25, norm_epsilon=0.5, train=True)
  x = images(3, 6, 5, 6)
  variables = random_variables(layer, x)
  expected, batch = REFERENCES[name](x, variables, train=True, epsilon=0.5)
  apply = jax.jit(functools.partial(layer.apply, mutable=['batch_stats']))
  out, moved = apply(variables, x)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
  for norm, own in batch.items():
    mean = 0.25 * variables['batch_stats'][norm]['mean'] + 0.75 * own['mean']
    np.testing.assert_allclose(
        moved['batch_stats'][norm]['mean'], mean, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('name', MOMENTUM)
def test_without_train_mutable_statistics_decide(name):
  x = images(3, 6, 5, 6)
  variables = random_variables(LAYERS[name](), x)

  def run(train, mutable=('batch_stats',)):
    """Returns the output, and the statistics where they are mutable."""
    apply = functools.partial(LAYERS[name](train=train).apply, mutable=mutable)
    result = jax.jit(apply)(variables, x)
    return (
        result
        if mutable
        else (result, {'batch_stats': variables['batch_stats']})
    )

  trained, evaluated = run(True), run(False)
  assert not np.allclose(trained[0], evaluated[0])
  jax.tree.map(np.testing.assert_array_equal, run(None), trained)
  jax.tree.map(np.testing.assert_array_equal, run(None, False), evaluated)


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
    expected, _ = REFERENCES[name](crop, variables, train=False)
    np.testing.assert_allclose(out[n : n + 1, :h, :w], expected, rtol=1e-4)
  assert not np.allclose(out, apply(variables, soiled))


@pytest.mark.parametrize('name', MOMENTUM)
def test_content_of_the_padding_never_reaches_the_statistics(name):
  layer = LAYERS[name](train=True)
  x = images(3, 7, 9, 4)
  variables = random_variables(layer, x)
  soiled = x.copy()
  soiled[:, 5:] = 1e4
  soiled[:, :, 6:] = -1e4
  sizes = np.array([(5, 6)] * 3)
  apply = jax.jit(functools.partial(layer.apply, mutable=['batch_stats']))
  clean = apply(variables, x, valid_size=sizes)
  dirty = apply(variables, soiled, valid_size=sizes)
  np.testing.assert_array_equal(clean[0][:, :5, :6], dirty[0][:, :5, :6])
  jax.tree.map(np.testing.assert_array_equal, clean[1], dirty[1])


@pytest.mark.parametrize('name', LAYERS)
def test_bfloat16_computes_narrow_with_wide_parameters(name):
  layer = LAYERS[name](dtype=jnp.bfloat16)
  narrow = jnp.asarray(images(2, 6, 5, 8), jnp.bfloat16)
  shapes = jax.eval_shape(layer.init, KEY, narrow)
  for leaf in jax.tree.leaves(shapes):
    assert leaf.dtype == jnp.float32
  # Small enough that no gate turns on the rounding of a large sum.
  variables = jax.tree.map(
      lambda leaf: leaf / 4, random_variables(layer, narrow)
  )
  out = jax.jit(layer.apply)(variables, narrow)
  assert out.dtype == jnp.bfloat16
  x = np.float64(narrow)
  expected, _ = REFERENCES[name](x, variables, train=False)
  np.testing.assert_allclose(np.float32(out), expected, rtol=4e-2, atol=2e-2)


@pytest.mark.parametrize(
    'layer, channels, parameters',
    [
        # Two layers with biases; never without hidden channels.
        (SqueezeExcite(), (8,), 8 + 1 + 8 + 8),
        # What they add to ResNet-18 and ResNet-50 of 1000 classes.
        (BAM(), (64, 128, 256), 22_991),
        (BAM(), (256, 512, 1024), 358_067),
        (ECA(), (64, 128, 256, 512) * 2, 36),
        (ECA(), (256,) * 3 + (512,) * 4 + (1024,) * 6 + (2048,) * 3, 86),
        (CBAM(), (64, 128, 256, 512) * 2, 89_880),
        (
            CBAM(),
            (256,) * 3 + (512,) * 4 + (1024,) * 6 + (2048,) * 3,
            2_532_592,
        ),
    ],
)
def test_parameters_added_to_the_networks(layer, channels, parameters):
  assert sum(count(layer, c) for c in channels) == parameters


def test_the_spatial_gate_of_cbam_starts_as_one_half():
  layer = LAYERS['cbam']()
  x = images(2, 6, 5, 6)
  variables = jax.jit(layer.init)(KEY, x)
  # Without the last layer the gate of the channels is sigmoid(0), too.
  expand = jax.tree.map(jnp.zeros_like, variables['params']['expand'])
  variables['params']['expand'] = expand
  apply = jax.jit(functools.partial(layer.apply, mutable=['batch_stats']))
  np.testing.assert_array_equal(apply(variables, x)[0], x / 4)


def test_bam_trains_on_one_image_without_its_channel_branch():
  layer = LAYERS['bam']()
  x = images(1, 6, 5, 6)
  variables = random_variables(layer, x)
  weights = images(*x.shape, seed=2)

  @jax.jit
  @jax.grad
  def gradient(params):
    out, _ = layer.apply(
        variables | {'params': params}, x, mutable=['batch_stats']
    )
    return jnp.sum(out * weights)

  gradients = gradient(variables['params'])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.all(np.isfinite(leaf)), path
  # As the class says: if this changes, so must its docstring.
  assert not np.any(gradients['channel_reduce']['kernel'])
  assert np.any(gradients['channel_norm']['bias'])
  for i in (1, 2, 3, 4):
    assert np.any(gradients[f'spatial_conv{i}']['kernel'])


@pytest.mark.parametrize(
    'channels, size, fields',
    [
        *((1, 1, {}), (3, 1, {}), (8, 3, {}), (16, 3, {}), (64, 3, {})),
        *((128, 5, {}), (256, 5, {}), (512, 5, {}), (1024, 5, {})),
        *((2048, 7, {}), (256, 9, dict(gamma=1)), (256, 7, dict(b=5))),
        (256, 9, dict(gamma=1, b=0.5)),
        (256, 11, dict(b=-30)),
        (256, 9, dict(kernel_size=9)),
    ],
)
def test_the_kernel_of_eca_grows_with_the_channels(channels, size, fields):
  shapes = shapes_of(ECA(**fields), channels)
  assert shapes['conv']['kernel'].shape == (size, 1, 1)
  if not fields:
    assert adaptive_kernel_size(channels) == size


def test_an_unknown_way_to_join_the_branches_is_named():
  with pytest.raises(ValueError, match="combine 'add'.*product, sum"):
    jax.eval_shape(BAM(combine='add').init, KEY, images(1, 4, 4, 4))
