"""Metric files, the log, processes, directories of runs: the small parts."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import commands
import jax
import numpy as np
import pytest
import tiny

from awconv_jax import errors
from awconv_jax.ops import data_shards
from awconv_jax.train import logging, partition, rundir


def test_rows_after_the_checkpoint_are_written_anew(tmp_path):
  writer = logging.MetricWriter(tmp_path, step=0)
  for step in (1, 2, 3):
    writer.write(step, {'train/loss': step / 10})
  writer.close()
  path = tmp_path / 'metrics.jsonl'
  with path.open('a') as file:
    file.write('{"step": 4, "tr')  # As a kill leaves it.
  writer = logging.MetricWriter(tmp_path, step=2)
  writer.write(3, {'train/loss': 9.0})
  writer.close()
  rows = logging.read(path)
  assert [r['step'] for r in rows] == [1, 2, 3]
  assert rows[-1]['train/loss'] == 9.0


def test_a_broken_row_and_a_missing_file_are_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  with pytest.raises(errors.InputError, match='does not exist'):
    logging.read(path)
  path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(errors.InputError, match='line 2 is not JSON'):
    logging.read(path)


def make_log(workdir):
  return logging.Log(workdir, total=10, steps_per_epoch=5.0, batch_size=4)


def take(log, step, loss=1.5):
  """Takes a step, and returns the row that the log makes of it."""
  metrics = dict(loss=loss, grad_norm=1.0, param_norm=1.0, learning_rate=0.1)
  log.step(step, {k: np.float32(v) for k, v in metrics.items()})


def rows(workdir):
  return logging.read(workdir / 'metrics.jsonl')


def test_plain_lines_when_piped_and_silence_of_other_processes(
    tmp_path, capsys, monkeypatch
):
  for process in (0, 1):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    log = make_log(tmp_path)
    log.start(0)
    take(log, 5)
    log.flush()
    log.info('a remark')
    log.evaluation(5, {'top1': 0.25, 'num_examples': 1000}, write=True)
    log.close()
    lines = capsys.readouterr().out.splitlines()
    if process == 1:
      assert not lines
      continue
    assert lines[0].startswith('step 5/10  loss 1.5000  lr 1.00e-01')
    assert 'images/s' in lines[0] and lines[0].endswith(' left')
    assert lines[1] == 'a remark'
    assert lines[2] == (
        'step 5/10  evaluation: top1 0.2500  num_examples 1,000'
    )
  train, evaluation = rows(tmp_path)
  assert train['train/epoch'] == 1 and train['train/loss'] == 1.5
  assert evaluation == {'step': 5, 'eval/top1': 0.25, 'eval/num_examples': 1000}


def test_rows_are_means_and_speeds_between_pauses(tmp_path, monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(logging.time, 'monotonic', lambda: clock[0])
  log = make_log(tmp_path)
  log.start(0)

  def wait(seconds):
    with log.waiting():
      clock[0] += seconds

  wait(5.0)
  take(log, 1, loss=1.0)  # It compiles: what was before does not count.
  wait(0.75)
  clock[0] += 2.25
  for step in (2, 3, 4):
    take(log, step, loss=float(step))
  log.flush()
  clock[0] += 9.0
  log.evaluation(4, {}, write=False)
  clock[0] += 1.0
  take(log, 5)
  log.flush()
  first, second = rows(tmp_path)
  assert first['train/loss'] == 2.5
  assert first['train/images_per_second'] == 4.0
  assert first['train/data_wait'] == 0.25
  assert second['train/images_per_second'] == 4.0
  assert second['train/data_wait'] == 0


def test_a_live_bar_on_a_terminal(tmp_path):
  code = (
      'import pathlib, test_small_parts as t; '
      f'log = t.make_log(pathlib.Path({str(tmp_path)!r})); log.start(8); '
      't.take(log, 9); log.flush(); log.info("a remark"); '
      't.take(log, 10); log.close()'
  )
  ours, theirs = pty.openpty()
  size = struct.pack('HHHH', 40, 120, 0, 0)  # Rows and columns.
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
  process = subprocess.Popen(
      [sys.executable, '-c', code],
      cwd=commands.ROOT,
      env=os.environ | {'PYTHONPATH': f'{commands.ROOT}/tests:{commands.ROOT}'},
      stdout=theirs,
  )
  assert process.wait(60) == 0
  os.close(theirs)
  shown = b''
  while True:
    try:
      shown += os.read(ours, 4096)
    except OSError:  # The other end is closed and all is read.
      break
  text = shown.decode()
  assert '\r' in text and '100%' in text and '10/10' in text
  assert 'loss 1.5000' in text and 'images/s' in text and 'a remark' in text


@pytest.mark.parametrize(
    ('seconds', 'shown'), [(5, '0:05'), (245.4, '4:05'), (3723, '1:02:03')]
)
def test_durations(seconds, shown):
  assert logging._duration(seconds) == shown


def test_the_batch_axis_has_one_name():
  assert partition.DATA_AXIS == data_shards.DATA_AXIS


def test_processes_are_found_under_slurm_only_if_several(monkeypatch):
  called = []
  monkeypatch.setattr(
      jax.distributed, 'initialize', lambda *args: called.append(args)
  )
  partition.initialize_distributed()
  assert not called
  monkeypatch.setenv('SLURM_PROCID', '0')
  monkeypatch.setenv('SLURM_NTASKS', '1')
  partition.initialize_distributed()
  assert not called
  monkeypatch.setenv('SLURM_NTASKS', '2')
  partition.initialize_distributed()
  assert called == [()]
  partition.initialize_distributed('host:1', 2, 0)
  assert called[1:] == [('host:1', 2, 0)]
  for given, words in (
      (('host:1', 2, None), '--process_id together'),
      (('host:1', 2, 2), '--process_id=2 is not in 0..1'),
      (('host', 2, 0), '--coordinator=host has no port'),
  ):
    with pytest.raises(errors.InputError, match=words):
      partition.initialize_distributed(*given)


def test_a_second_interrupt_interrupts_at_once():
  # In a process of its own, where it can reach no other test.
  code = (
      'import os\n'
      'from awconv_jax.train import preemption\n'
      'with preemption.StopRequest() as stop:\n'
      '  assert stop.reason(1) is None\n'
      '  os.kill(os.getpid(), 2)\n'
      '  assert stop.reason(1) == "SIGINT"\n'
      '  os.kill(os.getpid(), 2)\n'
  )
  code, _, err = commands.run('-c', code)
  assert code != 0 and err.splitlines()[-1] == 'KeyboardInterrupt'


def claim(workdir, **changes):
  """Has the directory for a moment, for a run of digits."""
  config = tiny.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(
        {k.replace('__', '.'): v for k, v in changes.items()}
    )
  with rundir.claim(workdir, config):
    pass


def test_a_workdir_names_the_keys_that_differ(tmp_path):
  (tmp_path / 'checkpoints/7').mkdir(parents=True)
  claim(tmp_path)
  claim(tmp_path, data__num_threads=2)  # Of no bearing on the result.
  with pytest.raises(errors.InputError, match='seed is 0 there and 2 here'):
    claim(tmp_path, seed=2)
  with pytest.raises(errors.InputError, match='width is 4 there .* and 1 more'):
    claim(
        tmp_path, seed=2, batch_size=8, model__width=8, model__stem='imagenet'
    )
  claim(tmp_path)


def test_the_config_of_an_older_run_is_completed(tmp_path):
  """Options that came later have their defaults in it."""
  (tmp_path / 'checkpoints/7').mkdir(parents=True)
  claim(tmp_path)
  path = tmp_path / 'config.json'
  held = json.loads(path.read_text())
  del held['accumulation_steps'], held['model']['block']
  path.write_text(json.dumps(held))
  claim(tmp_path)
  assert rundir.read_config(tmp_path).accumulation_steps == 1
  for text in ('{', '[]', '{"seed": 0}'):
    path.write_text(text)
    with pytest.raises(errors.InputError, match='json does not hold the conf'):
      claim(tmp_path)
