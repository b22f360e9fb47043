"""Two processes of a run: what they disagree on, and what ends one of them."""

import asyncio
from collections.abc import Callable
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import threading
import time

import commands
import pytest

from awconv_jax.train import warm_start, watcher

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
  noted: pathlib.Path
  record: Callable  # What `make faults` keeps of it.

  def fault(self, act):
    """Does something now that is to end them."""
    self.since = time.monotonic()
    act()

  def ends(self, limit=SECONDS, traceback=None):
    """Returns their lines; each has ended in time, with one and not with 0.

    Those on whom they wait for are left out.

    Args:
      limit: seconds since they began, or the fault.
      traceback: the process that a defect of ours is seen in, if any.
    """
    lines = []
    for process in self.processes:
      left = self.since + limit - time.monotonic()
      _, err = process.communicate(timeout=max(left, 0.1))
      assert process.returncode != 0, err
      lines.append(re.sub('(?m)^waiting for .*\n', '', err))
    took = time.monotonic() - self.since
    if self.noted.exists():
      took = time.time() - self.noted.stat().st_mtime
      assert took < SECONDS
    self.record('end', took)
    self.record('lines', lines)
    for i, err in enumerate(lines):
      if i != traceback:
        assert err.count('\n') == 1 and err.startswith('error: '), lines
    return lines


@pytest.fixture(name='start')
def fixture_start(tmp_path, monkeypatch, record_property):
  """Starts two processes of a long run that saves every few steps."""
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  begun = []

  def start(
      *arguments, second=(), inject=('', ''), which=(0, 1), port=None, p1=None
  ):
    lengths = ('num_epochs=50.0', 'eval_every_epochs=0.4')
    lengths += ('checkpoint_every_epochs=0.1',)
    common = [
        *(commands.TINY, f'--workdir={tmp_path}/run'),
        *(f'--config.{length}' for length in lengths),
        *arguments,
    ]
    joined = f'--coordinator=127.0.0.1:{port or commands.free_port()}'
    run = Run([], time.monotonic(), tmp_path / 'now', record_property)
    for i in which:
      given = [joined, '--num_processes=2', f'--process_id={i}', *common]
      now = f'open({str(tmp_path / "now")!r}, "w").close()'
      program = f'{inject[i] or ""}\n{TRAIN}'.replace('NOW', now)
      own, options = (second, p1 or {}) if i else ((), {})
      run.processes.append(
          commands.start('-c', program, *given, *own, **options)
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


# A difference is there once the last has told what it has.
NOTED = """
from awconv_jax.train import processes
old_agree = processes._Watched.agree
def agree(self, facts):
  NOW
  return old_agree(self, facts)
processes._Watched.agree = agree
"""
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
  other = f'--config.{key}={OF_CONFIG[key]}'
  run = start(second=[other], inject=(NOTED, NOTED))
  first, second = run.ends(START)
  assert first == second
  assert f'config.{key} is ' in first
  assert f' in process 0 and {OF_CONFIG[key]} in 1' in first
  assert not (tmp_path / 'run').exists()


CODE_OF = (
    'import awconv_jax.train.processes as p\n' "p.hash_of_code = lambda: '0'"
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
        ([], None, {'devices': 2}, "devices is '1 of cpu' .* '2 of cpu' in 1"),
        ([], None, {'env': {'JAX_ENABLE_X64': '1'}}, 'jax_enable_x64 is False'),
        ([], LABELS, {}, 'data to train on is'),
        ([], LENGTH, {}, 'data to train on is'),
        ([], WEIGHTS, {}, 'first state is'),
    ],
)
def test_processes_of_other_things_do_not_begin(
    start, second, inject, options, words
):
  inject = NOTED, f'{NOTED}\n{inject or ""}'
  run = start(second=second, inject=inject, p1=options)
  first, second = run.ends(2 * START)
  assert first == second
  assert re.search(words, first), first


@slow
@pytest.mark.parametrize(
    'index, number, words',
    [
        (0, signal.SIGKILL, 'process 0 was killed'),
        (1, signal.SIGKILL, 'process 1 was killed'),
        (0, signal.SIGSTOP, 'process 0 was stopped'),
        (1, signal.SIGSTOP, 'process 1 was stopped'),
        (0, signal.SIGABRT, 'process 0 crashed: Fatal'),
        (1, signal.SIGSEGV, 'process 1 crashed: Fatal'),
    ],
)
def test_a_process_that_dies_in_the_loop_ends_both(
    start, tmp_path, index, number, words
):
  run = start()
  reach(run, 12)
  run.fault(lambda: run.processes[index].send_signal(number))
  for line in run.ends():
    assert words in line
  assert saved_step(tmp_path) >= 4


