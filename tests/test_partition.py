"""Processes: how they find each other, and a second interrupt."""

import commands
import jax
import pytest

from awconv_jax import errors
from awconv_jax.train import partition


def test_processes_are_found_under_slurm_only_if_several(monkeypatch):
  called = []
  monkeypatch.setattr(
      jax.distributed, 'initialize', lambda *args: called.append(args)
  )
  partition.initialize_distributed()
  monkeypatch.setenv('SLURM_PROCID', '0')
  monkeypatch.setenv('SLURM_NTASKS', '1')
  partition.initialize_distributed()
  assert not called
  monkeypatch.setenv('SLURM_NTASKS', '2')
  partition.initialize_distributed()
  partition.initialize_distributed('host:1', 2, 0)
  assert called == [(), ('host:1', 2, 0)]
  for wrong in (('host:1', 2, None), ('host:1', 2, 2), ('host', 2, 0)):
    with pytest.raises(errors.InputError, match='several processes need'):
      partition.initialize_distributed(*wrong)


def test_signals_are_noted_and_a_second_interrupt_interrupts_at_once():
  # In a process of its own, where it can reach no other test.
  code = (
      'import os\n'
      'from awconv_jax.train import preemption\n'
      'for number, name in (15, "SIGTERM"), (2, "SIGINT"):\n'
      '  with preemption.stop_requests() as reason:\n'
      '    assert reason(1) is None\n'
      '    os.kill(os.getpid(), number)\n'
      '    assert reason(1) == name\n'
      '    if number == 2: os.kill(os.getpid(), 2)\n'
  )
  code, _, err = commands.run('-c', code)
  assert code != 0 and err.splitlines()[-1] == 'KeyboardInterrupt'
