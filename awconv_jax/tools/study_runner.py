"""Trains the runs of a study, some at a time, each in a process of its own."""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from awconv_jax.errors import one_line
from awconv_jax.text_table import duration
from awconv_jax.tools.study import Run
from awconv_jax.train import programs, rundir

# Starts one run, of the arguments that train.py takes.
TRAINER = sys.executable, '-m', 'awconv_jax.tools.studied'
_MARK = b'--- a start\n'  # In a log, which has the output of all starts.


def environment(workdir: str | os.PathLike, jobs: int) -> dict[str, str]:
  """Returns the environment of runs, of which so many share a device.

  What is set stays. Programs that were compiled for one are found by all.
  """
  wanted = {
      'JAX_COMPILATION_CACHE_DIR': os.path.abspath(
          os.path.join(workdir, programs.PLACE)
      ),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': str(programs.LEAST),
  }
  if jobs > 1:
    wanted['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.9 / jobs:.3f}'
  return wanted | os.environ


class _Started(NamedTuple):
  run: Run
  process: subprocess.Popen
  since: float


def _start(
    run: Run, trainer: Sequence[str], env: Mapping[str, str]
) -> _Started:
  """Starts a run whose output goes to <workdir>/<variant>/seed<k>.log."""
  log = log_of(run)
  log.parent.mkdir(parents=True, exist_ok=True)
  with log.open('ab') as file:
    file.write(_MARK)
    file.flush()
    # Signals of a terminal reach `compare` alone, which ends it in order; and
    # whatever ends that closes the pipe, for which `studied` waits.
    process = subprocess.Popen(
        [*trainer, *run.flags],
        stdin=subprocess.PIPE,
        stdout=file,
        stderr=subprocess.STDOUT,
        env=dict(env),
        start_new_session=True,
    )
  return _Started(run, process, time.monotonic())


def log_of(run: Run) -> pathlib.Path:
  """Returns where the output of a run goes."""
  return run.path.with_name(f'{run.path.name}.log')


def last_error(run: Run) -> str:
  """Returns the line by which a run's last start ended, '' if by no error."""
  log = log_of(run)
  said = log.read_bytes().rpartition(_MARK)[2] if log.exists() else b''
  lines = said.decode(errors='replace').split('\n')
  *_, last = [''] + [line for line in lines if line.strip()]
  return one_line(last) if 'rror: ' in last else ''


def train(
    pending: Sequence[Run],
    env: Mapping[str, str],
    *,
    jobs: int = 1,
    result: Callable[[Run], str] = str,
    trainer: Sequence[str] = TRAINER,
) -> list[str]:
  """Trains runs, so many at a time; tells of each start and end.

  If this is interrupted, or is killed, the runs save and end.

  Args:
    pending: in which order.
    env: the environment of each.
    jobs: how many at a time.
    result: says what came out of one.
    trainer: what starts one.

  Returns:
    A line for each that failed.
  """
  waiting, active, failed, took = list(pending), [], [], []
  told_of_wait = False
  try:
    while waiting or active:
      while waiting and len(active) < jobs:
        run = next((run for run in waiting if rundir.is_free(run.path)), None)
        if run is None:
          break  # What an earlier start left has to end first.
        waiting.remove(run)
        try:
          active.append(_start(run, trainer, env))
        except OSError as error:  # Of the log: the others go on.
          failed.append(f'{run}: {log_of(run)}: {error.strerror}')
          print(f'failed    {failed[-1]}', flush=True)
        else:
          print(f'started   {run}: {log_of(run)}', flush=True)
      if not active and not told_of_wait:
        told_of_wait = True
        print(f'waiting for the process that trains {waiting[0]}', flush=True)
      time.sleep(0.05)
      for one in [one for one in active if one.process.poll() is not None]:
        active.remove(one)
        one.process.stdin.close()
        seconds = time.monotonic() - one.since
        after = f'{one.run} after {duration(seconds)}'
        code = one.process.returncode
        if code == 0:
          took.append(seconds)
          line = f'finished  {after}: {result(one.run)}'
        else:
          how = signal.Signals(-code).name if code < 0 else f'exit code {code}'
          how += f', {last_error(one.run) or "without an error"}'
          how += f' ({log_of(one.run)})'
          failed.append(f'{one.run}: {how}')
          line = f'failed    {after}: {how}'
        print(line + _left(waiting, active, took, jobs), flush=True)
  finally:
    for one in active:
      one.process.stdin.close()
    if active:
      print(f'{len(active)} runs save, and end', flush=True)
    for one in active:
      one.process.wait()
  return failed


def _left(waiting, active, took, jobs) -> str:
  """Returns how many runs are left, and how long they take by those so far."""
  count = len(waiting) + len(active)
  if not count or not took:
    return f'; {count} left' * bool(count)
  mean = sum(took) / len(took)
  now = time.monotonic()
  seconds = len(waiting) * mean
  seconds += sum(max(mean - (now - one.since), 0) for one in active)
  seconds /= min(jobs, count)
  about = f', about {duration(seconds)}' * (seconds > 0)
  return f'; {count} left{about}'
