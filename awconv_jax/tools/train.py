r"""Trains a network; every number of the run is in its config.

  python train.py --config=configs/digits.py --workdir=runs/digits
  python train.py --config=configs/digits.py:model=resnet34 \
      --workdir=runs/digits34 --config.batch_size=32

The same command goes on with a run that was stopped, and with a larger
--config.num_epochs it extends one. Where the package is installed it is
awconv-train, and --config=digits finds a shipped config.

--print_config lists every option with its value, default and meaning;
--dry_run opens the data, compiles the step and measures a few.

Several processes run it each with --coordinator, --num_processes and
--process_id; where JAX finds them (SLURM, Open MPI, Cloud TPU, Kubernetes)
without.
"""

import os
import re
import shlex
import signal
import sys

from absl import flags

from awconv_jax import command_line
from awconv_jax.errors import InputError
from awconv_jax.train import processes

FLAGS = flags.FLAGS


class _Steps(flags.ArgumentParser):
  """Parses the first and the last of some steps, such as '10:15'."""

  def parse(self, argument: str) -> tuple[int, int]:
    found = re.fullmatch(r'([1-9]\d{0,9}):([1-9]\d{0,9})', argument)
    if not found or int(found[1]) > int(found[2]):
      raise InputError('must be the first and the last step, such as 10:15')
    return int(found[1]), int(found[2])


def _define_flags() -> None:
  flags.disclaim_key_flags()  # They are those of the program that calls this.
  command_line.define_config(
      'A file, or the name of a shipped one, such as digits:model=resnet34.'
  )
  command_line.define_path(
      'workdir', 'Directory for the checkpoints, metrics and curves.'
  )
  flags.DEFINE_bool(
      'print_config',
      False,
      'Print every option of the config, its default and its meaning; end.',
  )
  flags.DEFINE_bool(
      'dry_run',
      False,
      'Open the data, compile, measure a few steps, say how long the run will '
      'take; write nothing.',
  )
  flags.DEFINE_string('coordinator', None, "Address of process 0, 'host:port'.")
  flags.DEFINE_integer(
      'num_processes', None, 'Processes of this run, on all hosts.'
  )
  flags.DEFINE_integer('process_id', None, 'Which of them this one is, from 0.')
  text = 'How long processes wait for each other to join.'
  flags.DEFINE_integer('join_seconds', 300, text, 1)
  flags.DEFINE(
      _Steps(),
      'profile_steps',
      None,
      'Steps to trace for xprof, first:last, as 10:15.',
  )
  flags.DEFINE_integer(
      'stall_seconds',
      None,
      'Show where the run is after so long without progress; 0 for never. '
      'By default ten times the median step, and at least 300.',
      0,
  )


def main() -> None:
  """Trains as the flags say."""
  if FLAGS.print_config:
    return _print_config()
  told = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
  where = processes.place(*told, FLAGS.join_seconds)
  # Before all else: a mistake in one of several processes ends all of them.
  with processes.joined(where, FLAGS.join_seconds):
    _train()


def _print_config() -> None:
  from awconv_jax import manual
  from awconv_jax.train import settings

  config = command_line.read_config()
  if config is None:
    raise InputError('--config is missing, such as --config=digits')
  print(manual.text(config.to_dict(), settings.Settings))


def _train() -> None:
  config, workdir = command_line.read_config(), FLAGS.workdir
  if config is None or not (workdir or FLAGS.dry_run):
    raise InputError(
        '--config or --workdir is missing, such as --config=digits '
        '--workdir=runs/digits'
    )
  processes.start(config, workdir)
  # After the flags, so that --help and a mistake in them answer at once.
  import jax

  from awconv_jax.tools import plot_curves
  from awconv_jax.train import dry_run, logging, loop

  if FLAGS.dry_run:
    return dry_run.run(config, workdir)
  result = loop.train(
      config,
      workdir,
      profile_steps=FLAGS.profile_steps,
      stall_seconds=FLAGS.stall_seconds,
  )
  if result.stopped_by:
    logging.info(
        f'stopped by {result.stopped_by} after step {result.step} of '
        f'{result.total_steps}; saved. The same command goes on.'
    )
    # As if the signal had ended it, so that `train && evaluate` does not go on.
    sys.exit(128 + signal.Signals[result.stopped_by])
  if jax.process_index() != 0:
    return
  workdir = workdir.rstrip('/') or '/'
  alone = jax.process_count() == 1  # Others have commands of their own.
  print(
      f'checkpoints: {workdir}/checkpoints\n'
      f'metrics:     {workdir}/metrics.jsonl\n'
      f'TensorBoard: {workdir}/tensorboard (pip install tensorboard)\n'
      f'curves:      {plot_curves.plot([workdir], f"{workdir}/curves.png")}\n'
      f'evaluate:    {command_line.tools()}evaluate '
      f'--run={shlex.quote(workdir)}\n'
      + f'extend:      {_extended(config.num_epochs)}\n' * alone
      + f'done:        {logging.shown(result.metrics)}'
  )


def _extended(num_epochs: float) -> str:
  """Returns the command that was given, for a run of twice the length."""
  program, *given = sys.argv
  if os.path.basename(program) == command_line.TRAIN:
    words = [command_line.found(program)]
  else:
    words = [command_line.python(), shlex.quote(program)]
  # The last of a flag counts, however the others are written.
  once = '--config.num_epochs=', '--profile_steps='
  words += [shlex.quote(word) for word in given if not word.startswith(once)]
  return ' '.join([*words, f'--config.num_epochs={2 * num_epochs:g}'])


def start() -> None:
  """Parses the flags, and trains."""
  _define_flags()
  sys.modules['__main__'].__doc__ = __doc__  # What --help shows.
  command_line.run(main)