@slow
@pytest.mark.parametrize('index', [0, 1])
def test_a_watcher_that_dies_ends_both(start, tmp_path, index):
  run = start()
  reach(run, 12)
  pid = run.processes[index].pid
  children = pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text()
  run.fault(lambda: os.kill(int(children.split()[0]), signal.SIGKILL))
  lines = run.ends()
  assert lines[index] == 'error: the watcher of this process is gone\n'
  assert lines[1 - index] == f'error: process {index}, or its host, is gone\n'
  assert saved_step(tmp_path) >= 4


# What befalls one of them, by code that runs before train.py; NOW notes when.
IN_THE_LOOP = """
from awconv_jax.train import logging
old = logging.Log.step
def step(self, number, metrics):
  old(self, number, metrics)
  if number == 13:
    ACT
logging.Log.step = step
"""
SAVE = """
from awconv_jax.train import checkpoint
old = checkpoint.Checkpointer.save
def save(self, number, *more):
  BEFORE
  old(self, number, *more)
  AFTER
checkpoint.Checkpointer.save = save
"""
KILL = 'NOW; os.kill(os.getpid(), 9)'
OF_A_METHOD = """
import importlib, os
from awconv_jax.errors import InputError
module = importlib.import_module('awconv_jax.NAME'.rpartition('.')[0])
def fails(*args, **kwargs):
  ACT
setattr(module, 'NAME'.rpartition('.')[2], fails)
"""


def failing(name, act):
  return OF_A_METHOD.replace('NAME', name).replace('ACT', act)


def in_the_loop(act):
  return 'import os' + IN_THE_LOOP.replace('ACT', f'NOW; {act}')


def in_a_save(before='pass', after='pass'):
  code = SAVE.replace('BEFORE', before).replace('AFTER', after)
  return 'import os\nfrom awconv_jax.errors import InputError' + code


FULL = 'if number > 9: NOW; raise OSError(28, os.strerror(28))'
NO_ACCESS = 'NOW; raise PermissionError(13, os.strerror(13), "/data/run")'
UNREADABLE = """
from awconv_jax.data import decode, digits
old = digits.Digits.__getitem__
def get(self, index):
  if index % 3 == 0 and len(self) > 500 and count.append(1) or len(count) > 300:
    raise decode.UnreadableError('it is damaged')
  return old(self, index)
count = []
digits.Digits.__getitem__ = get
"""
# Name: the process that it befalls, the code, the words, whether the network
# was trained before.
BEFALLS = {
    'exception in the loop': (1, in_the_loop('1 / 0'), 'ZeroDivision', True),
    'exception in the first': (0, in_the_loop('1 / 0'), 'ZeroDivision', True),
    'kill in compiling': (
        *(1, failing('train.step.create_train_step', KILL)),
        *('process 1 was killed', False),
    ),
    'kill in evaluation': (
        *(0, failing('train.loop.predictions', KILL)),
        *('process 0 was killed', True),
    ),
    'kill before a save': (
        *(1, in_a_save(before=f'if number > 9: {KILL}')),
        *('process 1 was killed', True),
    ),
    'kill in a save': (
        *(0, in_a_save(after=f'if number > 9: {KILL}')),
        *('process 0 was killed', True),
    ),
    'disk full in a save': (
        *(0, in_a_save(before=FULL), 'No space left on device', True),
    ),
    'no access to the workdir': (
        *(1, failing('train.checkpoint.Checkpointer', NO_ACCESS)),
        *('Permission denied', False),
    ),
    'unreadable images': (1, UNREADABLE, 'cannot be read', False),
    'out of memory': (
        *(0, in_the_loop('raise MemoryError("2 GB")'), 'out of memory', True),
    ),
    'interrupt': (
        *(1, in_the_loop('raise KeyboardInterrupt'), 'interrupted', True),
    ),
    'exit of native code': (
        *(1, in_the_loop('os._exit(3)'), 'process 1 was killed', True),
    ),
    'crash of native code': (
        *(1, in_the_loop('os.abort()'), 'process 1 crashed: Fatal', True),
    ),
}


@slow
@pytest.mark.parametrize('name', BEFALLS)
def test_what_befalls_one_process_ends_both(start, tmp_path, name):
  process, code, words, saved = BEFALLS[name]
  run = start(inject=(code, None) if process == 0 else (None, code))
  # What they did before, compiling included, takes its time.
  lines = run.ends(
      4 * START,
      traceback=process if words == 'ZeroDivision' else None,
  )
  for line in lines:
    assert words in line, lines
  assert not saved or saved_step(tmp_path) >= 4


