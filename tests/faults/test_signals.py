"""Asked to stop, a run stops in order; its next start goes on."""

import random
import signal
import time

import pytest
import runs

pytestmark = [pytest.mark.slow, pytest.mark.faults('signals')]

# At an act: in the set-up, at the first rows, in saves, at an evaluation.
_ACTS = (3, 7, 12, 13, 24, 35, 47, 53)
_ASKS = [f'{name}@{act}' for name in ('SIGTERM', 'SIGINT') for act in _ACTS]
# What no run waits for. SIGPIPE is that of a reader that went.
_FATAL = [
    f'{name}@{act}'
    for name in ('SIGHUP', 'SIGQUIT', 'SIGABRT', 'SIGSEGV', 'SIGXCPU')
    for act in (20, 48)
]


def assert_in_order(code, out, err):
  """Asserts that a run ended whole, saved, or before there was anything."""
  assert 'Traceback' not in out
  if code == 0:
    assert 'done: ' in out and not err
  elif code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
    assert 'stopped by SIG' in out and not err
  else:
    assert code == -signal.SIGTERM or err == 'interrupted\n'


@pytest.mark.parametrize('fault', runs.cases(_ASKS[3:] + _ASKS[:3], every=99))
def test_that_asks_for_an_end(reference, tmp_path, fault, record_property):
  code, out, err, seconds = runs.befallen(tmp_path / 'run', fault)
  record_property('end', seconds)
  assert_in_order(code, out, err)
  if 12 < int(fault.partition('@')[2]) < 30:  # Amid the steps.
    assert code == 128 + getattr(signal, fault.partition('@')[0])
  runs.assert_as_if_nothing_had_been(tmp_path / 'run', reference)


@pytest.mark.parametrize('fault', runs.cases(_FATAL))
def test_that_ends_it_at_once(reference, tmp_path, fault):
  code, *_ = runs.befallen(tmp_path / 'run', fault)
  assert code < 0
  runs.assert_as_if_nothing_had_been(tmp_path / 'run', reference)


@pytest.mark.parametrize('seed', runs.cases(range(6)))
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_at_some_time(reference, tmp_path, name, seed, record_property):
  process = runs.start(tmp_path / 'run')
  time.sleep(random.Random(seed).uniform(0, 6))
  process.send_signal(getattr(signal, name))
  code, out, err, seconds = runs.end(process)
  record_property('end', seconds)
  assert_in_order(code, out, err)
  runs.assert_as_if_nothing_had_been(tmp_path / 'run', reference)


@pytest.mark.parametrize('seed', runs.cases(range(4)))
def test_a_run_that_sleeps_for_a_while(reference, tmp_path, seed):
  process = runs.start(tmp_path / 'run')
  chance = random.Random(seed)
  for _ in range(4):
    time.sleep(chance.uniform(0, 1.5))
    process.send_signal(signal.SIGSTOP)
    time.sleep(chance.uniform(0.1, 0.5))
    process.send_signal(signal.SIGCONT)
  code, _, err, _ = runs.end(process)
  assert code == 0 and not err, err
  runs.assert_as_if_nothing_had_been(tmp_path / 'run', reference)


@pytest.mark.parametrize(
    'line', runs.cases(['compiling', 'step 4/', 'step 9/'])
)
def test_an_impatient_second_interrupt(reference, tmp_path, line):
  process = runs.start(tmp_path / 'run')
  assert any(text.startswith(line) for text in process.stdout)
  for _ in range(2):
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
  code, _, err, _ = runs.end(process)
  assert code == 128 + signal.SIGINT and not err or err == 'interrupted\n'
  runs.assert_as_if_nothing_had_been(tmp_path / 'run', reference)
