"""Warm starts: an AW network begins as the plain network it comes from."""

import functools

import jax
import numpy as np
import pytest
import tiny

from awconv_jax import errors, models, train_loop, warm_start, weights

KEY = jax.random.key(0, impl='rbg')
IDENTITY = dict(gate='tanh', identity_start=True)

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def create(**options):
  return models.create('resnet18', width=8, num_classes=5, **options)


def images(n=2, side=40):
  rng = np.random.default_rng(0)
  return rng.normal(size=(n, side, side, 3)).astype(np.float32)


def random_variables(model, seed=0):
  """Returns variables of a network as if it had been trained."""
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, KEY, images())
  rng = np.random.default_rng(seed)

  def value(path, leaf):
    values = rng.normal(size=leaf.shape)
    if path[-1].key in ('scale', 'var'):
      values = 1 + 0.2 * np.tanh(values)
    elif path[-1].key == 'kernel':
      values /= np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(value, shapes)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """A plain SE-ResNet-18: the network, its variables, and their file."""
  model = create(attention='se')
  variables = random_variables(model)
  path = tmp_path_factory.mktemp('plain') / 'se.safetensors'
  weights.save(path, variables)
  return model, variables, path


def silent(line):
  del line


def test_an_aw_network_starts_as_the_plain_one_and_then_moves_away(plain):
  model, variables, path = plain
  aw_model = create(attention='se', aw_conv=True, aw_options=IDENTITY)
  x = images()
  init = functools.partial(aw_model.init, train=False)
  start = warm_start.load(path, jax.jit(init)(KEY, x), report=silent)

  def logits(model, variables):
    return jax.jit(functools.partial(model.apply, train=False))(variables, x)

  expected = logits(model, variables)
  np.testing.assert_allclose(
      logits(aw_model, start), expected, rtol=1e-5, atol=1e-5
  )

  @jax.jit
  def step(variables):
    def loss(params):
      out, moved = aw_model.apply(
          variables | {'params': params}, x, train=True, mutable=['batch_stats']
      )
      return -jax.nn.log_softmax(out)[:, 1].mean(), moved

    gradients, moved = jax.grad(loss, has_aux=True)(variables['params'])
    params = jax.tree.map(
        lambda p, g: p - 0.1 * g, variables['params'], gradients
    )
    return {'params': params, **moved}, gradients

  moved, gradients = step(start)
  for stage in range(1, 5):
    branch = gradients[f'stage{stage}_block1']['conv1']['attention']
    assert np.any(branch['norm2']['scale'] != 0)
  assert not np.allclose(logits(aw_model, moved), expected, atol=1e-3)


def test_without_an_identity_start_the_logits_differ(plain):
  # So that the equality above is no matter of course.
  model, variables, path = plain
  aw_model = create(attention='se', aw_conv=True)
  x = images()
  init = functools.partial(aw_model.init, train=False)
  start = warm_start.load(path, jax.jit(init)(KEY, x), report=silent)
  assert not np.allclose(
      aw_model.apply(start, x, train=False),
      model.apply(variables, x, train=False),
      atol=1e-2,
  )


def test_a_head_for_other_classes_is_left_as_it_is(plain):
  _, variables, path = plain
  other = models.create('resnet18', width=8, num_classes=3, attention='se')
  fresh = random_variables(other, seed=1)
  with pytest.raises(errors.InputError, match=r'fc\.bias has .*fc\.weight'):
    warm_start.load(path, fresh, report=silent)
  start = warm_start.load(path, fresh, skip=('head',), report=silent)
  same = jax.tree.map(np.array_equal, start['params'], fresh['params'])
  assert all(jax.tree.leaves(same['head']))
  stem = start['params']['stem_conv']['kernel']
  assert np.array_equal(stem, variables['params']['stem_conv']['kernel'])
  with pytest.raises(errors.InputError, match="'heads'.*'head'"):
    warm_start.load(path, fresh, skip=('heads',), report=silent)


def test_other_networks_and_missing_sources_are_refused(plain, tmp_path):
  _, variables, path = plain
  other = random_variables(create())
  with pytest.raises(errors.InputError, match='unknown: .*se.fc1'):
    warm_start.load(path, other, report=silent)
  with pytest.raises(errors.InputError, match='there is no file and no run'):
    warm_start.load(tmp_path / 'no.pth', variables, report=silent)
  with pytest.raises(errors.InputError, match='no checkpoint'):
    warm_start.load(tmp_path, variables, report=silent)


def test_a_run_starts_from_another_run(tmp_path):
  first, second = tmp_path / 'plain', tmp_path / 'aw'
  config = tiny.get_config('aw_conv=false')
  before = train_loop.train(config, str(first)).metrics
  config = tiny.get_config()
  config.model.aw_options.update(IDENTITY)
  config.init_from = str(first)
  # Nothing moves in so small a step: the evaluation shows the start.
  config.num_epochs = 1 / 44
  config.optimizer.warmup_epochs = 0.0
  config.optimizer.learning_rate = 1e-12
  config.ema_decay = 0.9
  after = train_loop.train(config, str(second)).metrics
  assert after['loss'] == pytest.approx(before['loss'], rel=0.05)
  assert after['top1'] == pytest.approx(before['top1'], abs=0.05)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
  config = tiny.get_config('aw_conv=false')
  config.num_epochs = 1 / 44
  config.optimizer.warmup_epochs = 0.0
  train_loop.train(config, str(tmp_path / 'one'))
  config.model.width = 8
  config.init_from = str(tmp_path / 'one')
  with pytest.raises(errors.InputError, match='of another network.*shape'):
    train_loop.train(config, str(tmp_path / 'two'))


def test_skipping_without_a_source_is_refused(tmp_path):
  config = tiny.get_config()
  config.init_skip = ('head',)
  with pytest.raises(errors.InputError, match='head.*needs config.init_from'):
    train_loop.train(config, str(tmp_path))
