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
from awconv_jax.surgery import merge_variables
from awconv_jax.train import settings

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

_small = dict(stage_sizes=(1, 1), width=8, stem='cifar', num_classes=None)
small = functools.partial(create_model, 'resnet18', **_small)


@pytest.mark.parametrize(
    'name, stands', [('Slope', 2), ('AfterStage', 1), ('Halved', 2)]
)
def test_it_stands_in_its_place_and_sees_zeros_for_padding(name, stands):
  model = small(attention=f'own_layers:{name}')
  variables = of_model(model, 8)
  leaves = traverse_util.flatten_dict(variables['params'], sep='/')
  own = 'inner/kernel' if name == 'Halved' else 'attention/w'
  assert sum(path.endswith(own) for path in leaves) == stands
  x = images(2, 6, 4, 3)
  padded = np.full((2, 8, 10, 3), np.nan, np.float32)
  padded[:, :6, :4] = x
  apply = jax.jit(functools.partial(model.apply, train=False))
  alone = apply(variables, x)['c3']
  got = apply(variables, padded, valid_size=np.array([[6, 4]] * 2))['c3']
  if name != 'Halved':  # Its inner convolution sees what the outer one made.
    close(got[:, :3, :2], alone)
  assert np.isfinite(got).all()


def test_fields_are_set_by_the_network_and_by_options():
  model = small(attention='own_layers:Slope', attention_options={'slope': 0.5})
  variables, x = of_model(model, 8), images(2, 8, 8, 3)
  _, updated = model.apply(variables, x, train=True, mutable=['batch_stats'])
  old = traverse_util.flatten_dict(variables['batch_stats'], sep='/')
  new = traverse_util.flatten_dict(updated['batch_stats'], sep='/')
  moved = {k for k in old if np.any(old[k] != new[k])}
  assert {k for k in moved if '/attention/' in k}
  by_class = small(attention=own_layers.Slope)
  assert models.shapes_of(by_class) == models.shapes_of(model)


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
