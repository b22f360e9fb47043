"""Two processes of a run: what they disagree on, and what ends one of them."""

import dataclasses
import re
import signal
import time

import commands
import pytest

from awconv_jax.train import warm_start

pytestmark = [
    pytest.mark.faults('processes'),
    pytest.mark.usefixtures('quick_compiles_of_module'),
]

SECONDS = 30  # From the fault to the end of both.
START = 60  # Until a process has imported what it needs, on a busy machine.
TRAIN = (
    'import runpy, sys\nsys.argv[0] = "train.py"\n'
    'runpy.run_path("train.py", run_name="__main__")'
)
slow = pytest.mark.slow


@dataclasses.dataclass
class Run:
  """Two processes, and when they began."""

  processes: list
  since: float

  def fault(self, act):
    """Does it to them now."""
    self.since = time.monotonic()
    act(*self.processes)

  def ends(self, limit=SECONDS):
    """Returns their lines; each has ended in time, with one and not with 0."""
    lines = []
    for process in self.processes:
      left = self.since + limit - time.monotonic()
      _, err = process.communicate(timeout=max(left, 0.1))
      assert process.returncode != 0, err
      lines.append(err)
    took = time.monotonic() - self.since
    print(f'{took:.1f} s', [p.returncode for p in self.processes], lines)
    assert all(err.count('\n') == 1 for err in lines), lines
    assert all(err.startswith('error: ') for err in lines), lines
    return lines


@pytest.fixture(name='start')
def fixture_start(tmp_path, monkeypatch):
  """Starts two processes of a long run that saves every few steps."""
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  begun = []

  def start(*arguments, first=(), second=(), inject=(None, None), **options):
    lengths = ('num_epochs=50.0', 'eval_every_epochs=0.4')
    lengths += ('checkpoint_every_epochs=0.1',)
    common = [
        *(commands.TINY, f'--workdir={tmp_path}/run'),
        *(f'--config.{length}' for length in lengths),
        *arguments,
    ]
    joined = f'--coordinator=127.0.0.1:{commands.free_port()}'
    run = Run([], time.monotonic())
    for i, own in enumerate((first, second)):
      given = [*common, joined, '--num_processes=2', f'--process_id={i}', *own]
      program = f'{inject[i] or ""}\n{TRAIN}'
      run.processes.append(
          commands.start('-c', program, *given, **options.get(f'p{i}', {}))
      )
    begun.extend(run.processes)
    return run

  yield start
  for process in begun:
    process.kill()


def saved_step(tmp_path):
  """Returns the step of the newest checkpoint, which is whole."""
  _, words = warm_start.read_run(tmp_path / 'run')
  return int(words.rpartition(' ')[2])


def reach(run, step):
  """Waits until the first process has told of a step."""
  wanted = f'step {step}/'
  told = any(line.startswith(wanted) for line in run.processes[0].stdout)
  assert told, [process.communicate() for process in run.processes]


# Name: what the second process is given, beside what both are, and the words.
OF_CONFIG = {
    'optimizer.learning_rate': 0.123,
    'seed': 77,
    'log_every_steps': 3,
    'model.width': 16,
    'batch_size': 64,
    'eval_batch_size': 8,
    'model.aw_conv': 'False',
    'data.num_threads': 2,
    'eval_every_epochs': 0.7,
}


@pytest.mark.parametrize(
    'key',
    [
        key if key == 'seed' else pytest.param(key, marks=slow)
        for key in OF_CONFIG
    ],
)
def test_processes_of_other_configs_do_not_begin(start, tmp_path, key):
  run = start(second=[f'--config.{key}={OF_CONFIG[key]}'])
  first, second = run.ends(START)
  assert first == second
  assert f'config.{key} is ' in first
  assert f' in process 0 and {OF_CONFIG[key]} in 1' in first
  assert not (tmp_path / 'run').exists()


CODE_OF = (
    'import awconv_jax.train.processes as p\n' "p._hash_of_code = lambda: '0'"
)
VERSION = (
    'import importlib.metadata as m\nold = m.version\n'
    "m.version = lambda name: '0.1' if name == 'optax' else old(name)"
)
LABELS = (
    'from awconv_jax.data import digits\n'
    'old = digits.Digits.__getitem__\n'
    'digits.Digits.__getitem__ = lambda self, i: '
    "old(self, i) | {'label': 9}"
)
LENGTH = (
    'from awconv_jax.data import digits\n'
    'old = digits.Digits.__len__\n'
    'digits.Digits.__len__ = lambda self: old(self) - 1'
)
WEIGHTS = (
    'from awconv_jax.train import step\nimport jax\n'
    'old = step.create_state\n'
    'def new(*args, **kwargs):\n'
    '  return old(*args, **{**kwargs, "seed": 5})\n'
    'step.create_state = new'
)


@slow
@pytest.mark.parametrize(
    'second, inject, options, words',
    [
        (['--workdir=/tmp/elsewhere'], None, {}, '--workdir is .*elsewhere'),
        (['--num_processes=3'], None, {}, '--num_processes is 2 .* 3 in 1'),
        ([], CODE_OF, {}, "the code of awconv_jax is '.*' .* '0' in 1"),
        ([], VERSION, {}, "optax is .* '0.1' in 1"),
        ([], None, {'devices': 2}, 'number of devices is 1 .* 2 in 1'),
        ([], None, {'env': {'JAX_ENABLE_X64': '1'}}, 'jax_enable_x64 is False'),
        ([], LABELS, {}, 'data to train on is'),
        ([], LENGTH, {}, 'data to train on is'),
        ([], WEIGHTS, {}, 'first state is'),
    ],
)
def test_processes_of_other_things_do_not_begin(
    start, second, inject, options, words
):
  run = start(second=second, inject=(None, inject), p1=options)
  first, second = run.ends(2 * START)
  assert first == second
  assert re.search(words, first), first


def stop(index, number):
  return lambda *both: both[index].send_signal(number)


@pytest.mark.parametrize(
    'index, number, words',
    [
        (0, signal.SIGKILL, 'process 0 was killed'),
        pytest.param(1, signal.SIGKILL, 'process 1 was killed', marks=slow),
        pytest.param(0, signal.SIGSTOP, 'process 0 was stopped', marks=slow),
        pytest.param(1, signal.SIGSTOP, 'process 1 was stopped', marks=slow),
        pytest.param(0, signal.SIGABRT, 'process 0 crashed: Fatal', marks=slow),
        pytest.param(1, signal.SIGSEGV, 'process 1 crashed: Fatal', marks=slow),
    ],
)
def test_a_process_that_dies_in_the_loop_ends_both(
    start, tmp_path, index, number, words
):
  run = start()
  reach(run, 12)
  run.fault(stop(index, number))
  for line in run.ends():
    assert words in line
  assert saved_step(tmp_path) >= 4
