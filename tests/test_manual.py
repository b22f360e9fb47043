"""What --print_config says, and what a misspelt key is told."""

import inspect
import re
import shlex

import commands
import pytest

from awconv_jax import command_line, manual
from awconv_jax.errors import InputError
from awconv_jax.train import settings

# Between them they have every section that shipped configs have.
CONFIGS = (
    'digits:attention=cbam,optimizer=adamw,schedule=step',
    'digits:model=mobilenet_v2,attention=eca,optimizer=lamb',
    'digits:attention=bam,schedule=constant',
    'digits:attention=aa',
    'imagenet:recipe=a2',
    'cifar',
    'coco',
    'digit_scenes:attention=se',
    'segmentation',
)


def complete(name, overrides=None):
  return settings.complete(command_line.load_config(name), overrides)


def keys(name):
  return list(manual.keys(complete(name).to_dict(), settings.Settings))


def test_every_key_of_every_config_has_a_meaning_and_is_listed():
  for name in CONFIGS:
    found = keys(name)
    assert not [key.path for key in found if not key.meaning], name
    assert len({key.path for key in found}) == len(found) > 50
    leaves = set()

    def add(path, value, leaves=leaves):
      for key, inner in value.items():
        if isinstance(inner, dict) and inner:
          add(f'{path}.{key}', inner)
        else:
          leaves.add(f'{path}.{key}')

    add('config', complete(name).to_dict())
    assert {key.path for key in found} == leaves


def test_defaults_are_those_of_the_code():
  found = {key.path: key for key in keys('digits')}
  assert found['config.seed'].default == 0
  assert found['config.model.width'][1:3] == (16, 64)
  assert found['config.model.dtype'].default == 'float32'
  assert found['config.model.stage_sizes'].default == (2, 2, 2, 2)
  assert found['config.num_epochs'].default is inspect.Parameter.empty
  both = 'mixup, cutmix: alpha of each'
  assert found['config.task.mixup'].meaning.startswith(both)


@pytest.mark.parametrize('name', CONFIGS[::4])
def test_what_is_printed_is_the_config_when_pasted(name):
  code, out, _ = commands.tool('train', f'--config={name}', '--print_config')
  assert code == 0
  flags = [line for line in out.splitlines() if line[:2] == '--']
  words = shlex.split('\n'.join(flags), comments=True)
  pairs = (word.removeprefix('--').partition('=') for word in words)
  overrides = {path: value for path, _, value in pairs}
  assert len(overrides) > 80
  # Over another config of the same names.
  assert complete(name, overrides) == complete(name)
  changed = {**overrides, 'config.seed': '7', 'config.batch_size': '8'}
  assert complete(name, {**changed, **overrides}) == complete(name)


def slips(word):
  """Yields a word with a letter left out, doubled, swapped or put in."""
  for i in range(len(word)):
    yield word[:i] + word[i + 1 :]
    yield word[:i] + word[i] + word[i:]
    if len(word) > 2:  # Of 1b for b1 half is right; it has no hint.
      yield word[:i] + word[i : i + 2][::-1] + word[i + 2 :]
    yield f'{word[:i]}x{word[i:]}'


def hints(paths, name='digit_scenes:attention=se'):
  """Returns what is proposed for paths that there are not, by path."""
  with pytest.raises(InputError) as error:
    complete(name, dict.fromkeys(paths, '1'))
  found = {}
  for line in str(error.value).splitlines():
    told = r'unknown (\S+?)(?: \(did you mean (.*)\?\))?; known: '
    path, near = re.match(told, line).groups()
    whole = near.replace("'", '').split(' or ') if near else []
    section = path.rpartition('.')[0]
    found[path] = {x if x[:7] == 'config.' else f'{section}.{x}' for x in whole}
  return found


@pytest.mark.parametrize(
    'name',
    [
        CONFIGS[0],
        *(pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS[4::3]),
    ],
)
def test_the_hint_of_a_misspelt_key_is_that_key(name):
  known = {key.path for key in keys(name)}
  known |= {path.rpartition('.')[0] for path in known} - {'config'}
  words = {path.rpartition('.')[2] for path in known}
  wrong = {}
  for path in known:
    section, _, last = path.rpartition('.')
    # What is one slip from several, such as b1 and b2, may be any of them.
    wrong |= {f'{section}.{s}': path for s in slips(last) if s not in words}
  wrong.pop('config.', None)
  wrong = {slip: path for slip, path in wrong.items() if slip[-1] != '.'}
  told = hints(wrong, name)
  assert len(told) == len(wrong) > 3000
  assert [s for s, path in wrong.items() if path not in told[s]] == []
  assert sum(len(near) > 2 for near in told.values()) < len(told) / 100


def test_a_key_of_another_section_is_found_there():
  wanted = {
      'config.learning_rate': {'config.optimizer.learning_rate'},
      'config.lerning_rate': {'config.optimizer.learning_rate'},
      'config.options': {'config.optimizer.options'},
      'config.model.aw_conv': {'config.model.backbone.aw_conv'},
      'config.name': {
          f'config.{section}.name'
          for section in ('data', 'task', 'model', 'optimizer')
      },
      'config.nothing_like_it': set(),
  }
  told = hints(wanted)
  assert all(near <= told[path] for path, near in wanted.items())
  assert told['config.nothing_like_it'] == set()
