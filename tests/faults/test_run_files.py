"""Damaged files of a run: refused in one line, or the same bits come out."""

import fcntl
import json
import pathlib
import shutil

import commands
from harms import HARMS
import pytest
import runs
from watched_run import assert_same_runs, rows_of, saved_arrays

from awconv_jax.train import logging

pytestmark = [pytest.mark.slow, pytest.mark.faults('bytes')]


@pytest.fixture
def workdir(reference, tmp_path):
  """A run that has four of its twelve steps before it."""
  shutil.copytree(reference, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run/checkpoints/12')
  return tmp_path / 'run'


def left(workdir):
  """Returns what a run is made of, byte by byte."""
  files = workdir.rglob('*')
  keep = ('checkpoints', 'config.json', 'metrics.jsonl')
  return {
      path: path.read_bytes()
      for path in files
      if path.relative_to(workdir).parts[0] in keep and path.is_file()
  }


def steps_of(row):
  """Returns a row without what the clock says."""
  return {k: v for k, v in row.items() if k not in logging.CLOCK}


def assert_held(workdir, reference, place, before):
  """Asserts that the run is refused as it lies, or goes on as it would have."""
  code, _, err = runs.again(workdir)
  if code:
    runs.assert_one_line(code, err, place)
    assert left(workdir) == before
    return False
  assert not err
  want, got = (saved_arrays(run, runs.LAST) for run in (reference, workdir))
  assert {k: v.tobytes() for k, v in got.items()} == {
      k: v.tobytes() for k, v in want.items()
  }
  # Rows that someone took away do not come back, but no row is wrong.
  rows = [steps_of(row) for row in rows_of(workdir)]
  known = [steps_of(row) for row in rows_of(reference)]
  assert all(row in known for row in rows)
  assert [row for row in known if row['step'] > 8] == [
      row for row in rows if row['step'] > 8
  ]
  return True


def changed(**values):
  """Returns what gives options of a config other values."""

  def harm(path, _):
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | values))

  return harm


def said(text):
  return lambda path, _: path.write_text(text)


CONFIGS = {k: v for k, v in HARMS.items() if k != 'one_byte_more'} | {
    'a_list': said('[]'),
    'null': said('null'),
    'a_number': said('17'),
    'one_option': said('{"seed": 0}'),
    'not_a_number': said('{"seed": NaN}'),
    'another_seed': changed(seed=1),
    'a_huge_seed': changed(seed=10**400),
    'seed_as_text': changed(seed='0x'),
    'a_null_rate': changed(optimizer=None),
    'data_as_text': changed(data='digits'),
    'data_as_a_list': changed(data=['digits']),
    'an_unknown_option': changed(sead=1),
    'a_nested_option': changed(num_epochs={'a': 1}),
    'another_model': changed(model={'name': 'resnet34', 'num_classes': 10}),
    'an_unknown_model': changed(model={'name': 'resnet', 'num_classes': 10}),
    'another_length': changed(num_epochs=0.5),
}
# A bit can make one digit another, which is refused, or touch a free option.


@pytest.mark.parametrize('harm', runs.cases(CONFIGS, every=9))
def test_config(workdir, reference, harm):
  path = workdir / 'config.json'
  CONFIGS[harm](path, workdir / 'classes.json')
  assert_held(workdir, reference, workdir, left(workdir))


METRICS = HARMS | {
    'null_rows': said('null\n' * 9),
    'list_rows': said('[1]\n[2]\n'),
    'no_step': said('{"loss": 1.0}\n{"loss": 1.0}\n'),
    'step_as_text': said('{"step": "4"}\n{"step": 5}\n'),
    'step_null': said('{"step": null}\n{"step": 5}\n'),
    'a_huge_step': said('{"step": 1e999}\n'),
}


@pytest.mark.parametrize('harm', runs.cases(METRICS, every=9))
def test_metrics(workdir, reference, harm):
  path = workdir / 'metrics.jsonl'
  METRICS[harm](path, workdir / 'classes.json')
  assert_held(workdir, reference, path, left(workdir))


def a_file(path):
  shutil.rmtree(path, ignore_errors=True)
  path.write_text('x')


def a_folder(path):
  path.unlink(missing_ok=True)
  (path / 'x').mkdir(parents=True)


def a_dangling_link(path):
  if path.is_dir():
    shutil.rmtree(path)
  path.unlink(missing_ok=True)
  path.symlink_to('nowhere/at/all')


