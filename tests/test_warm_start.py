"""Warm starts: an AW network begins as the plain network it comes from."""

import functools

from flax import traverse_util
import jax
import numpy as np
import pytest
from random_values import images, of_model
import tiny
import trained
import watched_run

from awconv_jax import errors, models, weights
from awconv_jax.train import loop as train_loop
from awconv_jax.train import optim, warm_start

KEY = jax.random.key(0, impl='rbg')
IDENTITY = dict(gate='tanh', identity_start=True)

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


BACKBONE = dict(name='resnet18', width=4, stage_sizes=(1, 1, 1, 1))


def random_detector(seed, num_classes=3, **options):
  small = dict(pyramid=dict(features=4), head=dict(features=4))
  small |= dict(backbone=BACKBONE | options, num_classes=num_classes)
  return of_model(models.create_detector(**small), seed=seed)


def weights_of(variables):
  return traverse_util.flatten_dict(variables, sep='/')


def check_start(start, fresh, given, prefix, fresh_parts):
  """Tells what keeps its first values, and compares the others with `given`."""
  start, fresh, given = map(weights_of, (start, fresh, given))
  assert start.keys() == fresh.keys()
  kept = {n for n, array in start.items() if np.array_equal(array, fresh[n])}
  assert kept == {
      name
      for name in start
      if weights.in_aw_branch(name) or any(x in name for x in fresh_parts)
  }
  for name in start.keys() - kept:
    want = given[name.replace(prefix, '/', 1)]
    np.testing.assert_array_equal(start[name], want, err_msg=name)
  return kept


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

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradients(params):
    out = aw_model.apply(start | {'params': params}, x, train=False)
    return -jax.nn.log_softmax(out)[:, 1].mean(), out

  expected = jax.jit(functools.partial(model.apply, train=False))(variables, x)
  assert np.all(np.isfinite(expected))  # NaN would equal NaN.
  gradient, logits = gradients(start['params'])
  np.testing.assert_allclose(logits, expected, 1e-5, 1e-5)
  branch = gradient['stage2_block1']['conv1']['attention']
  assert np.any(branch['norm2']['scale'] != 0)


def test_a_head_for_other_classes_is_left_as_it_is(plain):
  _, variables, path = plain
  fresh = of_model(create(3, attention='se'), seed=1)
  start = warm_start.load(path, fresh, skip=('head',))
  check_start(start, fresh, variables, '/', ('/head/',))


def test_what_cannot_be_taken_is_named(plain, tmp_path):
  path, three = plain[2], of_model(create(3, attention='se'))
  wide, larger = tmp_path / 'wide', tmp_path / 'larger'
  trained.write_variables(
      wide, of_model(models.create(**BACKBONE | {'width': 8}))
  )
  trained.write_variables(larger, random_detector(seed=1, num_classes=7))
  for source, fresh, skip, words in (
      (path, of_model(create()), (), 'unknown: .*se.fc1'),
      (path, three, (), r'fc\.bias has .*fc\.weight'),
      (path, three, ('heads',), "'heads'.*'head'"),
      (tmp_path / 'no.pth', three, (), 'neither a file nor a run'),
      (tmp_path, three, (), 'no checkpoint'),
      (wide, random_detector(seed=2), (), 'init_from=((?!fpn).)*backbone'),
      (larger, random_detector(seed=2), (), 'box_predictor'),
  ):
    with pytest.raises(errors.InputError, match=words):
      warm_start.load(source, fresh, skip=skip)


@pytest.mark.parametrize(
    'write, aw_conv', [(trained.write_variables, True), (weights.save, False)]
)
def test_the_backbone_of_a_detector_starts_from_a_classifier(
    write, aw_conv, tmp_path
):
  variables = of_model(models.create(**BACKBONE, num_classes=5), seed=1)
  source = tmp_path / 'resnet.safetensors'
  write(source, variables)
  fresh = random_detector(seed=2, aw_conv=aw_conv)
  told, others = [], ('/fpn/', '/rpn/', '/box_head/', '/box_predictor/')
  start = warm_start.load(source, fresh, report=told.append)
  kept = check_start(start, fresh, variables, '/backbone/', others)
  assert any(map(weights.in_aw_branch, kept)) == aw_conv
  assert any("the backbone takes it, without 'head'" in line for line in told)


@pytest.mark.parametrize('name', ['mobilenet_v2', 'wrn_16_4'])
def test_no_backbone_takes_the_layers_that_only_classify(name, tmp_path):
  stages = dict(stages=((1, 8, 1, 1), (2, 8, 1, 2), (2, 8, 1, 2)))
  small = dict(blocks=1, widen=1) if name == 'wrn_16_4' else stages
  classifier = of_model(models.create(name, **small, num_classes=5), seed=1)
  weights.save(tmp_path / 'a.safetensors', classifier)
  backbone = of_model(models.create(name, **small, num_classes=None), seed=2)
  fresh = {c: {'backbone': tree} for c, tree in backbone.items()}
  start = warm_start.load(tmp_path / 'a.safetensors', fresh)
  check_start(start, fresh, classifier, '/backbone/', ())


def test_attention_that_is_frozen_as_it_was_drawn_is_named(tmp_path):
  source = tmp_path / 'a.safetensors'
  weights.save(source, of_model(models.create(**BACKBONE)))
  fresh = random_detector(seed=2, aw_conv=True)
  start = warm_start.load(source, fresh)
  frozen = optim.is_frozen(fresh['params'], ['backbone/stem_*', '*/stage1_*'])

  def names(params):
    return warm_start.fixed_at_random(fresh['params'], params, frozen)

  found = names(start['params'])
  assert found and all('/stage1_' in name for name in found)
  assert all(map(weights.in_aw_branch, found))
  # Without any weights it is all of what is frozen.
  drawn = names(fresh['params'])
  assert {'backbone/stem_conv/kernel', *found} < set(drawn)
  assert all(name.endswith('/kernel') for name in drawn)


def test_a_detector_starts_from_another_one_with_other_classes(tmp_path):
  variables = random_detector(seed=1, num_classes=7)
  trained.write_variables(tmp_path, variables)
  fresh = random_detector(seed=2, aw_conv=True)
  skip = ('box_predictor', 'backbone/stage4_block1')
  start = warm_start.load(tmp_path, fresh, skip=skip)
  check_start(start, fresh, variables, '/', skip)


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compiles')
def test_a_run_starts_from_another_run(tmp_path):
  first, second = tmp_path / 'plain', tmp_path / 'aw'
  train_loop.train(tiny.get_config(aw_conv=False), str(first))
  config = tiny.get_config()
  config.model.aw_options.update(IDENTITY)
  config.init_from = str(first)
  config.num_epochs, config.ema_decay = 1 / 44, 0.9
  # Nothing moves in so small a step.
  config.optimizer.update(warmup_epochs=0.0, learning_rate=1e-12)
  train_loop.train(config, str(second))
  taken = watched_run.saved_arrays(second, 1)
  for name, array in watched_run.saved_arrays(first, 22).items():
    if name.startswith('ema/params/'):
      np.testing.assert_allclose(taken[name[4:]], array, atol=1e-6)
