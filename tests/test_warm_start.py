"""Warm starts: an AW network begins as the plain network it comes from."""

import functools

from flax import traverse_util
import jax
import numpy as np
import pytest
from random_values import images, of_model
import tiny
import watched_run

from awconv_jax import errors, models, weights
from awconv_jax.tools import convert
from awconv_jax.train import loop as train_loop
from awconv_jax.train import optim, warm_start

KEY = jax.random.key(0, impl='rbg')
IDENTITY = dict(gate='tanh', identity_start=True)

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def create(num_classes=5, **options):
  fields = dict(width=8, stage_sizes=(1, 1), num_classes=num_classes)
  return models.create('resnet18', **fields | options)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """A plain SE-ResNet-18: the network, its variables, and their file."""
  model = create(attention='se')
  variables = of_model(model)
  path = tmp_path_factory.mktemp('plain') / 'se.safetensors'
  weights.save(path, variables)
  return model, variables, path


def test_an_aw_network_starts_as_the_plain_one_and_trains_its_branches(plain):
  model, variables, path = plain
  aw_model = create(attention='se', aw_conv=True, aw_options=IDENTITY)
  x = images(2, 40, 40, 3)
  fresh = jax.jit(functools.partial(aw_model.init, train=False))(KEY, x)
  start = warm_start.load(path, fresh)

  def logits(model, variables):
    return jax.jit(functools.partial(model.apply, train=False))(variables, x)

  expected = logits(model, variables)
  assert np.all(np.isfinite(expected))  # NaN would equal NaN.
  np.testing.assert_allclose(
      logits(aw_model, start), expected, rtol=1e-5, atol=1e-5
  )

  @jax.jit
  @jax.grad
  def gradients(params):
    out = aw_model.apply(start | {'params': params}, x, train=False)
    return -jax.nn.log_softmax(out)[:, 1].mean()

  branch = gradients(start['params'])['stage2_block1']['conv1']['attention']
  assert np.any(branch['norm2']['scale'] != 0)


def test_a_head_for_other_classes_is_left_as_it_is(plain):
  _, variables, path = plain
  fresh = of_model(create(3, attention='se'), seed=1)
  with pytest.raises(errors.InputError, match=r'fc\.bias has .*fc\.weight'):
    warm_start.load(path, fresh)
  start = warm_start.load(path, fresh, skip=('head',))
  same = jax.tree.map(np.array_equal, start['params'], fresh['params'])
  assert all(jax.tree.leaves(same['head']))
  stem = start['params']['stem_conv']['kernel']
  assert np.array_equal(stem, variables['params']['stem_conv']['kernel'])
  with pytest.raises(errors.InputError, match="'heads'.*'head'"):
    warm_start.load(path, fresh, skip=('heads',))


def test_other_networks_and_missing_sources_are_refused(plain, tmp_path):
  _, variables, path = plain
  for source, fresh, words in (
      (path, of_model(create()), 'unknown: .*se.fc1'),
      (tmp_path / 'no.pth', variables, 'neither a file nor a run'),
      (tmp_path, variables, 'no checkpoint'),
  ):
    with pytest.raises(errors.InputError, match=words):
      warm_start.load(source, fresh)


BACKBONE = dict(name='resnet18', width=4, stage_sizes=(1, 1, 1, 1))


def random_detector(seed, num_classes=3, **options):
  model = models.create_detector(
      backbone=BACKBONE | options,
      num_classes=num_classes,
      pyramid=dict(features=4),
      head=dict(features=4),
  )
  return of_model(model, seed=seed)


def write(kind, path, variables):
  """Writes a run or a file; returns where."""
  if kind == 'run':
    convert.write_run(path, variables)
    return path
  weights.save(f'{path}.safetensors', variables)
  return f'{path}.safetensors'


def in_aw_branch(path):
  return weights.in_aw_branch('/'.join(path))


def taken(start, fresh):
  """Returns the flat variables of a start, and the paths of its own values."""
  start, fresh = map(traverse_util.flatten_dict, (start, fresh))
  assert start.keys() == fresh.keys()
  return start, {p for p in start if np.array_equal(start[p], fresh[p])}


