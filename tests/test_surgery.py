"""AWConv inside models that know nothing of it."""

import functools

from flax import traverse_util
import flax.linen as nn
import jax
import numpy as np
import pytest
import random_values
from random_values import KEY, close, images

from awconv_jax import AWConv, merge_variables, replace_conv

TWO = {'stem', 'middle'}

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


class Compact(nn.Module):
  """Fields of every kind, and a convolution that is replaceable in parts."""

  conv: type[nn.Module] = nn.Conv

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (1, 1), name='stem')(x)
    fields = dict(kernel_dilation=(1, 2), feature_group_count=2, use_bias=False)
    x = self.conv(8, [3, 3], 2, padding=1, name='middle', **fields)(x)
    x = nn.relu(x)
    x = self.conv(4, (3, 3), padding='CIRCULAR', name='last')(x)
    return x.mean((1, 2))


class Setup(nn.Module):
  """A convolution that is called twice, and more than one method."""

  features: int = 3

  def setup(self):
    self.first = nn.Conv(self.features, (3, 3))
    self.second = nn.Conv(self.features, (3, 3))

  def encode(self, x):
    return self.first(nn.relu(self.first(x)))

  def decode(self, x):
    return self.second(x)

  def __call__(self, x):
    return self.decode(self.encode(x))


class Small(nn.Module):
  """One 3x3 that keeps the number of channels; what the lifts are tried on."""

  @nn.compact
  def __call__(self, x):
    return nn.Conv(x.shape[-1], (3, 3))(x)


def start(model, x, **options):
  return jax.jit(functools.partial(model.init, **options))(KEY, x)


def run(model, variables, x, **options):
  return jax.jit(functools.partial(model.apply, **options))(variables, x)


def shapes(model, x, **options):
  return jax.eval_shape(functools.partial(model.init, **options), KEY, x)


leaves = functools.partial(traverse_util.flatten_dict, sep='/')


def owners(model, x):
  """Returns the paths of the modules that have attention."""
  paths = (p.split('/attention/') for p in leaves(shapes(model, x)['params']))
  return {path[0] for path in paths if len(path) > 1}


randomize = functools.partial(random_values.randomize, seed=1, scale=0.5)


def test_it_is_the_model_edited_by_hand():
  x = images(2, 7, 6, 3)
  model = replace_conv(Compact(), reduction=2, norm='layer')
  edited = Compact(functools.partial(AWConv, reduction=2, norm='layer'))
  variables = start(model, x)
  expected = start(edited, x)
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  for path, leaf in leaves(start(Compact(), x)).items():
    np.testing.assert_array_equal(leaves(variables)[path], leaf)
  variables = randomize(variables)
  out = run(model, variables, x)
  np.testing.assert_array_equal(out, run(edited, variables, x))
  # A subclass of the same name and fields, also if it is copied.
  assert isinstance(model, Compact) and type(model).__name__ == 'Compact'
  assert owners(model.copy(parent=None), x) == {'middle', 'last'}
  # What is before a replaced one is as ever; each output is captured once.
  _, seen = run(model, variables, x, capture_intermediates=True)
  _, want = run(Compact(), variables, x, capture_intermediates=True)
  seen, want = seen['intermediates'], want['intermediates']
  jax.tree.map(np.testing.assert_array_equal, seen['stem'], want['stem'])
  assert len(seen['last']['__call__']) == len(seen['__call__']) == 1
  assert seen['last']['attention_maps'][0].shape == (2, 3, 3, 1, 4)


@pytest.mark.parametrize(
    'where, expected',
    [
        (lambda path, conv: not conv.use_bias, {'middle'}),
        (lambda path, conv: path[0] == 'stem' or conv.strides == 2, TWO),
    ],
)
def test_path_and_fields_decide(where, expected):
  assert owners(replace_conv(Compact(), where), images(1, 4, 4, 2)) == expected


def test_identity_start_is_the_plain_model():
  x = images(2, 6, 6, 3)
  model = replace_conv(Compact(), gate='tanh', identity_start=True)
  pretrained = randomize(shapes(Compact(), x))
  variables = merge_variables(start(model, x), pretrained)
  close(run(model, variables, x), run(Compact(), pretrained, x), 1e-6)
  # The statistics move, but for a layer that must not train.
  for train, moves in ((None, True), (False, False)):
    model = replace_conv(Setup(), train=train)
    variables = randomize(shapes(model, x))
    old = leaves(variables['batch_stats'])
    _, updated = run(model, variables, x, mutable=['batch_stats'])
    for path, leaf in leaves(updated['batch_stats']).items():
      assert np.any(leaf != old[path]) == moves, path


