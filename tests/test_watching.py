"""What a long run tells: speeds, losses of time, traces, stalls, programs."""

import gzip
import json
import os
import re
import sys
import time
import types

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from watched_run import rows_of

from awconv_jax import places
from awconv_jax.configs import digits
from awconv_jax.errors import DivergenceError, InputError
from awconv_jax.train import logging, peak, programs, stall, trace


def make_log(workdir, first=0, **kwargs):
  lengths = dict(steps_per_epoch=5.0, batch_size=4)
  return logging.Log(workdir, first, 10, **lengths, **kwargs)


def take(log, *steps):
  metrics = dict(loss=1.5, grad_norm=1.0, param_norm=1.0, learning_rate=0.1)
  for step in steps:
    log.step(step, {k: np.float32(v) for k, v in metrics.items()})


def test_rows_tell_memory_and_what_share_of_the_peak_is_used(
    tmp_path, monkeypatch
):
  stats = dict(bytes_in_use=2**30, peak_bytes_in_use=3 * 2**30)
  device = types.SimpleNamespace(
      device_kind='TPU v5 lite', memory_stats=lambda: stats
  )
  for name in 'devices', 'local_devices':
    monkeypatch.setattr(jax, name, lambda: [device])
  macs = {'stem': 10**10, 'head': 10**9}
  with make_log(tmp_path, macs_of_one=lambda: macs) as log:
    take(log, 1, 2, 3)
    log.flush()
  (row,) = rows_of(tmp_path)
  speed = row['train/images_per_second']
  assert row['train/step_ms'] == pytest.approx(4e3 / speed)
  share = speed * 6 * 1.1e10 / (197e12 * jax.device_count())
  assert row['train/mfu'] == pytest.approx(share)
  assert row['train/memory_gib'] == 1 and row['train/memory_peak_gib'] == 3


def test_kinds_of_devices_are_told_apart():
  for kind in 'cpu', 'TPU v4 lite', 'NVIDIA GB200', 'NVIDIA GH200 480GB':
    assert peak.flops(kind) is None
  assert peak.flops('NVIDIA B200') > peak.flops('TPU v6 lite') > 9e14
  assert peak.flops('NVIDIA A100-SXM4-80GB') > peak.flops('TPU v4')
  assert peak.flops('TPU v5 lite') < peak.flops('TPU v5p') < 5e14
  assert peak.flops('NVIDIA H100 PCIe') < peak.flops('NVIDIA H100 80GB HBM3')


def test_time_lost_to_restarts_adds_up(tmp_path, monkeypatch):
  clock = [1000.0]
  monkeypatch.setattr(logging.time, 'time', lambda: clock[0])
  # The last checkpoint is of step 2; twice the run is killed after step 4, then
  # before its first row.
  for first, steps in ((0, (1, 2, 3, 4)), (2, (3, 4)), (2, ()), (2, (3,))):
    with make_log(tmp_path, first) as log:
      for step in steps:
        take(log, step)
        log.flush()
        clock[0] += 1
    clock[0] += 59
  names = 'restarts', 'restart_steps', 'restart_seconds'
  rows = [[row[f'train/{name}'] for name in names] for row in rows_of(tmp_path)]
  assert rows == [[0, 0, 0], [3, 4, 60], [3, 4, 60 + 60 + 59]]


def test_a_writer_gets_each_row_and_its_failure_ends_nothing(tmp_path, capsys):
  got = []

  def write(step, scalars):
    got.append({'step': step, **scalars})
    raise OSError('no network')

  with make_log(tmp_path, writer=write) as log:
    take(log, 1, 2)
    log.flush()
    log.evaluation(2, {'top1': 0.5})
  assert got == rows_of(tmp_path) and len(got) == 2
  failed = 'warning: the writer of step 2 failed: OSError: no network'
  assert failed in capsys.readouterr().out


def test_what_an_error_ends_is_kept_of_a_run_in_a_bucket(tmp_path, monkeypatch):
  monkeypatch.setattr(places, 'in_bucket', lambda path: path == tmp_path)
  # What it imports reads the environment, which other tests set before.
  monkeypatch.setattr(places, '_open_buckets', lambda: None)
  with pytest.raises(DivergenceError):
    with make_log(tmp_path) as log:
      take(log, 1)
      log.flush()
      assert not (tmp_path / 'metrics.jsonl').exists()
      raise DivergenceError('of the loss')
  assert len(rows_of(tmp_path)) == 1

  def lost():
    raise InputError('another has it')

  with pytest.raises(InputError, match='another has it'):
    with make_log(tmp_path, first=1, still_ours=lost) as log:
      take(log, 2)
      log.flush()
      log.sync()
  assert len(rows_of(tmp_path)) == 1


def test_a_trace_is_of_the_steps_that_were_asked_for(tmp_path, capsys):
  step = jax.jit(lambda x: jnp.sin(x).sum() + x)
  state = jnp.ones(1000)
  with trace.Trace(tmp_path, (3, 4), 9) as tracing:
    for number in range(1, 7):
      tracing.at(number, state)
      with tracing.step(number):
        state = step(state)
  assert f'steps 3 to 4 are traced in {tmp_path}' in capsys.readouterr().out
  assert list(tmp_path.rglob('plugins/profile/*/*.xplane.pb'))
  (path,) = tmp_path.rglob('*.trace.json.gz')
  events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  seen = {e['args'].get('step_num') for e in events if e.get('name') == 'train'}
  assert seen == {'3', '4'}


