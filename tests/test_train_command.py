"""train.py as a user runs it: devices, processes, kills, signals, mistakes."""

import contextlib
import functools
import hashlib
import re
import shutil
import signal
import time

import commands
import pytest
import tiny
from watched_run import assert_same_runs, rows_of, use_devices

from awconv_jax import command_line, data, errors
from awconv_jax.train import settings

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

# Thirty steps of float32; the learning rate of a usual start, so that rounding
# differences between the ways to sum are not blown up by the training itself.
THIRTY = (
    '--config.num_epochs=0.668 --config.eval_every_epochs=0.334 '
    '--config.checkpoint_every_epochs=0.1 --config.batch_size=32 '
    '--config.optimizer.learning_rate=0.02'
).split()


@pytest.fixture(scope='module', autouse=True)
def quick_compiles_of_programs():
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
    yield


def command(workdir, *arguments):
  return 'train.py', commands.TINY, f'--workdir={workdir}', *arguments


def train(*arguments, **options):
  code, out, err = commands.run(*command(*arguments), **options)
  assert code == 0, err
  return out


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  """Thirty steps on one device, and what they printed; without TensorFlow."""
  workdir, trap = map(tmp_path_factory.mktemp, ('one_device', 'trap'))
  (trap / 'tensorflow.py').write_text('raise SystemExit("imported")')
  return workdir, train(workdir, *THIRTY, env={'PYTHONPATH': str(trap)})


def assert_same_losses_and_evaluation(expected, got):
  rows = list(zip(rows_of(expected), rows_of(got), strict=True))
  assert sum('train/loss' in ours for ours, _ in rows) == 30
  for ours, theirs in rows:
    assert ours['step'] == theirs['step']
    for name in {'train/loss', 'eval/loss'} & {*ours, *theirs}:
      assert theirs[name] == pytest.approx(ours[name], rel=1e-5)
    for name in ('eval/top1', 'eval/top5', 'eval/num_examples'):
      assert theirs.get(name) == ours.get(name)


@pytest.mark.slow  # Two processes save and load in test_checkpoint.
def test_two_processes_of_four_devices_train_as_one(one_device, tmp_path):
  both = commands.start_two(*command(tmp_path, *THIRTY))
  outs = [p.communicate(timeout=300) for p in both]
  assert [p.returncode for p in both] == [0, 0], outs
  assert_same_losses_and_evaluation(one_device[0], tmp_path)
  # Only the first process speaks (but for what Gloo itself prints).
  assert 'evaluation: ' in outs[0][0]
  assert 'step' not in outs[1][0] and 'top1' not in outs[1][0]


@pytest.mark.slow
def test_a_sharded_state_goes_on_anywhere(tmp_path):
  run, whole = tmp_path / 'run', tmp_path / 'whole'
  length = *THIRTY, '--config.model.width=8'  # Of which 8 devices have shards.

  def both():
    two = commands.start_two(
        *command(run, *length, '--config.shard_state=True')
    )
    outs = [process.communicate(timeout=300) for process in two]
    assert [process.returncode for process in two] == [0, 0], outs
    return outs[0][0]

  train(whole, *length)
  both()
  for go_on in lambda: train(run, *length), both:
    assert_same_losses_and_evaluation(whole, run)
    shutil.rmtree(run / 'checkpoints/30')
    assert 'resumed from the checkpoint of step' in go_on()
  assert_same_losses_and_evaluation(whole, run)
  assert not (run / 'checkpoints_damaged').exists()


