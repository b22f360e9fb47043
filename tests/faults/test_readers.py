"""Faults of the processes that read: the run goes on, or ends with them."""

import os
import pathlib
import signal
import time

import fake_tfds
import pictures
import pytest
import runs
from watched_run import assert_same_runs

from awconv_jax import data
from awconv_jax.errors import InputError

pytestmark = pytest.mark.faults('readers')

SLOW = pytest.mark.slow
LINES = ('step 1/', 'step 5/', 'step 9/')
TO_ONE = ('SIGKILL', 'SIGTERM', 'SIGINT', 'SIGHUP', 'SIGSTOP', 'SIGSEGV')


def started(workdir, line):
  """Returns a run with two readers that has told so much, and the readers."""
  process = runs.start(workdir, 'SIG0@0', '--config.data.num_workers=2')
  assert any(text.startswith(line) for text in process.stdout)
  return process, readers_of(process.pid)


def readers_of(parent):
  """Returns the numbers of the processes that it reads with."""
  found = []
  for file in pathlib.Path(f'/proc/{parent}/task').glob('*/children'):
    for pid in file.read_text().split():
      line = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
      if b'workers import serve' in line:
        found.append(int(pid))
  return found


def assert_gone(pids):
  """Asserts that processes end in time."""
  until = time.monotonic() + runs.SECONDS
  for pid in pids:
    stat = pathlib.Path(f'/proc/{pid}/stat')
    while (
        stat.exists() and stat.read_text().rpartition(')')[2].split()[0] != 'Z'
    ):
      assert time.monotonic() < until, pid
      time.sleep(0.05)


@pytest.mark.parametrize(
    'fault', runs.cases([f'{name}@{line}' for name in TO_ONE for line in LINES])
)
def test_one_gets_a_signal(reference, tmp_path, fault):
  name, _, line = fault.partition('@')
  process, readers = started(tmp_path / 'run', line)
  assert len(readers) >= 2
  os.kill(readers[LINES.index(line) % len(readers)], getattr(signal, name))
  code, _, err, _ = runs.end(process)
  # Python clears away, and tells of, the memory that a killed one had shared.
  assert code == 0 and 'Traceback' not in err, err
  assert_same_runs(reference, tmp_path / 'run', runs.LAST)
  assert_gone(readers)


@pytest.mark.parametrize('line', runs.cases(LINES))
def test_all_are_killed(reference, tmp_path, line):
  process, readers = started(tmp_path / 'run', line)
  for pid in readers:
    os.kill(pid, signal.SIGKILL)
  code, _, err, _ = runs.end(process)
  if code:
    assert 'error: a reading process was killed' in err.splitlines()[-1]
  assert 'Traceback' not in err and len(err.splitlines()) <= 4, err
  runs.assert_as_if_nothing_had_been(tmp_path / 'run', reference)


@pytest.mark.parametrize('line', runs.cases(['compiling', *LINES]))
@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGKILL'])
def test_all_and_the_run_get_a_signal(
    reference, tmp_path, name, line, record_property
):
  process, readers = started(tmp_path / 'run', line)
  os.killpg(process.pid, getattr(signal, name))
  code, out, err, seconds = runs.end(process)
  record_property('end', seconds)
  if name in ('SIGINT', 'SIGTERM'):
    assert code == 128 + getattr(signal, name) and not err, err
    assert 'saved' in out
  else:
    assert code == -getattr(signal, name) and not err, err
  assert_gone(readers)
  runs.assert_as_if_nothing_had_been(tmp_path / 'run', reference)


@pytest.mark.parametrize('line', runs.cases(['compiling', *LINES]))
def test_none_outlives_a_run_that_is_killed(reference, tmp_path, line):
  process, readers = started(tmp_path / 'run', line)
  process.kill()
  assert_gone(readers)
  runs.end(process)
  runs.assert_as_if_nothing_had_been(tmp_path / 'run', reference)


def prepared(root):
  """Returns a file of 40 records, and options that read it."""
  rows = [dict(image=pictures.photo(i, 'PNG'), label=i % 3) for i in range(40)]
  fake_tfds.write(root, 'tiny', fake_tfds.labelled(3), {'train': rows})
  options = dict(name='tfds:tiny', dir=str(root), image_size=16, prefetch=1)
  (path,) = (root / 'tiny/1.0.0').glob('*record*')
  return path, options | dict(eval_image_size=16)


BEFALL = {
    'half': lambda path: os.truncate(path, path.stat().st_size // 2),
    'empty': lambda path: os.truncate(path, 0),
    'other_bytes': lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=SLOW)])
@pytest.mark.parametrize('how', BEFALL)
def test_what_befalls_a_file_that_is_read(tmp_path, how, workers):
  path, options = prepared(tmp_path)
  options |= dict(num_workers=workers)
  batches = data.create(options, train=True, batch_size=4, seed=0)
  next(batches)
  BEFALL[how](path)
  with pytest.raises(InputError, match='copy or prepare it again') as caught:
    for _ in range(30):
      next(batches)
  batches.close()
  assert str(path) in str(caught.value)


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=SLOW)])
def test_an_image_vanishes(tmp_path, workers):
  for name in ('cat', 'dog'):
    (tmp_path / 'train' / name).mkdir(parents=True)
    for i in range(10):
      path = tmp_path / f'train/{name}/{i}.png'
      path.write_bytes(pictures.photo(i, 'PNG'))
  options = dict(name=f'folder:{tmp_path}', image_size=16, eval_image_size=16)
  options |= dict(num_workers=workers, prefetch=1)
  batches = data.create(options, train=True, batch_size=4, seed=0)
  next(batches)
  state, content = batches.get_state(), path.read_bytes()
  path.unlink()
  told = f'{path} cannot be read: No such file'
  with pytest.raises(InputError, match=told) as caught:
    for _ in range(30):
      next(batches)
  assert 'mend them or raise it' in str(caught.value)
  batches.close()
  path.write_bytes(content)
  batches = data.create(options, train=True, batch_size=4, seed=0)
  batches.set_state(state)
  for _ in range(30):
    next(batches)
  batches.close()
