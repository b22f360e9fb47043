"""The tool that converts weights, as a command and against real checkpoints."""

import commands
import jax
import numpy as np
import optax
import pytest
import random_values
import torch_zip

from awconv_jax import command_line, inference, models, weights
from awconv_jax.errors import InputError
from awconv_jax.tools import convert
from awconv_jax.train import rundir, settings
from awconv_jax.train.checkpoint import Checkpointer
from awconv_jax.train.step import TrainState
from awconv_jax.weights import state_dict
from configs import coco

NARROW = dict(width=4, stage_sizes=(1, 1), aw_stages=(1, 2), stem='cifar')
# The network of tests/tiny.py with a second stage, without AW-convolutions.
CONFIG = (
    f'{commands.TINY}:aw_conv=false',
    '--config.model.stage_sizes=(1,1)',
    '--config.model.aw_stages=(1,2)',
)


@pytest.fixture(scope='module')
def config():
  """The config that `CONFIG` says."""
  overrides = dict(flag[2:].split('=', 1) for flag in CONFIG[1:])
  sparse = command_line.load_config(CONFIG[0].removeprefix('--config='))
  return settings.complete(sparse, overrides)


@pytest.fixture(scope='module')
def shapes():
  network = models.create('resnet18', num_classes=10, **NARROW)
  return models.shapes_of(network, 224, 1)


@pytest.fixture(scope='module')
def state(shapes):
  """A state dict of torch, its batches not counted."""
  return state_dict.to_state_dict(random_values.like(shapes))


def assert_same_bits(path, state):
  found = weights.read(path)
  assert found.keys() == state.keys()
  for name, array in found.items():
    assert array.tobytes() == state[name].tobytes(), name


def test_the_command_makes_a_model_of_what_torch_wrote(shapes, state, tmp_path):
  wrapped = {'state_dict': {f'module.{k}': v for k, v in state.items()}}
  source = torch_zip.save(tmp_path / 'weights.pth', wrapped)
  output = tmp_path / 'model'
  code, out, err = commands.tool(
      *('convert', *CONFIG, f'--input={source}', f'--output={output}')
  )
  assert (code, err) == (0, '')
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
  *lines, untold = out.splitlines()
  assert lines == [
      "took the weights under 'state_dict'",
      "took 'module.' off every name",
      f'{source} -> {output}: weights, {count:,} parameters',
  ]
  assert untold.startswith("no array tells of stem='cifar', version='v1.5', no")
  held = rundir.read_config(output).model
  assert held.stage_sizes == (1, 1) and not held.aw_conv
  # Which says itself what it holds.
  line = convert.convert(output, tmp_path / 'a.safetensors')
  assert ': weights, ' in line
  assert_same_bits(output / 'model.safetensors', state)
  card = (output / 'README.md').read_text()
  assert '| weights.pth' in card and 'seed' not in card
  assert_same_bits(tmp_path / 'a.safetensors', state)


def test_a_detector_of_torchvision_becomes_a_model_and_a_file(tmp_path):
  layout = dict(preset='torchvision', num_classes=90, aw_conv=False)
  config = coco.get_config(model='resnet18', **layout).unlock()
  config.model.backbone.update(width=4, stage_sizes=(1, 1, 1, 1))
  config.model.pyramid.features = config.model.head.features = 4
  shapes = models.shapes_of(settings.create_task(config).model)
  state = state_dict.to_state_dict(random_values.like(shapes))
  # As torchvision has it: 91 classes with the background, and channels first.
  assert state['roi_heads.box_predictor.bbox_pred.weight'].shape == (364, 4)
  assert state['roi_heads.box_head.fc6.weight'].shape == (4, 4 * 7 * 7)
  # Its frozen norms count no batches.
  lean = {n: a for n, a in state.items() if 'num_batches' not in n}
  source = torch_zip.save(tmp_path / 'detector.pth', lean)

  convert.convert(source, tmp_path / 'model', config)
  convert.convert(tmp_path / 'model', tmp_path / 'a.safetensors')

  assert_same_bits(tmp_path / 'a.safetensors', state)


def test_weights_without_aw_convolutions_are_known_as_such(
    config, state, tmp_path
):
  plain = torch_zip.save(tmp_path / 'plain.pth', state)
  network = models.create('resnet18', num_classes=10, aw_conv=True, **NARROW)
  aw_shapes = models.shapes_of(network, 224, 1)
  config = config.copy_and_resolve_references().unlock()
  config.model.aw_conv = True
  with pytest.raises(InputError, match='no AW-convolutions: choose aw_conv=fa'):
    convert.convert(plain, tmp_path / 'run', config)
  some = state_dict.to_state_dict(random_values.like(aw_shapes))
  some.pop(next(n for n in some if 'attention' in n))
  source = torch_zip.save(tmp_path / 'some.pth', some)
  with pytest.raises(InputError, match='1 missing.; choose the network and'):
    convert.convert(source, tmp_path / 'run', config)
  assert not (tmp_path / 'run').exists()


