"""Killed anywhere, a run goes on as if nothing had been."""

import random
import signal
import time

import pytest
import runs

pytestmark = pytest.mark.faults('kills')


@pytest.mark.parametrize('act', runs.cases([24, *range(1, 67, 2)]))
def test_at_an_act_on_its_files(reference, tmp_path, act):
  code, *_ = runs.befallen(tmp_path / 'run', f'SIGKILL@{act}')
  assert code == -signal.SIGKILL
  runs.assert_as_if_nothing_had_been(tmp_path / 'run', reference)


@pytest.mark.parametrize('seed', runs.cases(range(12)))
def test_at_some_time(reference, tmp_path, seed):
  process = runs.start(tmp_path / 'run')
  time.sleep(random.Random(seed).uniform(0, 6))
  process.kill()
  runs.end(process)
  runs.assert_as_if_nothing_had_been(tmp_path / 'run', reference)