def test_every_way_into_the_model():
  x = images(2, 5, 5, 3)
  model = replace_conv(Setup(), norm='layer')
  variables = randomize(shapes(model, x))
  assert owners(model, x) == {'first', 'second'}
  out, seen = run(model, variables, x, mutable=['intermediates'])
  # The shared convolution ran twice, the other once.
  for name, count in (('first', 2), ('second', 1)):
    assert len(seen['intermediates'][name]['attention_maps']) == count
  encode = jax.jit(lambda v: model.bind(v).encode(x))(variables)
  decode = run(model, variables, encode, method=lambda m, y: m.second(y))
  np.testing.assert_array_equal(decode, out)
  half = shapes(model, x, method='encode')['params']
  assert half.keys() == {'first'} and 'attention' in half['first']


def test_only_what_a_replaced_model_owns_and_by_any_of_its_methods():
  class Borrower(nn.Module):
    borrowed: nn.Module

    @nn.compact
    def __call__(self, x):
      return self.borrowed(nn.Conv(3, (3, 3), name='own')(x))

  class Outer(nn.Module):

    def setup(self):
      self.lent = nn.Conv(3, (3, 3))
      self.borrower = replace_conv(Borrower(self.lent))
      # Paths are those in the replaced model.
      self.coder = replace_conv(Setup(), lambda path, _: path == ('first',))

    def __call__(self, x):
      return self.lent(self.coder(self.borrower(x)))

  found = owners(Outer(), images(1, 4, 4, 3))
  assert found == {'borrower/own', 'coder/first'}


def test_a_second_choice_is_among_what_is_left():
  first = replace_conv(Compact(), lambda path, _: 'last' in path, min_hidden=5)
  params = shapes(replace_conv(first, min_hidden=7), images(1, 4, 4, 2))[
      'params'
  ]
  for name, hidden in (('last', 5), ('middle', 7)):
    kernel = params[name]['attention']['pointwise1']['kernel']
    assert kernel.shape[-1] == hidden


class Blocks(nn.Module):
  block: type[nn.Module] = Small

  @nn.compact
  def __call__(self, x):
    return self.block(name='block1')(self.block(name='block0')(x))


def everything(path, conv):
  return True


def only_block1(path, conv):
  return path[0] == 'block1'


@pytest.mark.parametrize(
    'lift, at_once, where, expected',
    [
        (nn.jit, False, everything, {'block0/Conv_0', 'block1/Conv_0'}),
        (nn.remat, True, only_block1, {'block1/Conv_0'}),
    ],
)
def test_jit_and_remat_inside_the_model(lift, at_once, where, expected):
  lifted = Blocks(lift(Small))
  x = images(2, 4, 4, 2)
  jit = jax.jit if at_once else lambda f: f
  # To nn.jit, the plain block is the same function; it comes first.
  plain = jit(lifted.init)(KEY, x)
  before = jit(lifted.apply)(plain, x)
  model = replace_conv(lifted, where, norm='none')
  assert owners(model, x) == expected
  variables = randomize(jit(model.init)(KEY, x))
  out = run(replace_conv(Blocks(), where, norm='none'), variables, x)
  for _ in range(2):  # The second time from the cache of nn.jit.
    close(jit(model.apply)(variables, x), out, 1e-4)
  np.testing.assert_array_equal(jit(lifted.apply)(plain, x), before)


def test_blocks_that_nn_jit_takes_for_one_are_not_told_apart():
  x = images(2, 4, 4, 2)
  model = replace_conv(Blocks(nn.jit(Small)), only_block1)
  with pytest.raises(ValueError, match='block1/Conv_0 is computed by nn.jit'):
    shapes(model, x)


class Lifted(nn.Module):
  """Two layers, one after the other by nn.scan or each of an image."""

  scan: bool
  collections: tuple[str, ...] = ('params', 'batch_stats')

  @nn.compact
  def __call__(self, x):
    options = dict(variable_axes=dict.fromkeys(self.collections, 0))
    options['split_rngs'] = {'params': True}
    if not self.scan:
      return nn.vmap(Small, in_axes=0, **options)(name='layers')(x)
    step = lambda block, x, _: (block(x), None)  # noqa: E731
    return nn.scan(step, length=2, **options)(Small(name='layers'), x, None)[0]


@pytest.mark.parametrize('scan', [True, False])
def test_scan_and_vmap(scan):
  x = images(2, 2, 4, 4, 2)
  model = replace_conv(Lifted(scan), reduction=1)
  variables = randomize(shapes(model, x))
  out, updated = run(model, variables, x, mutable=['batch_stats'])
  single = replace_conv(Small(), reduction=1)
  y, outs = x, []
  for i in range(2):
    layer = {
        k: jax.tree.map(lambda a, i=i: a[i], v['layers'])
        for k, v in variables.items()
    }
    y, _ = run(single, layer, y if scan else x[i], mutable=['batch_stats'])
    outs.append(y)
  close(out, y if scan else np.stack(outs), 1e-4)
  assert set(leaves(updated)) < set(leaves(variables))

  bare = Lifted(scan, ('params',))
  shapes(replace_conv(bare, norm='layer'), x)
  with pytest.raises(ValueError, match='batch_stats.*variable_axes'):
    shapes(replace_conv(bare), x)


