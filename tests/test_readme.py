"""What the documents say is so: their code runs, their commands parse."""

import ast
import importlib.util
import pathlib
import re
import shlex
import string
import subprocess
import sys
import tomllib

from absl import flags
import commands
import nbclient
import nbformat
import numpy as np
from PIL import Image, ImageChops
import pytest

import awconv_jax
from awconv_jax import command_line, models
from awconv_jax.layers import attention
from benchmarks import __main__ as benchmarks
from benchmarks import first_hour

README = commands.ROOT / 'README.md'
DOCS = sorted((commands.ROOT / 'docs').glob('*.md'))
ALL = [README, commands.ROOT / 'CONTRIBUTING.md', *DOCS]
# Those whose Python runs by itself, without trained weights.
RUN = [README, commands.ROOT / 'docs/layers.md']
OWN = re.compile(r'# (\w+\.py)\n')
NOTEBOOKS = sorted((commands.ROOT / 'notebooks').glob('*.ipynb'))


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


def command(line):
  """Returns what a line of a document has Python start, if anything."""
  launch = r'.*\blaunch/\S+\.sh .*?(?=--config=)'
  line = re.sub(launch, 'python train.py ', line)
  return line.removeprefix('.venv/bin/')


COMMANDS = {command(line) for path in ALL for line in lines(path)}
COMMANDS = sorted(line for line in COMMANDS if line[:7] == 'python ')


@pytest.fixture(autouse=True)
def own_files(tmp_path, monkeypatch):
  """Writes blocks that begin with a file's name, as a reader would."""
  monkeypatch.syspath_prepend(tmp_path)
  for path in RUN:
    for block in blocks(path, 'python'):
      if own := OWN.match(block):
        (tmp_path / own[1]).write_text(block)


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize(
    'path',
    [README, *(pytest.param(p, marks=pytest.mark.slow) for p in RUN[1:])],
    ids=lambda path: path.name,
)
def test_the_python_code_runs(path):
  namespace = {}
  for block in blocks(path, 'python'):
    if not OWN.match(block):
      exec(block, namespace)  # One after the other, as a reader would.
  assert namespace['model']


# What is printed in a notebook, between which bounds it lies.
CLAIMS = {
    'comparison.ipynb': [('plain alone is wrong on (.*)', -1, 40)],
    'detection.ipynb': [(r'score (\d\.\d+)', 0.9, 1.01)],
    'layer.ipynb': [('nn.Conv (.*),', 0.4, 0.6), ('AWConv (.*)', 0, 0.05)],
    'quickstart.ipynb': [('other writers: (.*)%', 90, 100)],
}


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_runs(path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '')  # One device, as a user has.
  # Compiling takes most of the time.
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  monkeypatch.setenv('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
  notebook = nbformat.read(path, as_version=4)

  def pictures():
    outputs = [o for c in notebook.cells for o in c.get('outputs', ())]
    return [o for o in outputs if 'image/png' in o.get('data', {})]

  stored = len(pictures())
  nbclient.NotebookClient(
      notebook, timeout=900, resources={'metadata': {'path': path.parent}}
  ).execute()
  outputs = [o for c in notebook.cells for o in c.get('outputs', ())]
  # Who reads it on the web sees what was committed.
  assert stored == len(pictures()) >= 2, 'commit notebooks with their outputs'
  text = ''.join(o.get('text', '') for o in outputs)
  for words, least, most in CLAIMS[path.name]:
    assert least < float(re.search(words, text)[1]) < most


@pytest.mark.slow
@pytest.mark.parametrize(
    'line', [line for line in lines(README) if '=docs/digit' in line]
)
def test_the_pictures_are_what_the_commands_draw(line, tmp_path):
  line, _, name = line.rpartition('=')
  words = shlex.split(f'{line}={tmp_path / name}')[1:]
  code, out, err = commands.run(*words)
  assert code == 0, err
  with Image.open(tmp_path / name) as drawn:
    with Image.open(commands.ROOT / 'docs' / name) as shown:
      # Fonts and Matplotlib draw some pixels otherwise in another version.
      assert drawn.size == shown.size
      apart = ImageChops.difference(drawn.convert('RGB'), shown.convert('RGB'))
  assert np.asarray(apart).mean() < 2


@pytest.fixture
def parse(monkeypatch):
  """Has a program read a command line and its config; returns the error."""
  run = command_line.run

  def parse_only(main, positional=False):
    read = command_line.read_config if 'config' in flags.FLAGS else list
    run(lambda *words: read(), positional=positional)

  def parse(line):
    _, *words = shlex.split(line.replace(' -m ', ' '), comments=True)
    if words[0] == 'benchmarks':
      benchmarks._parse(words[1:])
      return ''
    if words[0] == 'benchmarks.first_hour':
      first_hour.parse(words[1:])
      return ''
    name = words[0].removeprefix('awconv_jax.tools.').removesuffix('.py')
    return commands.tool(name, *words[1:])[2]

  monkeypatch.setattr(command_line, 'run', parse_only)
  monkeypatch.chdir(commands.ROOT)
  return parse


@pytest.mark.parametrize('line', COMMANDS)
def test_a_command_parses(line, parse):
  assert parse(line) == ''


def test_a_wrong_command_is_seen(parse):
  line = 'python train.py --config=configs/digits.py --config.model.widht=8'
  assert 'widht' in parse(line)


def test_make_and_pip_know_what_is_asked_of_them():
  every = [line for path in ALL for line in lines(path)]
  assert len(COMMANDS) >= 16
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


def test_links_lead_to_files_and_the_readme_is_short():
  for path in [*ALL, commands.ROOT / 'CHANGELOG.md']:
    for target in re.findall(r'\]\((?!https?:)([^)#]+)', path.read_text()):
      assert (path.parent / target).exists(), f'{path.name}: {target}'
  assert len(README.read_text().splitlines()) <= 175


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


@pytest.mark.slow  # It installs what the site is made with.
def test_the_site_is_made_without_a_warning():
  done = subprocess.run(
      ['make', 'docs', f'PYTHON={sys.executable}'],
      cwd=commands.ROOT,
      capture_output=True,
      text=True,
  )
  told = done.stdout + done.stderr  # Which of them is the version's.
  assert done.returncode == 0 and 'No issues found' in told, told
  site = commands.ROOT / 'build/docs'
  pages = {p.parent.relative_to(site) for p in site.rglob('index.html')}
  modules = 'models/resnet', 'train/loop', 'tools/evaluate', 'ops/aw_conv'
  assert {pathlib.Path('reference/awconv_jax', m) for m in modules} < pages
  for name in ('warmup_start_fraction', 'key_ratio', 'num_threads', 'shear'):
    assert f'>{name}<' in (site / 'reference/config/index.html').read_text()
