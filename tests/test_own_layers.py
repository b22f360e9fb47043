"""A layer of a user's own, named by its module; docs/layers.md has another."""

import functools

from flax import traverse_util
import flax.linen as nn
import jax
import numpy as np
import own_layers
import pytest
from random_values import KEY, close, images, of_model
import tiny

from awconv_jax import create_detector, create_model, models, replace_conv
from awconv_jax.errors import InputError
from awconv_jax.layers import attention
from awconv_jax.surgery import merge_variables
from awconv_jax.train import settings

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

_small = dict(stage_sizes=(1,), width=8, stem='cifar', num_classes=None)
small = functools.partial(create_model, 'resnet18', **_small)
VALID = np.array([[6, 4]] * 2)


@pytest.mark.parametrize(
    'name, own, stands',
    [
        ('Slope', 'attention/w', 2),
        ('AfterStage', 'attention/w', 1),
        ('Halved', 'inner/kernel', 2),
    ],
)
def test_it_stands_in_its_place_also_where_images_are_padded(name, own, stands):
  model = small(attention=f'own_layers:{name}', stage_sizes=(1, 1))
  run = functools.partial(model.init_with_output, train=False, valid_size=VALID)
  out, variables = jax.eval_shape(run, KEY, images(2, 8, 10, 3))
  assert out['c3'].shape == (2, 4, 5, 16)
  paths = traverse_util.flatten_dict(variables['params'], sep='/')
  assert sum(path.endswith(own) for path in paths) == stands
  by_class = small(
      attention=getattr(own_layers, name), stage_sizes=(1, 1)
  ).init_with_output
  by_class = functools.partial(by_class, train=False, valid_size=VALID)
  assert jax.eval_shape(by_class, KEY, images(2, 8, 10, 3))[1] == variables


def test_padding_does_not_matter_and_fields_are_those_of_the_network():
  model = small(attention='own_layers:Slope', attention_options={'slope': 0.5})
  variables = of_model(model, 8)
  padded = np.full((2, 8, 10, 3), np.nan, np.float32)
  padded[:, :6, :4] = x = images(2, 6, 4, 3)

  @jax.jit
  def apply(padded, x):
    alone = model.apply(variables, x, train=False)['c2']
    got = model.apply(variables, padded, train=False, valid_size=VALID)['c2']
    _, updated = model.apply(variables, x, train=True, mutable=['batch_stats'])
    return alone, got, updated

  alone, got, updated = apply(padded, x)
  close(got[:, :6, :4], alone)
  assert np.isfinite(got).all()
  old, new = (
      v['batch_stats']['stage1_block1']['attention']['BatchNorm_0']['mean']
      for v in (variables, updated)
  )
  assert np.all(old != new)


def test_an_average_without_valid_size_counts_zeros_for_the_padding():
  class Average(nn.Module):

    @nn.compact
    def __call__(self, x):
      return 0 * x + x.mean((1, 2), keepdims=True)

  padded = np.full((2, 8, 10, 3), np.nan, np.float32)
  padded[:, :6, :4] = x = images(2, 6, 4, 3)
  average = lambda *a: attention.call(Average().bind({}), *a)[:, 0, 0]  # noqa: E731
  close(average(padded, VALID), x.sum((1, 2)) / 80)
  close(average(x, None), x.mean((1, 2)))


@pytest.mark.parametrize(
    'name, message',
    [
        ('OneRow', r"OneRow' returns \(2, 1, 6, 8\) for \(2, 6, 6, 8\), want"),
        ('OneRowConv', r"OneRowConv' returns \(2, 1, 6, 8\) for"),
        ('TwoInputs', "TwoInputs' cannot be called: .*'y'; see .*layers.md"),
    ],
)
def test_what_is_called_in_vain_or_returns_another_shape_is_named(
    name, message
):
  run = functools.partial(
      small(attention=f'own_layers:{name}').init, train=False
  )
  with pytest.raises(InputError, match=f"attention='own_layers:{message}"):
    jax.eval_shape(run, KEY, images(2, 6, 6, 3))


def test_a_config_names_it_and_a_detector_has_it():
  config = tiny.get_config(attention='own_layers:Slope')
  assert config.model.attention_options.slope == 1.0
  again = settings.complete(config.to_dict())
  assert again.model == config.model
  with pytest.raises(InputError, match="slop .did you mean 'slope'"):
    settings.complete(config, {'config.model.attention_options.slop': '2'})
  backbone = dict(name='resnet18', width=8, attention='own_layers:Slope')
  detector = create_detector(backbone=backbone, num_classes=2)
  params = traverse_util.flatten_dict(models.shapes_of(detector)['params'])
  assert any(path[-2:] == ('attention', 'w') for path in params)


@pytest.mark.parametrize(
    'name, message',
    [
        ('own_layers:Slop', 'cannot be imported: AttributeError: .*PYTHONPATH'),
        ('no_layers:Slope', 'cannot be imported: ModuleNotFoundError'),
        ('jax:jit', 'is no class of Linen modules'),
        ('own_layers:Few', r"without a default.*: \['features', 'kernel_size"),
        ('own_layers:Nowhere', "has place='nowhere', want one of"),
        ('own_layers:NoConv', "has place='conv', but does not extend"),
        ('slope', "unknown attention 'slope'; known: aa, "),
    ],
)
def test_what_is_no_layer_is_one_line(name, message):
  with pytest.raises(InputError, match=message) as error:
    small(attention=name)
  assert '\n' not in str(error.value)


class Net(nn.Module):

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), name='first')(x)
    return nn.Conv(4, (3, 3), 2, name='strided')(x)


def test_any_layer_takes_the_place_of_a_convolution():
  x = images(2, 6, 6, 3)
  model = replace_conv(Net(), layer=own_layers.Halved)
  shapes = jax.eval_shape(model.init, KEY, x)
  plain = jax.jit(Net().init)(KEY, x)
  # Its own convolution stays what it is, and plain weights go where they were.
  assert {*shapes['params']['first']} == {'kernel', 'bias', 'inner'}
  assert shapes['params']['first']['inner'].keys() == {'kernel', 'bias'}
  merged = merge_variables(jax.jit(model.init)(KEY, x), plain)
  np.testing.assert_array_equal(
      merged['params']['first']['kernel'], plain['params']['first']['kernel']
  )

  class Edited(nn.Module):

    @nn.compact
    def __call__(self, x):
      x = own_layers.Halved(4, (3, 3), name='first')(x)
      return own_layers.Halved(4, (3, 3), 2, name='strided')(x)

  expected = jax.jit(Edited().apply)(merged, x)
  np.testing.assert_array_equal(jax.jit(model.apply)(merged, x), expected)


def test_a_layer_that_lacks_what_the_model_sets_is_refused():
  x = images(1, 6, 6, 3)
  message = "strided: Few has no field 'strides', which is 2 there"
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(replace_conv(Net(), layer=own_layers.Few).init, KEY, x)
  first = lambda path, conv: path == ('first',)  # noqa: E731
  model = replace_conv(Net(), first, layer=own_layers.Few)
  params = jax.eval_shape(model.init, KEY, x)['params']
  assert params['first'].keys() == {'inner'}
  with pytest.raises(ValueError, match="option of Few 'features'"):
    replace_conv(Net(), layer=own_layers.Few, features=3)
  with pytest.raises(ValueError, match='is no class of Linen modules'):
    replace_conv(Net(), layer=jax.nn.relu)
