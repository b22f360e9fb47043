"""Who may import whom, read from the source; and what importing may cost."""

import ast
import re

import commands
import pytest

from awconv_jax import command_line

PACKAGE = commands.ROOT / 'awconv_jax'
# What each room may import of the package, besides its own files and errors.
ALLOWED = {
    'errors': set(),
    'options': set(),
    'config': set(),
    'ops': set(),
    'layers': {'ops'},
    'models': {'layers', 'ops'},
    'surgery': {'layers', 'ops'},
    'weights': set(),
    'train': {'complexity', 'data', 'surgery', 'tasks', 'weights'},
    'data': set(),
    'evaluators': set(),
    'tasks': {'models', 'ops', 'evaluators'},
    'complexity': {'ops', 'text_table'},
    'text_table': set(),
    'command_line': set(),
    '__init__': {'layers', 'models', 'ops', 'surgery'},
}


def rooms():
  return sorted(
      {p.stem for p in PACKAGE.iterdir() if p.name[0] not in '.'}
      - {'__pycache__'}
  )


def files_of(room):
  path = PACKAGE / room
  return (
      sorted(path.rglob('*.py')) if path.is_dir() else [path.with_suffix('.py')]
  )


def imports_of(path):
  """Yields the dotted name of everything a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


@pytest.mark.parametrize('room', rooms())
def test_a_room_imports_what_it_may(room):
  for path in files_of(room):
    for name in imports_of(path):
      parts = name.split('.')
      assert parts[0] not in ('train', 'configs', 'tests'), f'{path}: {name}'
      if parts[0] != 'awconv_jax' or room in ('tools',):
        continue
      allowed = ALLOWED[room] | {room, 'errors', 'options'}
      assert parts[1] in allowed, f'{path.name} imports {name}'


def test_configs_import_only_ml_collections_and_their_common_part():
  for path in (commands.ROOT / 'configs').glob('*.py'):
    for name in imports_of(path):
      root = name.split('.')[0]
      standard = root in ('collections', 'difflib', 'typing')
      assert standard or root in ('ml_collections', 'configs'), path


def test_flags_are_defined_in_train_and_tools_only():
  for path in PACKAGE.rglob('*.py'):
    if 'tools' not in path.parts:
      assert 'flags.DEFINE' not in path.read_text(), path


def test_nothing_speaks_of_where_it_was_made():
  # The project speaks of itself alone.
  for pattern in ('*.py', '*.md', '*.toml', '*.txt', 'Makefile', '*.ipynb'):
    for path in commands.ROOT.rglob(pattern):
      relative = path.relative_to(commands.ROOT).parts
      if relative[0][0] == '.' or relative[0] == 'runs':
        continue
      text = path.read_text()
      for word in ('/wo' + 'rk/', '.libr' + 'ary', '/ro' + 'ot/'):
        assert word not in text, f'{path}: {word}'


# Every config, with each of its recipes. Keys of the sections `task` and
# `model` are arguments of what they make, which refuses any other.
CONFIGS = (
    *('digits.py', 'cifar10.py', 'cifar100.py', 'imagenet.py'),
    *(f'imagenet.py:recipe={name}' for name in ('paper', 'a2', 'a3')),
    *('digit_scenes.py', 'coco.py'),
)
READERS = {
    'run': ('config', ['train/loop.py', 'tasks/__init__.py']),
    'data': (
        'data',
        ['data/pipeline.py', 'data/detection/pipeline.py', 'train/loop.py'],
    ),
    'optimizer': ('config', ['train/optim.py']),
}


def test_these_are_all_configs():
  files = {path.name for path in (commands.ROOT / 'configs').glob('*.py')}
  assert files - {'__init__.py', 'common.py'} == {
      name.partition(':')[0] for name in CONFIGS
  }


@pytest.mark.parametrize('section', READERS)
@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_key_is_read(name, section):
  """A key that its readers do not name is a key that nothing reads."""
  config = command_line.load_config(f'{commands.ROOT}/configs/{name}')
  variable, files = READERS[section]
  source = '\n'.join((PACKAGE / file).read_text() for file in files)
  for key in config if section == 'run' else config[section]:
    pattern = rf"\b{variable}\.{key}\b|'{key}'"
    assert re.search(pattern, source), key
