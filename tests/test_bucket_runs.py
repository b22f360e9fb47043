"""Whole runs with directory and data in a bucket: killed, and amid faults."""

import io
import os
import signal

import bucket
import commands
import fake_tfds
from PIL import Image
import pytest
from watched_run import assert_same_runs

from awconv_jax import places
from awconv_jax.data.digits import Digits

pytestmark = [pytest.mark.slow, bucket.needed]

# Twelve steps: saved after 4, 8 and 12, evaluated after 8 and 12.
LAST = 12
CONFIG = (
    commands.TINY,
    '--config.data.name=tfds:scans',
    '--config.num_epochs=0.27',
    '--config.checkpoint_every_epochs=0.09',
    '--config.eval_every_epochs=0.18',
)
# What a process opens to write, by what it is called with.
WATCH = """
import os, sys
def watch(event, arguments):
  writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
  if event == 'open' and isinstance(arguments[0], (str, bytes)):
    if (arguments[2] or 0) & writes:
      log(os.path.realpath(os.fsdecode(arguments[0])))
  if event == 'os.mkdir':
    log(os.path.realpath(os.fsdecode(arguments[0])))
def log(path):
  os.write(number, (path + chr(10)).encode())
number = os.open(os.environ['WRITTEN'], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
sys.addaudithook(watch)
"""


def start(workdir, data, env):
  flags = (*CONFIG, f'--workdir={workdir}', f'--config.data.dir={data}')
  quick = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  return commands.start('train.py', *flags, env=quick | env)


def end(process):
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """The embedded digits as TFDS prepares a set, on this machine."""
  place, splits = tmp_path_factory.mktemp('data'), {}
  for split in ('train', 'test'):
    rows = Digits(split)
    splits[split] = []
    for row in (rows[i] for i in range(len(rows))):
      file = io.BytesIO()
      Image.open(io.BytesIO(row['image'])).save(file, 'png')
      splits[split].append({'image': file.getvalue(), 'label': row['label']})
  fake_tfds.write(place, 'scans', fake_tfds.labelled(10), splits)
  return place


@pytest.fixture(scope='module')
def reference(data, tmp_path_factory):
  """A run on this machine that nothing befell."""
  workdir = tmp_path_factory.mktemp('reference') / 'run'
  code, _, err = end(start(workdir, data, {}))
  assert code == 0, err
  return workdir


def upload(data, to):
  for file in data.rglob('*'):
    if file.is_file():
      (places.at(to) / str(file.relative_to(data))).write_bytes(
          file.read_bytes()
      )


def test_killed_at_three_points_it_ends_with_the_same_bits(
    data, reference, tmp_path, monkeypatch
):
  process, variables = bucket.start()
  bucket.use(monkeypatch, variables)
  (tmp_path / 'sitecustomize.py').write_text(WATCH)
  (tmp_path / 'tmp').mkdir()
  env = {
      'PYTHONPATH': str(tmp_path),
      'TMPDIR': str(tmp_path / 'tmp'),
      'WRITTEN': str(tmp_path / 'written.txt'),
      'MPLCONFIGDIR': str(tmp_path / 'tmp/matplotlib'),
      'PYTHONDONTWRITEBYTECODE': '1',
  }
  workdir, there = 'gs://bucket/runs/a', 'gs://bucket/data'
  try:
    upload(data, there)
    # Before the first checkpoint, between two, and as the second is written.
    for words in ('step 2/', 'step 6/', 'step 8/12  evaluation'):
      run = start(workdir, there, env)
      begun = any(line.startswith(words) for line in run.stdout)
      assert begun, (words, end(run))
      run.send_signal(signal.SIGKILL)
      run.communicate()
      assert run.returncode == -signal.SIGKILL
    code, out, err = end(start(workdir, there, env))
    assert code == 0, err
    assert 'resumed from the checkpoint of step' in out
    assert_same_runs(reference, workdir, LAST)
    for tool, *flags in (
        ('evaluate', f'--run={workdir}', f'--output={workdir}/result.json'),
        ('plot_curves', workdir, f'--output={workdir}/two.png'),
    ):
      code, _, err = commands.run(*commands.program(tool), *flags, env=env)
      assert code == 0, err
    names = {path.name for path in places.at(workdir).iterdir()}
    assert {'result.json', 'two.png', 'curves.png', 'tensorboard'} <= names
    assert '.lock' not in names
  finally:
    process.kill()
  written = set((tmp_path / 'written.txt').read_text().split('\n')[:-1])
  cache = os.path.realpath(os.environ['JAX_COMPILATION_CACHE_DIR'])
  own = (str(tmp_path), '/dev/', '/proc/', cache)
  assert [path for path in written if not path.startswith(own)] == []


def test_fifty_faults_of_a_bucket_lose_nothing(
    data, reference, tmp_path, monkeypatch
):
  told, failures = tmp_path / 'faults.txt', []
  with told.open('w') as output:
    process, variables = bucket.start(6, 50, output=output)
  bucket.use(monkeypatch, variables)
  workdir, there = 'gs://bucket/runs/b', 'gs://bucket/data'

  def number():
    return len(told.read_text().splitlines())

  try:
    upload(data, there)
    before = number()
    for _ in range(12):
      code, _, err = end(start(workdir, there, {}))
      if code:
        failures.append(err)
        assert 'Traceback' not in err, err
      elif number() == 50:
        break
    assert code == 0 and number() == 50 and before < 25, failures
    assert_same_runs(reference, workdir, LAST)
  finally:
    process.kill()
