"""The directory of a run and its log: whose it is, files, lines, the bar."""

import io
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
import tiny
from watched_run import rows_of

from awconv_jax.errors import InputError
from awconv_jax.train import logging, rundir


def claim(workdir, **changes):
  """Has the directory for a moment, for a run of digits."""
  config = tiny.get_config()
  config.update_from_flattened_dict(changes)
  with rundir.claim(workdir, config):
    with pytest.raises(InputError, match='another run under way'):
      with rundir.claim(workdir, config):
        pass
    rundir.write_config(workdir, config)


@pytest.fixture
def workdir(tmp_path):
  claim(tmp_path, seed=3)  # Without a checkpoint it belongs to no config.
  (tmp_path / 'checkpoints').mkdir()
  claim(tmp_path)
  (tmp_path / 'checkpoints/7').mkdir()
  return tmp_path


def test_a_workdir_names_the_keys_that_differ(workdir):
  claim(workdir, **{'data.num_threads': 2})  # Of no bearing on the result.
  with pytest.raises(InputError, match='seed is 0 there and 2 here'):
    claim(workdir, seed=2)
  model = {'model.width': 8, 'model.stem': 'imagenet'}
  with pytest.raises(InputError, match='width is 4 there .* and 1 more'):
    claim(workdir, seed=2, batch_size=8, **model)
  claim(workdir)
  with pytest.raises(InputError, match="/dev/null/x' cannot be written"):
    claim(pathlib.Path('/dev/null/x'))


def test_a_checkpoint_that_was_put_in_is_not_taken_for_the_runs_own(workdir):
  record = {'config': tiny.get_config().to_dict()}
  rundir.check_own(workdir, record)
  rundir.check_own(workdir, None)
  record['config']['seed'] = 3
  with pytest.raises(InputError, match='seed is 3 there and 0 here; take it'):
    rundir.check_own(workdir, record)


def test_the_config_of_an_older_run_is_completed(workdir):
  """Options that came later have their defaults in it."""
  path = workdir / 'config.json'
  held = json.loads(path.read_text())
  del held['accumulation_steps'], held['model']['block']
  path.write_text(json.dumps(held))
  claim(workdir)
  assert rundir.read_config(workdir).accumulation_steps == 1
  (workdir / 'checkpoints/7/meta').mkdir()
  (workdir / 'checkpoints/7/meta/metadata').write_text('[' * 100_000)
  for text in ('{', '[]', '{"seed": 0}'):
    path.write_text(text)
    with pytest.raises(InputError, match='json does not hold the conf'):
      claim(workdir)


@pytest.mark.parametrize('numbers', [(3, 20), None])
def test_names_of_classes_are_kept_and_their_numbers_if_any(tmp_path, numbers):
  rundir.write_classes(tmp_path, ('heron', 'gull'), numbers)
  found = {p.name: json.loads(p.read_text()) for p in tmp_path.iterdir()}
  rows = [{'id': 3, 'name': 'heron'}, {'id': 20, 'name': 'gull'}]
  more = {'categories.json': rows} if numbers else {}
  assert found == {'classes.json': ['heron', 'gull']} | more


def make_log(workdir, first=0):
  return logging.Log(workdir, first, 10, steps_per_epoch=5.0, batch_size=4)


def take(log, step, loss=1.5):
  metrics = dict(loss=loss, grad_norm=1.0, param_norm=1.0, learning_rate=0.1)
  log.step(step, {k: np.float32(v) for k, v in metrics.items()})


def test_rows_after_the_checkpoint_are_written_anew(tmp_path):
  for start, steps in ((0, (1, 2, 3)), (2, (2, 3))):
    with make_log(tmp_path, start) as log:
      for step in steps:
        log.evaluation(step, {'loss': start + step / 10})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
      file.write('{"step": 4, "ev')  # As a kill leaves it.
  losses = [(row['step'], row['eval/loss']) for row in rows_of(tmp_path)]
  assert losses == [(1, 0.1), (2, 0.2), (3, 2.3)]


def test_a_broken_row_and_a_missing_file_are_named(tmp_path):
  with pytest.raises(InputError, match='does not exist'):
    rows_of(tmp_path)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\nnonsense\n{}\n')
  with pytest.raises(InputError, match='line 2 is no row of metrics'):
    rows_of(tmp_path)


def test_plain_lines_when_piped_and_silence_of_other_processes(
    tmp_path, capsys, monkeypatch
):
  for process in (1, 0):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    with make_log(tmp_path) as log:
      take(log, 4)
      take(log, 5)
      log.flush()
      logging.info('a remark')
      log.evaluation(5, {'top1': 0.25, 'num_examples': 1000})
    first, *others = capsys.readouterr().out.splitlines() or ['']
    assert bool(first) == (process == 0)
  assert first.startswith('step 5/10  loss 1.5000  lr 1.00e-01')
  assert 'images/s' in first and first.endswith(' left')
  evaluated = 'step 5/10  evaluation: top1 0.2500  num_examples 1,000'
  assert others == ['a remark', evaluated]
  train, evaluation = rows_of(tmp_path)
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
  first, _, second = rows_of(tmp_path)
  assert first['train/loss'] == 2.5
  for row, waited in ((first, 0.25), (second, 0)):
    assert row['train/images_per_second'] == 4.0
    assert row['train/data_wait'] == waited


def test_a_live_bar_on_a_terminal(tmp_path, monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, 'stdout', terminal)
  with make_log(tmp_path, 8) as log:
    take(log, 9)
    take(log, 10)
    log.flush()
    logging.info('a remark')
  for text in ('\r', '100%', '10/10', 'loss 1.5000', 'images/s', 'a remark'):
    assert text in terminal.getvalue()
