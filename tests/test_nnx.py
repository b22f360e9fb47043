"""AWConv as an NNX module: the Linen layer's numbers, and NNX's ways."""

import functools

from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from random_values import close, images, of_layer
from sklearn import datasets

import awconv_jax
from awconv_jax.errors import InputError
from awconv_jax.nnx import AWConv, from_linen, replace_conv, to_linen

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


class CNN(nnx.Module):
  """Convolutions in an attribute, a list, and twice in the same place."""

  def __init__(self, rngs):
    conv = functools.partial(nnx.Conv, 4, 4, rngs=rngs)
    self.stem = conv((1, 1))
    self.blocks = nnx.List([conv((3, 3)), nnx.Sequential(jnp.tanh, self.stem)])
    self.again = self.blocks[0]

  def __call__(self, x):
    for layer in (self.stem, *self.blocks, self.again):
      x = layer(x)
    return x


@pytest.fixture(scope='module')
def layer():
  return AWConv(4, 6, 3, rngs=nnx.Rngs(0))


def both(options, **fields):
  """Returns a Linen layer, its variables, and the NNX one that has them."""
  x = images(2, 6, 5, 4)
  linen = awconv_jax.AWConv(6, **fields, **options)
  variables = of_layer(linen, x)
  made = AWConv(4, 6, **fields, **options, rngs=nnx.Rngs(0))
  return linen, variables, from_linen(made, variables), x


def equal(a, b):
  close(a, b, 1e-6)