IN_THE_WAY = {'file': a_file, 'folder': a_folder, 'link': a_dangling_link}
PLACES = [
    f'{name} {kind}'
    for kind, names in {
        'file': 'checkpoints tensorboard',
        'folder': (
            '.lock classes.json parameters.txt config.tmp metrics.tmp'
            ' curves.png unreadable.txt'
        ),
        'link': (
            '.lock tensorboard checkpoints parameters.txt metrics.tmp'
            ' config.tmp'
        ),
    }.items()
    for name in names.split()
]


@pytest.mark.parametrize('place', runs.cases(PLACES))
def test_something_else_in_a_place(workdir, reference, place):
  name, kind = place.split()
  path = workdir / name
  IN_THE_WAY[kind](path)
  code, _, err = runs.again(workdir)
  if code:
    runs.assert_one_line(code, err, workdir)
    assert path.is_symlink() or path.exists()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  if name != 'checkpoints':
    runs.assert_as_if_nothing_had_been(workdir, reference)


def test_a_run_that_another_has(workdir):
  before = left(workdir)
  with (workdir / '.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    code, _, err = runs.again(workdir)
  runs.assert_one_line(code, err, workdir, 'another run under way')
  assert left(workdir) == before


ODD = {
    'brackets': 'lr[0.1]',
    'star': 'a*b?',
    'backslash': 'a\\b',
    'braces': '{a,b}',
    'space': ' a b ',
    'accents': 'é ü 日本',
    'quote': 'it\'s "it"',
    'dash': '-run',
    'equals': 'a=b',
    'percent': '%s %(a)s {0}',
    'hash': 'a#b',
    'colon': 'a:b',
    'dollar': '$HOME',
    'newline': 'a\nb',
    'long': 'x' * 200,
    'digits': '12',
    'suffix': 'run.orbax-checkpoint-tmp',
}


@pytest.mark.faults('hostile inputs')
@pytest.mark.parametrize('name', runs.cases(ODD))
def test_an_odd_name(tmp_path, reference, name):
  workdir = tmp_path / ODD[name]
  code, _, err = runs.again(workdir)
  if code:
    runs.assert_one_line(code, err, repr(str(workdir))[1:-1])
    assert not workdir.exists()
  else:  # What is saved can be read, too.
    assert not err
    assert_same_runs(reference, workdir, runs.LAST)


NOWHERE = {
    'file': 'taken',
    'in_a_file': 'taken/run',
    'device': '/dev/null',
    'in_a_device': '/dev/null/run',
    'in_proc': '/proc/run',
    'too_long': 'x' * 300,
    'empty': '',
    'bucket': 'gs://bucket/run',
    's3': 's3://bucket/run',
    'nul': 'a\0b',
    'dangling': 'dangling/run',
    'loop': 'loop/run',
}


@pytest.mark.faults('hostile inputs')
@pytest.mark.parametrize('name', runs.cases(NOWHERE))
def test_no_place_for_a_run(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('taken').write_text('x')
  pathlib.Path('dangling').symlink_to('nowhere/at/all')
  pathlib.Path('loop').symlink_to('loop')
  code, _, err = runs.again(NOWHERE[name])
  runs.assert_one_line(code, err)
  names = sorted(path.name for path in pathlib.Path().iterdir())
  assert names == ['dangling', 'loop', 'taken']


def tool_calls(run):
  return {
      'evaluate': ('evaluate', f'--run={run}'),
      'convert': ('convert', f'--input={run}', f'--output={run}.safetensors'),
      'plot_curves': ('plot_curves', run),
      'predict': ('predict', f'--run={run}', f'--output={run}.out'),
  }


TOOLS = [
    f'{tool} {file} {harm}'
    for tool, file in {
        'evaluate': 'config.json',
        'plot_curves': 'metrics.jsonl',
        'predict': 'config.json',
        'convert': 'checkpoints/8/meta/metadata',
    }.items()
    for harm in (
        'half',
        'noise',
        'empty',
        'deep',
        'text',
        'removed',
        'a_folder',
    )
]


@pytest.mark.parametrize('fault', runs.cases(TOOLS))
def test_a_tool_on_a_damaged_run(workdir, fault):
  tool, file, harm = fault.split()
  HARMS[harm](workdir / file, workdir / 'classes.json')
  before = {p.name for p in workdir.parent.iterdir()}
  code, _, err = commands.tool(*tool_calls(workdir)[tool])
  if (tool, harm) == ('plot_curves', 'half'):
    assert code == 0  # As a kill may leave it: a row that is not whole.
    return
  runs.assert_one_line(code, err, workdir)
  assert {p.name for p in workdir.parent.iterdir()} == before
