"""A run that is made longer, one that is only tried, and what is printed."""

import re
import shlex
import subprocess
import sys

import commands
import jax
import numpy as np
import pytest
import tiny
from watched_run import rows_of, saved_arrays, use_devices

from awconv_jax import command_line
from awconv_jax.errors import InputError
from awconv_jax.tools import train as train_tool
from awconv_jax.train import dry_run, functions, partition, rundir, settings
from awconv_jax.train import loop as train_loop

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def config(num_epochs, schedule='constant', warmup=0.05):
  result = tiny.get_config(schedule=schedule)
  result.num_epochs = num_epochs
  result.optimizer.warmup_epochs = warmup
  return result


@pytest.mark.slow  # Three runs.
def test_at_a_constant_rate_it_has_the_bits_of_a_long_run(tmp_path, capsys):
  workdir = tmp_path / 'long'
  long = workdir, train_loop.train(config(0.2), str(workdir))
  short = train_loop.train(config(0.1), str(tmp_path))
  assert short.step == short.total_steps == 4
  capsys.readouterr()
  whole = train_loop.train(config(0.2), str(tmp_path))
  assert 'extended from 4 to 9 steps: the learning rates so far are those' in (
      capsys.readouterr().out
  )
  assert (whole.step, whole.metrics) == (9, long[1].metrics)
  ours, theirs = (saved_arrays(path, 9) for path in (tmp_path, long[0]))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  losses = [
      [row['train/loss'] for row in rows_of(path) if 'train/loss' in row]
      for path in (tmp_path, long[0])
  ]
  assert losses[0] == losses[1] and len(losses[0]) == 9
  assert rundir.read_config(tmp_path).num_epochs == 0.2
  # Shorter than it is, it cannot become.
  with pytest.raises(InputError, match='num_epochs is 0.2 there and 0.1 here'):
    train_loop.train(config(0.1), str(tmp_path))


@pytest.mark.parametrize(
    'schedule, warmup, says',
    [
        ('constant', 0.05, 'are those of a run of that length from the start'),
        ('cosine', 0.1, 'are those of a run of that length from the start'),
        ('cosine', 0.05, 'the cosine schedule is now that of the new length'),
    ],
)
def test_what_the_schedule_does_in_a_run_that_is_extended(
    schedule, warmup, says
):
  task, mesh = settings.create_task(config(0.1)), partition.create_mesh()
  before, now = (
      functions.create(made, task, mesh, 45.0)
      for made in (config(epochs, schedule, warmup) for epochs in (0.1, 0.2))
  )
  line = functions.extension(before, now, 4, schedule)
  assert line.startswith('extended from 4 to 9 steps: ') and says in line
  if 'now' in says:
    # From the foot of the short cosine to where the long one is.
    rates = [float(run.schedule(i)) for run, i in ((before, 3), (now, 4))]
    assert f'from {rates[0]:.2e} to {rates[1]:.2e}' in line
    assert rates[1] > 1.5 * rates[0]


@pytest.mark.slow  # It compiles a step and an evaluation.
def test_a_dry_run_measures_says_what_does_not_fit_and_writes_nothing(
    tmp_path, monkeypatch, capsys
):
  use_devices(monkeypatch, 1)
  monkeypatch.setattr(dry_run, '_SECONDS', 0)
  monkeypatch.setattr(dry_run, '_limit', lambda: 1000)
  workdir = tmp_path / 'run'
  with pytest.raises(InputError, match='a step takes .* MiB of 0.0; take a sm'):
    dry_run.run(config(0.2), str(workdir))
  assert not list(tmp_path.iterdir())
  out = capsys.readouterr().out
  for words in ('step, mean of 3', 'run of 9 steps and 1 evaluations', 'head'):
    assert words in out
  rows = dict(re.findall(r'\| (\S.*?) +\| (\S.*?) +\|', out))
  step, wait = rows['step, mean of 3'], rows['of it waiting for data']
  assert step != wait and step[-1] == wait[-1] == 's'
  assert int(rows['parameters'].replace(',', '')) > 300


def test_a_run_may_be_longer_than_what_is_there_but_not_shorter(tmp_path):
  rundir.write_config(tmp_path, config(0.2))
  (tmp_path / 'checkpoints/9').mkdir(parents=True)
  rundir.check_owner(tmp_path, config(0.4))
  for other, message in (
      (config(0.1), 'num_epochs is 0.2 there and 0.1 here'),
      (config(0.4, 'cosine'), 'schedule is .constant. there and .cosine. here'),
  ):
    with pytest.raises(InputError, match=message):
      dry_run.run(other, str(tmp_path))


def test_the_command_that_extends_can_be_pasted(monkeypatch, tmp_path):
  place = tmp_path / "my runs' first"
  given = [commands.TINY, f'--workdir={place}', '--config.num_epochs=3']
  monkeypatch.setattr(sys, 'argv', ['train.py', *given])
  words = shlex.split(train_tool._extended(3.0))
  assert words[1:] == [
      *('train.py', *given[:2], '--config.num_epochs=6'),
  ]
  assert command_line.shutil.which(words[0])
  monkeypatch.setattr(sys, 'argv', ['/nowhere/awconv-train', *given[:1]])
  assert shlex.split(train_tool._extended(0.5))[::2] == [
      *('/nowhere/awconv-train', '--config.num_epochs=1'),
  ]


def test_a_tool_is_started_from_where_the_user_is(monkeypatch, tmp_path):
  monkeypatch.setattr(sys, 'path', [str(commands.ROOT), *sys.path])
  monkeypatch.chdir(commands.ROOT)
  there = command_line.tools()
  assert there.endswith(' -m awconv_jax.tools.') and 'PYTHONPATH' not in there
  # Python would not find a clone that train.py lies in.
  monkeypatch.chdir(tmp_path)
  code = f'{command_line.tools()}convert --help'
  monkeypatch.setenv('PYTHONPATH', '/nowhere')
  done = subprocess.run(code, shell=True, capture_output=True, text=True)
  assert '--push' in done.stdout or '--output' in done.stdout, done.stderr
  assert f'PYTHONPATH={commands.ROOT}:' in code