@slow
def test_a_data_state_that_one_process_refuses(start, tmp_path):
  run = start('--config.num_epochs=0.4')
  for process in run.processes:
    process.communicate(timeout=4 * START)
    assert process.returncode == 0
  code = (
      'from awconv_jax.data import batches\n'
      'from awconv_jax.errors import InputError\n'
      'def refuse(*args):\n'
      '  raise InputError("the data state is of another stream")\n'
      'batches.TrainBatches.set_state = refuse\n'
  )
  before = saved_step(tmp_path)
  run = start('--config.num_epochs=0.4', inject=(None, code))
  for line in run.ends(2 * START):
    assert 'the data state is of another stream' in line
  assert saved_step(tmp_path) == before


@slow
@pytest.mark.parametrize(
    'second, words',
    [
        (['--config.model.name=resnet1'], "unknown model 'resnet1'"),
        (['--config=configs/none.py'], 'unknown config file'),
        (['--config.seed=x'], "config.seed='x' must be"),
    ],
)
def test_a_mistake_in_one_command_ends_both(start, second, words):
  for line in start(second=second).ends(START):
    assert words in line


@slow
def test_a_device_that_one_process_lacks_ends_both(start):
  for line in start(p1={'env': {'JAX_PLATFORMS': 'cuda'}}).ends(2 * START):
    assert "there is no device of JAX_PLATFORMS='cuda'" in line


@slow
@pytest.mark.parametrize(
    'which, words',
    [
        ((0,), 'process 1 of 2 did not come to 127.0.0.1:.* in --join_sec'),
        ((1,), 'process 0 is not at --coordinator=127.0.0.1:'),
        ((1, 1), 'process 0 is not at --coordinator=127.0.0.1:'),
    ],
)
def test_a_process_that_does_not_come_is_not_waited_for(start, which, words):
  for line in start('--join_seconds=8', which=which).ends(START):
    assert re.search(words, line)


@slow
@pytest.mark.parametrize('number, which', [(2, (0, 0)), (3, (0, 1, 1))])
def test_two_of_one_number_that_are_one_too_few_end_at_once(
    start, number, which
):
  run = start(f'--num_processes={number}', which=which)
  for line in run.ends(START):
    assert f'another process has --process_id={which[-1]}' in line


@slow
@pytest.mark.parametrize('first', [0, 1])
def test_a_process_that_comes_later_is_waited_for_and_named(start, first):
  run = start('--join_seconds=100', which=(first,))
  told = run.processes[0].stderr.readline()
  place = r' at 127\.0\.0\.1:(\d+)'
  port = re.fullmatch(f'waiting for process {1 - first}.*{place}.*\n', told)[1]
  other = start('--config.seed=2', which=(1 - first,), port=port)
  run.processes += other.processes
  for line in run.ends(2 * START):
    assert 'config.seed is ' in line


@slow
def test_a_mistake_without_the_first_process_ends_in_time(start):
  (line,) = start('--config.seed=x', which=(1,)).ends(START)
  assert "config.seed='x' must be" in line


@slow
def test_a_late_process_of_one_number_does_not_harm_the_run(start, tmp_path):
  port = commands.free_port()
  run = start('--config.num_epochs=0.4', port=port)
  reach(run, 1)
  (refused,) = start(which=(1,), port=port).ends(START)
  assert refused == 'error: another process has --process_id=1\n'
  ends = [process.communicate(timeout=4 * START) for process in run.processes]
  assert [process.returncode for process in run.processes] == [0, 0], ends
  assert saved_step(tmp_path) == 18


@slow
@pytest.mark.parametrize('words', [b'', b'HTTP/1.1 400 Bad Request\n'])
def test_a_port_of_another_program(start, words):
  with socket.create_server(('127.0.0.1', 0)) as server:

    def answer():
      with contextlib.suppress(OSError):
        while True:
          connection, _ = server.accept()
          connection.sendall(words)
          held.append(connection)

    held = []
    threading.Thread(target=answer, daemon=True).start()
    first, second = start(port=server.getsockname()[1]).ends(START)
  assert 'Address already in use; give another port' in first
  assert 'process 0' in second


def hub_says(*texts):
  """Returns what a hub answers to each of those who connect, one by one."""

  async def ask(text, port):
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(text)
    return (await asyncio.wait_for(reader.readline(), 5)).decode(), writer

  async def ask_all():
    hub = watcher._Hub('host:1', 2, 300)
    server = await asyncio.start_server(hub.serve, '127.0.0.1', 0)
    port = server.sockets[0].getsockname()[1]
    return [(await ask(text, port))[0] for text in texts]

  return asyncio.run(ask_all())


def test_only_who_greets_is_heard_and_all_that_comes_with_it():
  text = (
      b'{"hello": 1, "number": 2}\n{"failed": "it fails", "process": 1, '
      b'"cause": true, "through": true}\n'
  )
  strange = b'GET / HTTP/1.1\r\n', b'[]\n', b'[' * 10**4 + b'\n', b'\xff\n'
  *nothing, said = hub_says(*strange, text)
  assert nothing == ['', '', '', '']
  assert json.loads(said) == {'end': 'it fails', 'process': 1}