def test_what_is_told_as_traced_are_the_steps_that_were(tmp_path, capsys):
  for first, last in ((4, 4), (9, 9)):  # Resumed amid them, and beyond.
    with trace.Trace(tmp_path, (3, 6), 9) as tracing:
      began = [tracing.at(step, ()) for step in range(first, last + 1)]
    assert began == [first == 4]
  out = capsys.readouterr().out
  assert f'steps 4 to 4 are traced in {tmp_path}' in out
  assert 'nothing is traced: --profile_steps=3:6 were not taken' in out


def test_the_speed_leaves_out_what_is_no_step(tmp_path, monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(logging.time, 'monotonic', lambda: clock[0])
  with make_log(tmp_path) as log:
    for step in range(1, 5):
      take(log, step)
      clock[0] += 0.5
      if step in (2, 4):
        log.flush()
        clock[0] += 60  # A save.
        log.restart_clock()
  speeds = [row['train/step_ms'] for row in rows_of(tmp_path)]
  assert speeds == [1000, 500]


@pytest.mark.parametrize('text', ['10', '10:5', '0:3', 'a:b', '1:2:3', ''])
def test_steps_to_trace_that_are_none(text):
  # Of --profile_steps alone: before --config and --workdir are looked at.
  code, _, err = commands.tool('train', f'--profile_steps={text}')
  words = 'must be the first and the last step, such as 10:15\n'
  assert (code, err) == (1, f'error: --profile_steps={text!r}: {words}')


def test_steps_to_trace_that_the_run_has_not(tmp_path):
  flags = f'--workdir={tmp_path}/run', '--profile_steps=20:23'
  code, _, err = commands.tool('train', commands.TINY, *flags)
  words = 'error: --profile_steps=20:23, but the run has 22 steps\n'
  assert (code, err) == (1, words)
  assert not any(tmp_path.iterdir())


def test_a_stall_is_told_with_where_and_the_stacks(capfd):
  with stall.Watch(7, 0.2) as watch:
    watch.at(stall.STEP)
    time.sleep(0.5)  # It compiles.
    watch.ended(8)
    watch.at('waiting for data')
    time.sleep(0.05)
    watch.at(stall.STEP)
    watch.ended(9)
    assert capfd.readouterr().err == ''
    watch.at('waiting for data')
    time.sleep(0.75)  # Of the limit once, twice, and not yet four times.
    told = capfd.readouterr().err
    watch.at(stall.STEP)
  found = re.findall(r'the run has not gone on for \d s: .*', told)
  assert len(found) == 2
  assert 'it is waiting for data, after step 9' in found[0]
  assert told.count('in test_a_stall_is_told_with_where') == 2
  time.sleep(0.3)  # It has ended.
  assert capfd.readouterr().err == ''


def test_what_is_long_follows_from_the_steps(monkeypatch):
  clock = [0.0]
  watch = stall.Watch(0, 0)
  watch._seconds = None
  monkeypatch.setattr(stall.time, 'monotonic', lambda: clock[0])
  assert watch._limit() == 300
  for step in range(9):
    clock[0] += 9e3 if step == 4 else 60.0  # An evaluation among them.
    watch.ended(step)
  assert watch._limit() == 600


def test_the_page_names_each_scalar_and_its_script_runs(
    tmp_path, monkeypatch, quick_compiles
):
  page = (commands.ROOT / 'docs/pods.md').read_text()
  for name in logging.CLOCK:
    assert f'`{name}`' in page, name
  section = page.partition('## Watching')[2].partition('\n## ')[0]
  (script,) = re.findall('```python\n(.*?)```', section, re.DOTALL)
  assert len(script.splitlines()) <= 20
  got = []
  board = types.ModuleType('trackio')
  board.init = lambda project, config: got.append(config['seed'])
  board.log = lambda scalars, step: got.append({'step': step, **scalars})
  board.finish = lambda: got.append('finished')
  monkeypatch.setitem(sys.modules, 'trackio', board)
  config = tiny.get_config()
  config.num_epochs = 0.2
  monkeypatch.setattr(digits, 'get_config', lambda model: config)
  monkeypatch.chdir(tmp_path)
  exec(script, {})
  assert got == [0, *rows_of('runs/digits'), 'finished'] and len(got) == 12


def test_each_run_of_a_process_keeps_programs_beside_itself(
    tmp_path, monkeypatch
):
  option = 'jax_compilation_cache_dir'
  before = getattr(jax.config, option)
  monkeypatch.setattr(programs, 'LEAST', 0.0)
  jax.config.update(option, None)
  try:
    for name in 'one', 'two':
      with programs.kept(tmp_path / name / 'run'):
        jax.jit(lambda x: x * 1.5 - 1.25)(jnp.ones(3))
      assert any((tmp_path / name / '.jax_cache').iterdir())
      assert getattr(jax.config, option) is None
  finally:
    programs._use({option: before})


@pytest.mark.slow
def test_a_second_start_is_soon_at_its_first_step(tmp_path, monkeypatch):
  for name in [*os.environ]:
    if name.startswith('JAX_') and name != 'JAX_PLATFORMS':
      monkeypatch.delenv(name)
  took = []
  for _ in range(2):
    began = time.monotonic()
    given = f'--workdir={tmp_path}/run', '--config.log_every_steps=1'
    config = '--config=configs/digits.py:model=resnet50'
    process = commands.start('train.py', config, *given)
    assert any(line.startswith('step 1/') for line in process.stdout)
    took.append(time.monotonic() - began)
    process.kill()
    process.communicate()
  # Imports and tracing are left; a large network's program takes far longer.
  assert took[1] <= 0.5 * took[0], took