@pytest.mark.parametrize(
    'options, fields',
    [
        (dict(gate='tanh'), dict(strides=2, padding='CIRCULAR')),
        pytest.param(
            dict(refinement='cbam', norm='layer', pool_size=(2, 1)),
            dict(use_bias=False, feature_group_count=2),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_it_is_the_linen_layer(options, fields):
  linen, variables, layer, x = both(options, kernel_size=(3, 3), **fields)
  running = jax.jit(linen.apply)(variables, x)
  equal(nnx.jit(lambda layer: layer(x, True))(layer), running)
  weight = images(*running.shape, seed=1)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def of_linen(params, rest):
    out, moved = linen.apply(rest | {'params': params}, x, mutable=[*rest])
    return jnp.sum(out * weight), (out, moved)

  @nnx.jit
  @functools.partial(nnx.value_and_grad, has_aux=True)
  def of_nnx(layer):
    out = layer(x)
    return jnp.sum(out * weight), out

  rest = {k: v for k, v in variables.items() if k != 'params'}
  (_, (out, moved)), gradient = of_linen(variables['params'], rest)
  (_, found), own = of_nnx(layer)
  equal(found, out)
  jax.tree.map(equal, nnx.to_pure_dict(own), gradient)
  jax.tree.map(equal, to_linen(layer), variables | moved)


def test_it_starts_as_flax_conv_does_and_statistics_move_in_training():
  layer = AWConv(4, 6, 3, rngs=nnx.Rngs(0))
  plain = nnx.Conv(4, 6, (3, 3), rngs=nnx.Rngs(0))
  np.testing.assert_array_equal(layer.kernel[...], plain.kernel[...])
  assert isinstance(layer, nnx.Conv) and awconv_jax.nnx.AWConv is AWConv
  for mode, moves in (('train', True), ('eval', False)):
    before = to_linen(layer)['batch_stats']
    getattr(layer, mode)()
    nnx.jit(lambda layer, x: layer(x))(layer, images(2, 5, 5, 4))
    after = to_linen(layer)['batch_stats']
    moved = jax.tree.map(lambda a, b: np.any(a != b), before, after)
    assert jax.tree.leaves(moved) == [moves] * 4
  assert not nnx.view(layer, use_running_average=False).use_running_average


def test_maps_are_captured_and_not_kept(layer):
  x = images(2, 5, 5, 4)
  run = nnx.capture(lambda layer, x: layer(x), nnx.Intermediate)
  _, seen = nnx.jit(run)(nnx.view(layer), x)
  (maps,) = seen['attention_maps'].get_value()
  assert maps.shape == (2, 3, 3, 1, 6)
  nnx.jit(AWConv.__call__)(layer, x)
  assert not jax.tree.leaves(nnx.state(layer, nnx.Intermediate))


def test_transformations_of_nnx(layer):
  @nnx.jit
  def outputs(layer, x):
    remat = nnx.remat(AWConv.__call__)
    gradient = nnx.grad(lambda layer: jnp.mean(remat(layer, x) ** 2))(layer)
    merged = nnx.merge(*nnx.split(layer))
    return layer(x), remat(layer, x), merged(x), gradient

  @nnx.jit
  def of_an_ensemble(x):
    make = nnx.vmap(lambda rngs: AWConv(4, 6, 3, rngs=rngs))
    members = nnx.split_rngs(splits=2)(make)(nnx.Rngs(1))
    run = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
    return run(members, x), members.attention.norm1.mean[...]

  x = images(2, 5, 5, 4)
  layer.eval()
  out, *same, gradient = outputs(layer, x)
  for other in same:
    equal(other, out)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
  # Each moves its own statistics.
  many, mean = of_an_ensemble(x)
  assert many.shape == (2, *out.shape)
  assert np.all(np.any(mean != 0, 1)) and np.any(mean[0] != mean[1])


def test_orbax_saves_and_restores(layer, tmp_path):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'layer', nnx.state(layer))
    checkpointer.wait_until_finished()
    abstract = nnx.eval_shape(lambda: AWConv(4, 6, 3, rngs=nnx.Rngs(9)))
    structure, shapes = nnx.split(abstract)
    state = checkpointer.restore(tmp_path / 'layer', shapes)
  restored = nnx.merge(structure, state)
  jax.tree.map(
      np.testing.assert_array_equal, to_linen(restored), to_linen(layer)
  )


def test_surgery_keeps_weights_and_what_is_shared():
  model, x = CNN(nnx.Rngs(0)), images(2, 5, 5, 4)
  run = nnx.jit(CNN.__call__)
  out, kernel = run(model, x), model.again.kernel
  identity = dict(gate='tanh', identity_start=True)
  assert replace_conv(model, rngs=nnx.Rngs(1), **identity) is model
  assert type(model.stem) is nnx.Conv
  assert type(model.again) is AWConv and model.again is model.blocks[0]
  assert model.again.kernel is kernel
  close(run(model, x), out)
  replace_conv(model, lambda _, c: c.kernel_size == (1, 1), rngs=nnx.Rngs(1))
  assert type(model.blocks[1].layers[1]) is AWConv
  gates = [dict(m.aw_options)['gate'] for m in (model.again, model.stem)]
  assert gates == ['tanh', 'sigmoid']


class OwnConv(nnx.Conv):
  """Has a method of its own, say."""


def test_surgery_of_a_model_in_evaluation_leaves_it_there():
  rngs = nnx.Rngs(0)
  norm, conv = nnx.BatchNorm(2, rngs=rngs), nnx.Conv(2, 2, (3, 3), rngs=rngs)
  model = nnx.Sequential(norm, conv)
  model.eval()
  replace_conv(model, rngs=rngs)
  assert model.layers[1].use_running_average


@pytest.mark.parametrize(
    'make, message',
    [
        (
            lambda r: AWConv(4, 4, 3, rngs=r, gaet=1),
            "option of AWConv 'gaet' .did you mean 'gate'",
        ),
        (lambda r: AWConv(4, 4, 0, rngs=r), 'kernel_size=0 must be a whole'),
        (lambda r: AWConv(0, 4, 3, rngs=r), 'in_features=0 must be a'),
        (
            lambda r: AWConv(4, 4, 3, rngs=r, reduction=0),
            'reduction=0 must be a',
        ),
        (
            lambda r: AWConv(1, 1, 1, rngs=r)(np.ones((1, 2, 2, 3))),
            r'input is \(1, 2, 2, 3\), want in_features=1',
        ),
        (
            lambda r: replace_conv(OwnConv(1, 1, (3, 3), rngs=r), rngs=r),
            'OwnConv is a class of its own',
        ),
        (lambda r: AWConv(4, 4, (3,), rngs=r), r'=\(3,\) .*of two axes'),
        (lambda r: AWConv(4, 4, 3, rngs=r, input_dilation=2), 'ConvTranspose'),
        (
            lambda r: AWConv(4, 4, 3, rngs=r, preferred_element_type=float),
            'preferred_element_type',
        ),
        (
            lambda r: replace_conv(CNN(r), lambda *_: False, rngs=r),
            'matches no nnx.Conv of the model: again, blocks',
        ),
        (
            lambda r: replace_conv(CNN(r), rngs=r, gaet='tanh'),
            "again: .*'gaet' .did you mean 'gate'",
        ),
        (
            lambda r: from_linen(
                AWConv(1, 1, 1, rngs=r), {'params': {'kernel': np.ones(2)}}
            ),
            r'params do not fit: .*kernel \(\(2,\) for \(1, 1, 1, 1\)\)',
        ),
    ],
)
def test_what_is_wrong_is_named(make, message):
  with pytest.raises((InputError, ValueError, TypeError), match=message):
    make(nnx.Rngs(0))


class LinenNet(nn.Module):
  """What `Net` is, under the same names."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(16, (3, 3), name='stem')(x))
    x = nn.relu(awconv_jax.AWConv(16, (3, 3), 2, name='first')(x))
    x = nn.relu(awconv_jax.AWConv(32, (3, 3), name='second')(x))
    return nn.Dense(10, name='head')(x.mean((1, 2)))


class Net(nnx.Module):
  """For digits of 8x8 pixels."""

  def __init__(self, rngs):
    self.stem = nnx.Conv(1, 16, (3, 3), rngs=rngs)
    self.first = AWConv(16, 16, 3, 2, rngs=rngs)
    self.second = AWConv(16, 32, 3, rngs=rngs)
    self.head = nnx.Linear(32, 10, rngs=rngs)

  def __call__(self, x):
    for layer in (self.stem, self.first, self.second):
      x = nnx.relu(layer(x))
    return self.head(x.mean((1, 2)))


def loss_of(logits, y):
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@pytest.mark.slow
def test_it_learns_digits_as_the_linen_layer_does():
  pixels, labels = datasets.load_digits(return_X_y=True)
  pixels = np.float32(pixels.reshape(-1, 8, 8, 1) / 16 - 0.5)
  linen, rule = LinenNet(), optax.adam(3e-3)
  variables = jax.jit(linen.init)(jax.random.key(0), pixels[:1])
  net = from_linen(Net(nnx.Rngs(0)), variables)
  optimizer = nnx.Optimizer(net, rule, wrt=nnx.Param)
  state = rule.init(variables['params'])

  @jax.jit
  def linen_step(variables, state, x, y):
    def loss(params):
      now = variables | {'params': params}
      logits, moved = linen.apply(now, x, mutable=['batch_stats'])
      return loss_of(logits, y), moved

    gradient, moved = jax.grad(loss, has_aux=True)(variables['params'])
    change, state = rule.update(gradient, state)
    params = optax.apply_updates(variables['params'], change)
    return {'params': params, **moved}, state

  @nnx.jit
  def nnx_step(net, optimizer, x, y):
    gradient = nnx.grad(lambda net: loss_of(net(x), y))(net)
    optimizer.update(net, gradient)

  rng = np.random.default_rng(0)
  for step in range(200):
    rows = rng.integers(0, 1437, 64)
    batch = pixels[rows], labels[rows]
    variables, state = linen_step(variables, state, *batch)
    nnx_step(net, optimizer, *batch)
    if step == 0:
      jax.tree.map(lambda a, b: close(a, b, 1e-5), to_linen(net), variables)
  net.eval()
  found = [
      float(np.mean(np.argmax(logits, 1) == labels[1437:]))
      for logits in (net(pixels[1437:]), linen.apply(variables, pixels[1437:]))
  ]
  print('accuracy in NNX, Linen:', found)
  assert min(found) > 0.8 and abs(found[0] - found[1]) < 0.01