def test_a_run_and_its_file_say_what_no_array_tells_of(state, tmp_path):
  source = torch_zip.save(tmp_path / 'weights.pth', {'ema': state})
  run, file = tmp_path / 'model', tmp_path / 'a.safetensors'
  v1 = (
      f'{commands.TINY}:aw_conv=false',
      *CONFIG[1:],
      '--config.model.version=v1',
  )
  for given, first, output in (
      ((*v1, '--entry=ema'), source, run),
      ((), run, file),
      (v1, file, tmp_path / 'again'),
  ):
    flags = *given, f'--input={first}', f'--output={output}'
    assert commands.tool('convert', *flags)[::2] == (0, '')
  config = rundir.read_config(run)
  assert config.model.version == 'v1'
  config.unlock().model.version = 'v1.5'
  for trained in (run, file):
    with pytest.raises(InputError, match="for version='v1', by.*of 'v1.5'"):
      inference.load(trained, config)


@pytest.mark.parametrize('ema', [False, True])
def test_a_run_that_was_trained_gives_what_it_evaluates_with(
    config, shapes, ema, tmp_path
):
  own, averages, older = (
      random_values.like(shapes, seed) for seed in (1, 2, 3)
  )
  with Checkpointer(tmp_path / 'checkpoints', keep=2) as checkpointer:
    for step, variables in ((3, older), (12, own)):
      params = variables['params']
      trained = TrainState(
          step=np.int32(step),
          params=params,
          model_state={'batch_stats': variables['batch_stats']},
          opt_state=optax.sgd(0.1, 0.9).init(params),
          ema=averages if ema else None,
      )
      checkpointer.save(step, trained, {'position': step})
  output = tmp_path / 'out.safetensors'
  line = convert.convert(tmp_path, output, config)
  kind, expected = ('averages', averages) if ema else ('weights', own)
  assert f'{kind} of step 12' in line
  assert_same_bits(output, state_dict.to_state_dict(expected))


def test_nothing_is_written_over_or_to_another_suffix(config, state, tmp_path):
  source = torch_zip.save(tmp_path / 'weights.pth', state)
  # A directory's name may have a dot.
  convert.convert(source, tmp_path / 'v1.5', config)
  # And a suffix may be in capitals.
  convert.convert(source, tmp_path / 'A.SafeTensors', config)
  inference.load(tmp_path / 'A.SafeTensors')
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other/photo.jpg').touch()
  kinds, suffix = ('.npz', '.pth', '.safetensor'), "suffix of '.*: .*safe"
  (tmp_path / 'empty').mkdir()
  for input, output, message in (
      (source, 'other', 'holds something else than a model'),
      *((source, f'out{kind}', suffix) for kind in kinds),
      (tmp_path / 'empty', 'out.safetensors', 'no checkpoint'),
  ):
    with pytest.raises(InputError, match=message):
      convert.convert(input, tmp_path / output, config)
  left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob('*')}
  assert left == {'weights.pth', 'v1.5', 'A.SafeTensors', 'empty', 'other'}
  assert not list((tmp_path / 'empty').iterdir())


@pytest.mark.parametrize(
    'named, words',
    [
        (dict(model='resnet18'), 'either --model.*or --config'),
        (dict(attention='se'), 'either --model.*or --config'),
        (dict(config=None), 'either --model.*or --config'),
        (dict(config=None, model='faster_rcnn'), "unknown model 'faster_rcnn'"),
    ],
)
def test_flags_name_one_network_that_fits(named, words):
  with pytest.raises(InputError, match=words):
    given = dict(source='a.pth', config=coco.get_config()) | named
    convert.config_of(**given)


def test_mistakes_are_one_line(state, tmp_path):
  there = torch_zip.save(tmp_path / 'there.pth', state)
  for flags, message in (
      ((), 'either --model'),
      (CONFIG, f"Not a directory: '{there}/run'"),
      ((*CONFIG, '--push=alice'), "'alice' names no model on the hub"),
      ((*CONFIG, f'--metrics={there}'), 'want what evaluate wrote'),
  ):
    code, _, err = commands.tool(
        *('convert', *flags, f'--input={there}', f'--output={there}/run')
    )
    assert code == 1 and err.startswith('error: ') and err.count('\n') == 1
    assert message in err
