"""Metric files, progress, processes, config arguments: the small parts."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import commands
import flax.linen as nn
import jax
import pytest

from awconv_jax import errors, models
from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.ops import data_shards
from awconv_jax.train import metric_writer, partition, preemption, progress
from awconv_jax.train import rundir as workdir
from configs import common, digits


def test_rows_after_the_checkpoint_are_written_anew(tmp_path):
  writer = metric_writer.MetricWriter(tmp_path, step=0)
  for step in (1, 2, 3):
    writer.write(step, {'train/loss': step / 10})
  writer.close()
  with writer.path.open('a') as file:
    file.write('{"step": 4, "tr')  # As a kill leaves it.
  writer = metric_writer.MetricWriter(tmp_path, step=2)
  writer.write(3, {'train/loss': 9.0})
  writer.close()
  rows = metric_writer.read(writer.path)
  assert [r['step'] for r in rows] == [1, 2, 3]
  assert rows[-1]['train/loss'] == 9.0


def test_a_broken_row_and_a_missing_file_are_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  with pytest.raises(errors.InputError, match='does not exist'):
    metric_writer.read(path)
  path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(errors.InputError, match='line 2 is not JSON'):
    metric_writer.read(path)


def test_plain_lines_when_piped(capsys):
  bar = progress.Progress(10, start=0, batch_size=4, show=True)
  seen = bar.report(5, {'loss': 1.5, 'learning_rate': 0.1})
  bar.say('a remark')
  out = capsys.readouterr().out
  assert out.startswith('step 5/10  loss 1.5000  lr 1.00e-01')
  assert 'images/s' in out and 'left' in out and 'a remark' in out
  assert seen['images_per_second'] > 0 and seen['data_wait'] == 0
  silent = progress.Progress(10, start=0, batch_size=4, show=False)
  silent.report(5, {'loss': 1.5, 'learning_rate': 0.1})
  assert not capsys.readouterr().out


def test_the_share_of_time_without_a_batch(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: clock[0])
  bar = progress.Progress(10, start=0, batch_size=4, show=False)
  bar.waited(5.0)
  bar.restart(1)  # What was before a pause does not count.
  bar.waited(0.5)
  bar.waited(0.25)
  clock[0] = 3.0
  scalars = {'loss': 1.5, 'learning_rate': 0.1}
  first = bar.report(4, scalars)
  assert first == {'images_per_second': 4.0, 'data_wait': 0.25}
  clock[0] = 4.0
  assert bar.report(5, scalars)['data_wait'] == 0


def test_a_live_bar_on_a_terminal():
  code = (
      'from awconv_jax import progress; '
      'bar = progress.Progress(2, start=0, batch_size=4, show=True); '
      'bar.advance(); bar.report(1, {"loss": 1.5, "learning_rate": 0.1}); '
      'bar.say("a remark"); bar.advance(); bar.close()'
  )
  ours, theirs = pty.openpty()
  size = struct.pack('HHHH', 40, 120, 0, 0)  # Rows and columns.
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
  process = subprocess.Popen(
      [sys.executable, '-c', code], cwd=commands.ROOT, stdout=theirs
  )
  process.wait(60)
  os.close(theirs)
  shown = b''
  while True:
    try:
      shown += os.read(ours, 4096)
    except OSError:  # The other end is closed and all is read.
      break
  text = shown.decode()
  assert '\r' in text and '100%' in text and '2/2' in text
  assert 'loss 1.5000' in text and 'images/s' in text and 'a remark' in text


@pytest.mark.parametrize(
    ('seconds', 'shown'), [(5, '0:05'), (245.4, '4:05'), (3723, '1:02:03')]
)
def test_durations(seconds, shown):
  assert progress._duration(seconds) == shown


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
      (('host:1', 2, None), '--process_id'),
      (('host:1', 2, 2), '--process_id=2 is not in 0..1'),
      (('host', 2, 0), '--coordinator=host has no port'),
  ):
    with pytest.raises(errors.InputError, match=words):
      partition.initialize_distributed(*given)


def test_a_second_interrupt_interrupts_at_once():
  with preemption.StopRequest() as stop:
    assert stop.reason(1) is None
    os.kill(os.getpid(), 2)
    assert stop.reason(1) == 'SIGINT'
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), 2)


def test_config_arguments_are_strict():
  values = common.parse_arg('a=2,c=true', a=1, b=0.5, c=False, d='x')
  assert values.to_dict() == {'a': 2, 'b': 0.5, 'c': True, 'd': 'x'}
  for text, words in (
      ('e=1', "'e'.*known: a, c"),
      ('a', 'has no value'),
      ('a=x', 'type int'),
      ('c=1', 'true or false'),
  ):
    with pytest.raises(ValueError, match=words):
      common.parse_arg(text, a=1, c=False)


# What the name of a network decides.
OF_THE_NAME = {
    'resnet18': {'block', 'stage_sizes', 'groups', 'group_width'},
    'wrn_16_4': {'blocks', 'widen'},
    'mobilenet_v2': {'stages'},
}


@pytest.mark.parametrize('name', OF_THE_NAME)
def test_every_option_of_the_networks_is_in_the_config(name):
  """So that config.json is the whole truth, and all can be overridden."""
  model = digits.get_config(f'model={name}').model
  network = models.create(**model.to_dict())
  fields = set(type(network).__dataclass_fields__) - {'parent', 'name'}
  assert fields - OF_THE_NAME[name] == set(model) - {'name'}


def test_every_option_of_the_paper_is_in_the_config():
  model = digits.get_config().model
  paper = set(AWConv.__dataclass_fields__) - set(nn.Conv.__dataclass_fields__)
  given_by_the_network = {'train', 'norm_momentum', 'norm_epsilon'}
  assert paper - given_by_the_network == set(model.aw_options)
  layer = AWConv(1, 1, **model.aw_options.to_dict())
  plain = AWConv(1, 1)
  for name in model.aw_options:
    assert getattr(layer, name) == getattr(plain, name), name


def test_config_choices_are_named():
  assert digits.get_config('optimizer=lamb').optimizer.options.eps == 1e-6
  for argument in ('optimizer=sdg', 'schedule=cos', 'attention=sse'):
    with pytest.raises(ValueError, match='known: '):
      digits.get_config(argument)


def test_the_config_is_locked():
  config = digits.get_config()
  with pytest.raises(AttributeError, match='batch_size'):
    config.batch_sise = 3


def test_a_workdir_names_the_keys_that_differ(tmp_path):
  (tmp_path / 'checkpoints/7').mkdir(parents=True)
  workdir.claim(tmp_path, {'a': {'b': 1, 'c': (1, 2)}, 'd': None})
  workdir.claim(tmp_path, {'a': {'b': 1, 'c': [1, 2]}, 'd': None})
  with pytest.raises(errors.InputError, match='config.a.b is 1 there and 2'):
    workdir.claim(tmp_path, {'a': {'b': 2, 'c': (1, 2)}, 'd': None})
  with pytest.raises(errors.InputError, match="config.e is 'absent' there"):
    workdir.claim(tmp_path, {'a': {'b': 1, 'c': (1, 2)}, 'd': None, 'e': 0})
  held = json.loads((tmp_path / 'config.json').read_text())
  assert held == {'a': {'b': 1, 'c': [1, 2]}, 'd': None}
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(errors.InputError, match='holds no config'):
    workdir.claim(tmp_path, {})
