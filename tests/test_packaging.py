"""What is installed, what importing needs, and what it costs."""

import ast
import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import commands
import pytest

TEXT = (commands.ROOT / 'pyproject.toml').read_text()
PROJECT = tomllib.loads(TEXT)['project']
EXTRAS = PROJECT['optional-dependencies']
# By module; it takes its time.
holders_of = functools.cache(importlib.metadata.packages_distributions)
# Imported by those that train.py needs, but not by us.
INDIRECT = {'importlib_resources', 'array_record'}
# Pydantic's, and what no path of train.py imports.
UNDECLARED = {'pydantic_core', 'tensorflow', 'requests'}
# What Orbax reads buckets with, and what the extra [gcs] brings.
UNDECLARED |= {'etils', 'tensorstore', 'fsspec', 'gcsfs'}
UNDECLARED |= {'huggingface_hub'}  # The extra [hub].
UNDECLARED |= {'scipy'}  # JAX itself needs it.
# The extra [export], and what has an environment of its own.
UNDECLARED |= {'flatbuffers', 'jax2onnx', 'onnxruntime'}


def names(requirements):
  """Normalised names of distributions."""
  found = (re.match(r'[\w.-]+', line)[0] for line in requirements)
  return {name.lower().replace('-', '_') for name in found}


def modules(distributions):
  """Top-level modules of distributions."""
  return {
      module
      for module, holders in holders_of().items()
      if names(holders) & distributions and module[0] != '_'
  }


def imported(*paths):
  """Top-level modules that files import, anywhere in them."""
  found = set()
  for path in paths:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        found |= {alias.name.partition('.')[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        found.add(node.module.partition('.')[0])
  ours = {'awconv_jax', 'configs', 'benchmarks'}
  return found - set(sys.stdlib_module_names) - ours


# Refuses what the extras bring, unless Flax itself needs it; then builds,
# initialises and applies a layer and a network.
BLOCKED = """
import sys, time
import jax, jax.numpy as jnp, flax.linen, numpy  # And what these bring.
class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in {blocked}:
      raise ModuleNotFoundError(f'{{name}} is not to be imported')
sys.meta_path.insert(0, Refuse())
start = time.process_time()
import awconv_jax
seconds = time.process_time() - start
key, images = jax.random.key(0), jnp.ones((2, 8, 8, 16))
awconv_jax.AWConv(8, (3, 3)).init_with_output(key, images)
model = awconv_jax.create_model('resnet18', attention='se', aw_conv=True)
jax.eval_shape(lambda: model.init(key, jnp.ones((1, 32, 32, 3)), train=False))
detector = awconv_jax.create_detector(backbone='resnet18', num_classes=2)
print(seconds)
"""


def test_importing_needs_jax_flax_and_numpy_alone_and_is_quick():
  flax = [r for r in importlib.metadata.requires('flax') if 'extra' not in r]
  blocked = modules(names(EXTRAS['train']) - names(PROJECT['dependencies']))
  blocked -= modules(names(flax))
  assert {'cv2', 'pydantic', 'ml_collections', 'grain'} <= blocked
  code, out, err = commands.run('-c', BLOCKED.format(blocked=blocked))
  assert code == 0, err
  # Ours alone, beside JAX and Flax; far more than it takes on an idle machine.
  assert float(out) < 0.5


def test_what_is_imported_is_declared():
  folders = 'awconv_jax/**/*.py', 'configs/*.py', 'train.py'
  needed = imported(*(p for f in folders for p in commands.ROOT.glob(f)))
  declared = names(PROJECT['dependencies']) | names(EXTRAS['train'])
  assert not needed - modules(declared) - UNDECLARED
  for name in declared - INDIRECT:
    assert modules({name}) & needed, f'{name} is declared, but not imported'


def test_requirements_name_extras_only():
  for name, extra in (('', 'train'), ('-test', 'test')):
    text = (commands.ROOT / f'requirements{name}.txt').read_text()
    lines = [line for line in text.splitlines() if line[0] != '#']
    assert lines == [f'-e .[{extra}]']
  assert {'cuda13', 'tpu', 'prepare'} < set(EXTRAS)


@pytest.mark.slow  # Builds in an environment that pip makes for it.
def test_a_wheel_holds_the_package(tmp_path):
  source = tmp_path / 'source'  # What is left of building stays there.
  package = source / 'awconv_jax'
  shutil.copytree(commands.ROOT / 'awconv_jax', package, symlinks=True)
  for name in ('configs', 'pyproject.toml', 'README.md', 'LICENSE'):
    (source / name).symlink_to(commands.ROOT / name)
  subprocess.run(
      [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps']
      + ['--wheel-dir', tmp_path, source],
      check=True,
  )
  (path,) = tmp_path.glob('*.whl')
  with zipfile.ZipFile(path) as wheel:
    files = wheel.namelist()
    metadata = next(f for f in files if f.endswith('/METADATA'))
    lines = wheel.read(metadata).decode().splitlines()
  assert {'awconv_jax/py.typed', 'awconv_jax/configs/digits.py'} < {*files}
  assert 'awconv_jax/shipped/digits/model.safetensors' in files
  assert {f.split('/')[0] for f in files} == {
      *('awconv_jax', path.name.rpartition('-py3')[0] + '.dist-info')
  }
  always = [
      line.split(': ')[1]
      for line in lines
      if line.startswith('Requires-Dist') and 'extra' not in line
  ]
  assert names(always) == {'jax', 'flax', 'numpy'}
  # Installed, it trains in a directory that holds nothing.
  home, empty = tmp_path / 'home', tmp_path / 'empty'
  empty.mkdir()
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps']
  subprocess.run([*pip, f'--target={home}', path], check=True)
  for config in ('digits:aw_conv=false', 'configs/digits.py'):
    trained = subprocess.run(
        [home / 'bin/awconv-train', f'--config={config}', '--workdir=run']
        + ['--config.num_epochs=0.05', '--config.optimizer.warmup_epochs=0'],
        cwd=empty,
        env={**os.environ, 'PYTHONPATH': str(home)},
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    assert 'done: ' in trained.stdout
    shutil.rmtree(empty / 'run')