def test_the_end_says_where_everything_is(one_device):
  workdir, out = one_device
  for words in ('checkpoints', 'tensorboard', 'extend: ', 'multiply_adds'):
    assert words in out
  top1 = rows_of(workdir)[-1]['eval/top1']
  assert re.fullmatch(rf'done: .*top1 {top1:.4f} .*', out.splitlines()[-1])
  assert (workdir / 'curves.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow  # In the suite, saves are killed.
def test_a_kill_leaves_no_trace_in_the_result(one_device, tmp_path):
  process = commands.start(*command(tmp_path, *THIRTY))
  assert any(line.startswith('step 14/') for line in process.stdout)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL, 'it ended before the kill'
  assert 'resumed from the checkpoint of step' in train(tmp_path, *THIRTY)
  assert_same_runs(one_device[0], tmp_path, 30)


# Notes which examples each process trains on. Several take their time: a signal
# does, too, until all have heard of it.
NOTED = """
import hashlib, runpy, sys, time
from awconv_jax.data import batches
take = batches.TrainBatches.__next__
def noted(self):
  batch = take(self)
  rows = [row.tobytes() for row in batch['image']]
  with open({notes!r}, 'a') as file:
    print(self._delivered, self._reader.process_index, file=file, end=' ')
    print(*[hashlib.md5(row).hexdigest() for row in rows], file=file)
  time.sleep(0.2 * (self._reader.process_count > 1))
  return batch
batches.TrainBatches.__next__ = noted
sys.argv[0] = 'train.py'
runpy.run_path('train.py', run_name='__main__')
"""


def examples_of(notes):
  """Returns, by step, the hashes of the images of all processes, in order."""
  steps = {}
  lines = (line.split() for line in notes.read_text().splitlines())
  for step, _, *rows in sorted(lines, key=lambda line: line[:2]):
    steps.setdefault(int(step), []).extend(rows)
  return steps


@pytest.mark.parametrize(
    'signal_number, devices',
    [
        (signal.SIGTERM, ()),
        (signal.SIGTERM, (8,)),
        (signal.SIGINT, ()),
        (signal.SIGTERM, (1, 8)),
    ],
)
@pytest.mark.slow
def test_a_signal_stops_two_processes_and_others_go_on(
    one_device, tmp_path, signal_number, devices
):
  notes, workdir = tmp_path / 'notes', tmp_path / 'run'
  program = NOTED.format(notes=str(notes))
  # Of the signal alone: the only other one is at the end.
  given = *command(workdir, *THIRTY), '--config.checkpoint_every_epochs=50.0'
  both = commands.start_two('-c', program, *given[1:])
  assert any(line.startswith('step 4/') for line in both[0].stdout)
  # The one that prints nothing is told; both must hear of it.
  both[1].send_signal(signal_number)
  since = time.monotonic()
  out, err = both[0].communicate(timeout=120)
  both[1].communicate(timeout=120)
  assert time.monotonic() - since < 30
  assert [p.returncode for p in both] == [143, 143], err
  (stopped,) = (path.name for path in (workdir / 'checkpoints').iterdir())
  assert f'stopped by SIGTERM after step {stopped} of 30' in out
  assert 'goes on' in out and 'checkpoints:' not in out
  for number in devices:
    process = commands.start('-c', program, *given[1:], devices=number)
    if number != devices[-1]:
      assert any(line.startswith('step 20/') for line in process.stdout)
      process.send_signal(signal_number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (0 if number == devices[-1] else 143), err
  if devices:
    assert_same_losses_and_evaluation(one_device[0], workdir)
    config = settings.complete(tiny.get_config())
    create = functools.partial(data.create, config.data, seed=config.seed)
    with contextlib.closing(create(train=True, batch_size=32)) as batches:
      images = [next(batches)['image'] for _ in range(30)]
    assert examples_of(notes) == {
        step: [hashlib.md5(image.tobytes()).hexdigest() for image in batch]
        for step, batch in enumerate(images, 1)
    }


@pytest.mark.parametrize(
    'arguments, wanted',
    [
        ('', ['--config or --workdir is missing']),
        ('--confg=x', ["unknown flag 'confg' .did you mean 'config'"]),
        ('more', ["unexpected argument 'more'"]),
        (  # All at once, each by itself.
            '--config.batch_size=abc --config.optimizer.lerning_rate=1 '
            '--config.seed -1',
            [
                "config.batch_size='abc' must be",
                'config.seed=-1 must be',
                "unknown config.optimizer.lerning_rate .*mean 'learning_rate'",
            ],
        ),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(arguments, wanted):
  code, out, err = commands.tool('train', commands.TINY, *arguments.split())
  assert code == 1 and not out
  lines = sorted(err.splitlines())
  assert len(lines) == len(wanted), err
  for line, words in zip(lines, wanted, strict=True):
    assert re.match(f'error: .*{words}', line), line


def test_one_image_a_batch_and_places_in_the_home_directory(
    tmp_path, monkeypatch
):
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  monkeypatch.setenv('HOME', str(tmp_path))
  use_devices(monkeypatch, 1)
  options = dict(batch_size=1, num_epochs=0.002, eval_batch_size=360)
  options |= {'optimizer.warmup_epochs': 0, 'model.aw_conv': 'False'}
  flags = [f'--config.{key}={value}' for key, value in options.items()]
  for tool, *given in (
      ('train', commands.TINY, '--workdir=~/run', *flags),
      ('convert', '--input=~/run', '--output=~/a.safetensors'),
      ('evaluate', '--run=~/run', '--output=~/evaluation.json'),
      ('plot_curves', '~/run', '--output=~/curves.png'),
  ):
    code, _, err = commands.tool(tool, *given)
    assert code == 0, err
  assert [row['step'] for row in rows_of(tmp_path / 'run')] == [1, 2, 3, 3]
  for name in ('run', 'a.safetensors', 'evaluation.json', 'curves.png'):
    assert (tmp_path / name).exists()
  assert not any((tmp_path / 'here').iterdir())


def test_configs_are_found_by_name_wherever_the_user_is(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, _, err = commands.tool('train')
  assert code == 1 and 'such as --config=digits --workdir=runs/digits' in err
  whole = command_line.load_config('digits:aw_conv=false')
  for folder in ('', 'configs/', f'{commands.ROOT}/configs/'):
    name = f'{folder}digits.py:aw_conv=false'
    assert command_line.load_config(name) == whole
  for name in ('digit', 'digit.py', 'configs/digit.py'):
    with pytest.raises(
        errors.InputError, match="did you mean '(configs/)?digits"
    ):
      command_line.load_config(name)
  for name in ('other/digits.py', '/digits.py'):
    with pytest.raises(errors.InputError, match='unknown config file'):
      command_line.load_config(name)
  # A file of the user's own goes before.
  (tmp_path / 'digits.py').write_text('def get_config():\n  return {}\n')
  assert command_line.load_config('digits.py') == {}


PATHS = {
    'train': ('workdir', 'config.init_from', 'config.data.dir'),
    'evaluate': ('run', 'data_dir', 'output'),
    'predict': ('run', 'output'),
    'convert': ('input', 'output'),
    'plot_curves': ('output',),
    'explain': ('run', 'output', 'numbers'),
}


@pytest.mark.parametrize('tool', PATHS)
def test_no_flag_takes_another_address_for_a_folder(
    tool, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  run = tmp_path / 'run'
  given = {
      'train': [commands.TINY, f'--workdir={run}'],
      'plot_curves': [run],
      'convert': [f'--input={run}', f'--output={run}'],
  }.get(tool, [f'--run={run}', f'--output={run}'])
  for name in PATHS[tool]:
    code, _, err = commands.tool(tool, *given, f'--{name}=s3://bucket/x')
    assert code == 1 and not any(tmp_path.iterdir())
    assert re.fullmatch(f"error: .*{name}='s3://bucket/x'.*machine;.*\n", err)


def test_a_run_goes_on_when_nobody_reads_what_it_shows():
  code = (
      'import os\n'
      'from awconv_jax.train import logging\n'
      'read, write = os.pipe()\n'
      'os.close(read), os.dup2(write, 1)\n'
      'for text in "ab": logging.info(text)\n'
  )
  code, _, err = commands.run('-c', code)
  assert code == 0, err
  assert err == (
      'standard output: Broken pipe; the run goes on, see metrics.jsonl\n'
  )


def test_help_lists_the_flags_also_those_that_another_tool_defines():
  code, out, _ = commands.tool('predict', '--help')
  flags = ('config', 'run', 'split')
  assert code == 0 and all(f'  --{flag}:' in out for flag in flags)


@pytest.mark.slow
@pytest.mark.parametrize('platform', ['tpu', 'cuda', 'nonsense'])
def test_a_device_that_is_not_there_is_one_line(tmp_path, platform):
  env = {'JAX_PLATFORMS': platform}
  complexity = (*commands.program('complexity'), commands.TINY)
  for program in command(tmp_path), complexity:
    code, _, err = commands.run(*program, env=env)
    assert code == 1 and err.startswith('error: ') and err.count('\n') == 1
    assert f"'{platform}'" in err


def test_signals_are_noted_and_a_second_interrupt_interrupts_at_once():
  # In a process of its own, where it can reach no other test.
  code = (
      'import os\n'
      'from awconv_jax.train import preemption\n'
      'for number, name in (15, "SIGTERM"), (2, "SIGINT"):\n'
      '  with preemption.stop_requests() as reason:\n'
      '    assert reason() is None\n'
      '    os.kill(os.getpid(), number)\n'
      '    assert reason() == name\n'
      '    if number == 2: os.kill(os.getpid(), 2)\n'
  )
  code, _, err = commands.run('-c', code)
  assert code != 0 and err.splitlines()[-1] == 'KeyboardInterrupt'


@pytest.mark.parametrize('name', ['train', 'plot_curves', 'benchmarks'])
def test_an_interrupt_amid_the_imports_is_one_word(tmp_path, name):
  # As jaxlib makes another exception of it, and numpy a crash.
  (tmp_path / 'jax.py').write_text(
      'import os\n'
      'try: os.kill(os.getpid(), 2)\n'
      'except KeyboardInterrupt: raise ImportError'
  )
  env = {'PYTHONPATH': str(tmp_path)}
  code, _, err = commands.run(*commands.program(name), env=env)
  assert code == 1 and err == 'interrupted\n'
