"""What the documents say is so: their code runs, their commands parse."""

import ast
import importlib.util
import re
import runpy
import shlex
import string
import subprocess
import sys
import tomllib

from absl import flags
import commands
import pytest

import awconv_jax
from awconv_jax import command_line, models
from awconv_jax.errors import InputError
from awconv_jax.layers import attention
from benchmarks import __main__ as benchmarks

README = commands.ROOT / 'README.md'
DOCS = sorted((commands.ROOT / 'docs').glob('*.md'))
ALL = [README, commands.ROOT / 'CONTRIBUTING.md', *DOCS]
# Those whose Python runs by itself, without trained weights.
RUN = [README, commands.ROOT / 'docs/layers.md']


def blocks(path, language):
  found = re.findall(
      r'^```(\w*)\n(.*?)^```$', path.read_text(), re.DOTALL | re.MULTILINE
  )
  return [text for kind, text in found if kind == language]


def lines(path):
  """Commands of a document, what loops fill in by one of its values."""
  for block in blocks(path, 'bash'):
    for line in block.replace('\\\n', ' ').splitlines():
      line = string.Template(line.strip())
      yield line.safe_substitute(dtype='bfloat16', net='resnet50')


COMMANDS = sorted(
    {line for path in ALL for line in lines(path) if line[:7] == 'python '}
)


@pytest.mark.parametrize('path', RUN, ids=lambda path: path.name)
def test_the_python_code_runs(path):
  namespace = {}
  for block in blocks(path, 'python'):
    exec(block, namespace)  # One after the other, as a reader would.
  assert namespace['model']


@pytest.fixture
def parse(monkeypatch):
  """Parses a command as its program does, and forgets the program's flags."""
  before = set(flags.FLAGS)

  def parse_only(main, positional=False):
    del main, positional
    command_line._parse(sys.argv)
    if 'config' in flags.FLAGS:
      command_line.read_config()

  def parse(line):
    _, *words = shlex.split(line, comments=True)
    program, words = (
        (words[1], words[2:]) if words[0] == '-m' else (None, words)
    )
    if program == 'benchmarks':
      benchmarks._parse(words)
    elif program:
      monkeypatch.setattr(sys, 'argv', [program, *words])
      monkeypatch.delitem(sys.modules, program, raising=False)
      runpy.run_module(program, run_name='__main__')
    else:
      monkeypatch.setattr(sys, 'argv', words)
      runpy.run_path(str(commands.ROOT / words[0]), run_name='__main__')

  monkeypatch.setattr(command_line, 'run', parse_only)
  monkeypatch.chdir(commands.ROOT)
  yield parse
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


def test_the_commands_are_found():
  assert len([c for c in COMMANDS if 'train.py' in c]) >= 8
  assert len([c for c in COMMANDS if 'awconv_jax.tools' in c]) >= 8


@pytest.mark.parametrize('line', COMMANDS)
def test_a_command_parses(line, parse):
  parse(line)


def test_a_wrong_command_is_seen(parse):
  line = 'python train.py --config=configs/digits.py --config.model.widht=8'
  with pytest.raises(InputError, match='widht'):
    parse(line)


def test_make_and_pip_know_what_is_asked_of_them():
  every = [line for path in ALL for line in lines(path)]
  targets = {line.split()[1] for line in every if line[:5] == 'make '}
  assert {'train', 'detect', 'test'} <= targets
  subprocess.run(
      ['make', '--dry-run', *targets],
      cwd=commands.ROOT,
      check=True,
      capture_output=True,
  )
  text = (commands.ROOT / 'pyproject.toml').read_text()
  extras = tomllib.loads(text)['project']['optional-dependencies']
  for line in every:
    if line[:11] == 'pip install' and '[' in line:
      assert set(re.search(r'\[(.*?)\]', line)[1].split(',')) <= set(extras)


def test_links_lead_to_files():
  for path in [*ALL, commands.ROOT / 'CHANGELOG.md']:
    for target in re.findall(r'\]\((?!https?:)([^)#]+)', path.read_text()):
      assert (path.parent / target).exists(), f'{path.name}: {target}'


def test_the_readme_is_short():
  assert len(README.read_text().splitlines()) <= 150


def test_the_networks_and_attentions_are_those_there_are():
  table = (commands.ROOT / 'docs/layers.md').read_text()
  row = re.search(r'\| networks \|(.*)\|', table)[1]
  assert set(re.findall('`(.*?)`', row)) == set(models.MODELS)
  row = re.search(r'\| `attention=` \|(.*)\|', table)[1]
  assert set(re.findall('`(.*?)`', row)) == set(attention.ATTENTION)


def test_the_defaults_of_the_ambiguities_are_those_of_the_layer():
  text = (commands.ROOT / 'docs/ambiguities.md').read_text()
  found = dict(re.findall(r'`(\w+)=([^`]+)`', text))
  assert len(found) >= 8
  for name, value in found.items():
    assert getattr(awconv_jax.AWConv, name) == ast.literal_eval(value), name


@pytest.mark.slow
def test_the_picture_can_be_drawn(tmp_path, monkeypatch):
  path = commands.ROOT / 'docs/attention_maps.py'
  spec = importlib.util.spec_from_file_location('attention_maps', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  monkeypatch.setattr(module, 'STEPS', 1)
  module.main(tmp_path / 'maps.png')
  assert (tmp_path / 'maps.png').stat().st_size > 50_000
