"""Runs that faults befall, and what must hold of them afterwards."""

import pathlib
import time

import commands
import pytest
from watched_run import assert_same_runs

CHILD = pathlib.Path(__file__).with_name('child.py')
# Twelve steps: saved after 4, 8 and 12, evaluated after 8 and 12.
CONFIG = (
    commands.TINY,
    '--config.num_epochs=0.27',
    '--config.checkpoint_every_epochs=0.09',
    '--config.eval_every_epochs=0.18',
)
LAST = 12
SECONDS = 30  # In which whatever was befallen has to end.


def cases(names, every=0):
  """Returns parameters; one of so many belongs to `make test`, or none."""
  return [
      pytest.param(
          name,
          id=str(name),
          marks=() if every and i % every == 0 else pytest.mark.slow,
      )
      for i, name in enumerate(names)
  ]


def start(workdir, fault='SIG0@0', *flags):
  """Starts the run in a process of its own, which the fault will befall."""
  quick = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  flags = (*CONFIG, f'--workdir={workdir}', *flags)
  return commands.start(CHILD, fault, 'train.py', *flags, env=quick)


def end(process, since=None, limit=SECONDS):
  """Returns (exit code, stdout, stderr, seconds since then, or since now)."""
  since = since or time.time()
  try:
    # A run that goes on takes its time, on a busy machine.
    out, err = process.communicate(timeout=10 * SECONDS)
  finally:
    process.kill()
  seconds = time.time() - since
  assert process.returncode == 0 or seconds < limit, (seconds, err)
  return process.returncode, out, err, seconds


def befallen(workdir, fault, *flags):
  """Returns what `end` does of a run that a fault befell."""
  process = start(workdir, fault, *flags)
  told = pathlib.Path(f'{workdir}.befell')
  while process.poll() is None and not told.exists():
    time.sleep(0.01)
  assert told.exists(), f'it ended without the fault: {process.communicate()}'
  # What limits files is there before the run.
  limit = SECONDS * (2 if fault.startswith('fsize') else 1)
  return end(process, told.stat().st_mtime, limit)


def again(workdir, *flags):
  """Runs the same command in this process: (exit code, stdout, stderr)."""
  return commands.tool('train', *CONFIG, f'--workdir={workdir}', *flags)


def assert_as_if_nothing_had_been(workdir, reference):
  """Has the run go on, and ends with the bits and rows of the reference."""
  code, _, err = again(workdir)
  assert code == 0 and not err, err
  assert_same_runs(reference, workdir, LAST)


def assert_one_line(code, err, *words):
  """Asserts that a program failed in one line that names all of these."""
  assert code == 1, (code, err)
  (line,) = err.splitlines() or ['']
  assert line.startswith('error: '), line
  for word in words:
    assert str(word) in line, line