@pytest.mark.parametrize('kind, aw_conv', [('run', True), ('file', False)])
def test_the_backbone_of_a_detector_starts_from_a_classifier(
    kind, aw_conv, tmp_path
):
  classifier = models.create(**BACKBONE, num_classes=5)
  variables = of_model(classifier, seed=1)
  source = write(kind, tmp_path / 'resnet', variables)
  fresh = random_detector(seed=2, aw_conv=aw_conv)
  told = []
  start, own = taken(warm_start.load(source, fresh, report=told.append), fresh)
  assert own == {p for p in start if p[1] != 'backbone' or in_aw_branch(p)}
  assert any(map(in_aw_branch, own)) == aw_conv
  expected = traverse_util.flatten_dict(variables)
  for path in start.keys() - own:
    np.testing.assert_array_equal(
        start[path], expected[(path[0], *path[2:])], err_msg=str(path)
    )
  assert any("the backbone takes it, without 'head'" in line for line in told)


def test_attention_that_is_frozen_as_it_was_drawn_is_named(tmp_path):
  classifier = models.create(**BACKBONE, num_classes=5)
  source = write('file', tmp_path / 'a', of_model(classifier, seed=1))
  fresh = random_detector(seed=2, aw_conv=True)
  start = warm_start.load(source, fresh)
  frozen = optim.is_frozen(fresh['params'], ['backbone/stem_*', '*/stage1_*'])

  def names(params):
    return warm_start.fixed_at_random(fresh['params'], params, frozen)

  found = names(start['params'])
  assert found and all('/stage1_' in name for name in found)
  assert all(in_aw_branch(('params', *name.split('/'))) for name in found)
  # Without any weights it is all of what is frozen.
  drawn = names(fresh['params'])
  assert {'backbone/stem_conv/kernel', *found} < set(drawn)
  assert all(name.endswith('/kernel') for name in drawn)


def test_a_detector_starts_from_another_one_with_other_classes(tmp_path):
  variables = random_detector(seed=1, num_classes=7)
  source = write('run', tmp_path / 'detector', variables)
  fresh = random_detector(seed=2, aw_conv=True)
  with pytest.raises(errors.InputError, match='box_predictor'):
    warm_start.load(source, fresh)
  skip = ('box_predictor', 'backbone/stage4_block1')
  start, own = taken(warm_start.load(source, fresh, skip=skip), fresh)
  assert own == {
      p
      for p in start
      if p[1] == 'box_predictor' or 'stage4_block1' in p or in_aw_branch(p)
  }
  expected = traverse_util.flatten_dict(variables)
  assert all(np.array_equal(start[p], expected[p]) for p in start.keys() - own)


def test_a_classifier_of_another_width_is_refused_for_a_backbone(tmp_path):
  classifier = models.create('resnet18', width=8, stage_sizes=(1, 1, 1, 1))
  source = write('run', tmp_path / 'wide', of_model(classifier))
  with pytest.raises(errors.InputError, match='init_from=.*backbone') as error:
    warm_start.load(source, random_detector(seed=2))
  assert 'fpn' not in str(error.value)


def test_a_run_starts_from_another_run(tmp_path):
  first, second = tmp_path / 'plain', tmp_path / 'aw'
  config = tiny.get_config(aw_conv=False)
  train_loop.train(config, str(first))
  config = tiny.get_config()
  config.model.aw_options.update(IDENTITY)
  config.init_from = str(first)
  # Nothing moves in so small a step.
  config.num_epochs = 1 / 44
  config.optimizer.warmup_epochs = 0.0
  config.optimizer.learning_rate = 1e-12
  config.ema_decay = 0.9
  train_loop.train(config, str(second))
  taken = watched_run.saved_arrays(second, 1)
  for name, array in watched_run.saved_arrays(first, 22).items():
    if name.startswith('ema/params/'):
      np.testing.assert_allclose(taken[name[4:]], array, atol=1e-6)
