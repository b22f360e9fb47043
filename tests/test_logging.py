"""The log of a run: its files, its lines, the bar on a terminal."""

import io
import sys

import jax
import numpy as np
import pytest

from awconv_jax import errors
from awconv_jax.train import logging


def make_log(workdir, first=0):
  durations = dict(steps_per_epoch=5.0, batch_size=4)
  return logging.Log(workdir, first, 10, **durations)


def take(log, step, loss=1.5):
  """Takes a step."""
  metrics = dict(loss=loss, grad_norm=1.0, param_norm=1.0, learning_rate=0.1)
  log.step(step, {k: np.float32(v) for k, v in metrics.items()})


def rows(workdir):
  return logging.read(workdir / 'metrics.jsonl')


def test_rows_after_the_checkpoint_are_written_anew(tmp_path):
  for start, steps in ((0, (1, 2, 3)), (2, (2, 3))):
    with make_log(tmp_path, start) as log:
      for step in steps:
        log.evaluation(step, {'loss': start + step / 10})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
      file.write('{"step": 4, "ev')  # As a kill leaves it.
  losses = {row['step']: row['eval/loss'] for row in rows(tmp_path)}
  assert losses == {1: 0.1, 2: 0.2, 3: 2.3} and len(rows(tmp_path)) == 3


def test_a_broken_row_and_a_missing_file_are_named(tmp_path):
  with pytest.raises(errors.InputError, match='does not exist'):
    rows(tmp_path)
  lines = '{"step": 1}\nnonsense\n{"step": 2}\n'
  (tmp_path / 'metrics.jsonl').write_text(lines)
  with pytest.raises(errors.InputError, match='line 2 is not JSON'):
    rows(tmp_path)


def test_plain_lines_when_piped_and_silence_of_other_processes(
    tmp_path, capsys, monkeypatch
):
  for process in (0, 1):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    with make_log(tmp_path) as log:
      take(log, 5)
      log.flush()
      logging.info('a remark')
      log.evaluation(5, {'top1': 0.25, 'num_examples': 1000})
    lines = capsys.readouterr().out.splitlines()
    if process == 1:
      assert not lines
      continue
    assert lines[0].startswith('step 5/10  loss 1.5000  lr 1.00e-01')
    assert 'images/s' in lines[0] and lines[0].endswith(' left')
    assert lines[1:] == [
        'a remark',
        'step 5/10  evaluation: top1 0.2500  num_examples 1,000',
    ]
  train, evaluation = rows(tmp_path)
  assert train['train/epoch'] == 1 and train['train/loss'] == 1.5
  assert evaluation == {'step': 5, 'eval/top1': 0.25, 'eval/num_examples': 1000}


def test_rows_are_means_and_speeds_between_pauses(tmp_path, monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(logging.time, 'monotonic', lambda: clock[0])
  log = make_log(tmp_path)

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
  log.evaluation(4, {})
  clock[0] += 1.0
  take(log, 5)
  log.flush()
  first, _, second = rows(tmp_path)
  assert first['train/loss'] == 2.5
  assert first['train/images_per_second'] == 4.0
  assert first['train/data_wait'] == 0.25
  assert second['train/images_per_second'] == 4.0
  assert second['train/data_wait'] == 0


def test_a_live_bar_on_a_terminal(tmp_path, monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, 'stdout', terminal)
  with make_log(tmp_path, 8) as log:
    take(log, 9)
    log.flush()
    logging.info('a remark')
    take(log, 10)
  text = terminal.getvalue()
  assert '\r' in text and '100%' in text and '10/10' in text
  assert 'loss 1.5000' in text and 'images/s' in text and 'a remark' in text