class Halved(nn.Conv):

  def __call__(self, x):
    return super().__call__(x) / 2


class Own(nn.Conv):

  def __call__(self, x):
    return 2 * x


class Standardized(nn.Conv):

  def param(self, *args):
    return super().param(*args) / 2


def test_a_subclass_that_calls_nn_conv():
  x = images(1, 4, 4, 2)
  model = replace_conv(nn.Sequential([Halved(2, (3, 3)), nn.relu]))
  variables = randomize(shapes(model, x))
  single = {k: v['layers_0'] for k, v in variables.items()}
  expected = nn.relu(run(AWConv(2, (3, 3)), single, x) / 2)
  close(run(model, variables, x), expected, 1e-6)


@pytest.mark.parametrize(
    'conv, message',
    [
        (Own(2, (3, 3)), 'layers_1: Own does not call nn.Conv.__call__'),
        (Standardized(2, (3, 3)), 'layers_1: Standardized .*another `param`'),
        (
            nn.Conv(2, (3, 3), 1, 1, 2),
            'layers_1: AWConv: input_dilation=2 must be left out',
        ),
        (nn.Conv(2, (3,)), r'layers_1: AWConv: kernel_size=\(3,\) '),
    ],
)
def test_what_cannot_be_replaced_is_named(conv, message):
  plain = nn.Sequential([nn.Conv(2, (3, 3)), conv])
  x = images(1, 4, 4, 2)
  with pytest.raises(ValueError, match=message):
    shapes(replace_conv(plain, everything), x)
  rest = replace_conv(plain, lambda path, conv: path == ('layers_0',))
  assert owners(rest, x) == {'layers_0'}


def test_a_choice_of_nothing_and_wrong_arguments_are_refused():
  model = replace_conv(Compact(), lambda path, conv: conv.features == 99)
  x = images(1, 4, 4, 2)
  with pytest.raises(ValueError, match='the model: last, middle, stem'):
    jax.eval_shape(model.init_with_output, KEY, x)
  with pytest.raises(ValueError, match='the model: none'):
    shapes(replace_conv(nn.Dense(2)), x)
  with pytest.raises(ValueError, match='no Linen module, or bound'):
    replace_conv(Small)
  with pytest.raises(ValueError, match=r"'gates' \(did you mean 'gate'"):
    replace_conv(Small(), gates='tanh')


def test_plain_variables_alone_are_refused_with_the_remedy():
  x = images(1, 4, 4, 2)
  model = replace_conv(Small())
  plain = randomize(shapes(Small(), x))
  for mutable in (False, ['batch_stats']):
    with pytest.raises(ValueError, match='Conv_0: .*merge_variables'):
      run(model, plain, x, mutable=mutable)


def test_merging_names_all_that_does_not_fit():
  x = images(1, 4, 4, 2)
  initial = shapes(replace_conv(Compact()), x)
  plain = shapes(Compact(), x)
  assert merge_variables(initial, plain) == initial
  assert merge_variables(initial, initial) == initial  # AW weights, too.
  del plain['params']['stem']['kernel']
  plain['params']['head'] = {'bias': np.zeros(3)}
  plain['params']['last']['kernel'] = np.zeros((3, 3, 8, 5))
  with pytest.raises(ValueError) as error:
    merge_variables(initial, plain)
  assert str(error.value) == (
      'merge_variables: plain weights do not fit: '
      'params/head/bias ((3,) for nothing), '
      'params/last/kernel ((3, 3, 8, 5) for (3, 3, 8, 4)), '
      'params/stem/kernel (missing for (1, 1, 2, 4))'
  )


def test_merging_a_foreign_module_named_attention_asks_for_its_weights():
  class Foreign(nn.Module):

    @nn.compact
    def __call__(self, x):
      x = Small(name='conv')(x)
      return nn.Sequential(
          [nn.Dense(3, name='pointwise1', parent=None)], name='attention'
      )(x)

  x = images(1, 4, 4, 2)
  initial = shapes(replace_conv(Foreign()), x)
  plain = shapes(Foreign(), x)
  assert merge_variables(initial, plain) == initial
  del plain['params']['attention']
  with pytest.raises(ValueError, match='params/attention/.*bias .missing'):
    merge_variables(initial, plain)
