"""Trains a network; every number of the run is in its config.

  python train.py --config=configs/digits.py --workdir=runs/digits
  python train.py --config=configs/digits.py:model=resnet34 \
      --workdir=runs/digits34 --config.batch_size=32

The same command goes on with a run that was stopped. Several processes run it
each with --coordinator, --num_processes and --process_id; where JAX finds them
(SLURM, Open MPI, Cloud TPU, Kubernetes) without.
"""

import os
import re
import shlex
import signal
import sys

# An exception amid the imports, which take seconds, crashes some of them;
# `command_line.run` takes this back.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(
      signal.SIGINT, lambda *_: os._exit(os.write(2, b'interrupted\n') and 1)
  )

from absl import flags

from awconv_jax import command_line
from awconv_jax.errors import InputError
from awconv_jax.train import processes

command_line.define_config('A file, such as configs/digits.py:model=resnet34.')
_WORKDIR = command_line.define_path(
    'workdir', 'Directory for the checkpoints, metrics and curves.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, "Address of process 0, 'host:port'."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', None, 'Processes of this run, on all hosts.'
)
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', None, 'Which of them this one is, from 0.'
)
_JOIN_SECONDS = flags.DEFINE_integer(
    'join_seconds', 300, 'So long processes wait for each other to come.', 1
)


class _Steps(flags.ArgumentParser):
  """Parses the first and the last of some steps, such as '10:15'."""

  def parse(self, argument: str) -> tuple[int, int]:
    found = re.fullmatch(r'([1-9]\d{0,9}):([1-9]\d{0,9})', argument)
    if not found or int(found[1]) > int(found[2]):
      raise InputError('must be the first and the last step, such as 10:15')
    return int(found[1]), int(found[2])


_PROFILE_STEPS = flags.DEFINE(
    _Steps(),
    'profile_steps',
    None,
    'Steps to trace for xprof, first:last, as 10:15.',
)
_STALL_SECONDS = flags.DEFINE_integer(
    'stall_seconds',
    None,
    'Show where the run is after so long without progress; 0 for never. '
    'By default ten times the median step, and at least 300.',
    0,
)


def main() -> None:
  """Trains as the flags say."""
  told = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  where = processes.place(*told, _JOIN_SECONDS.value)
  # Before all else: a mistake in one of several processes ends all of them.
  with processes.joined(where, _JOIN_SECONDS.value):
    _train()


def _train() -> None:
  config = command_line.read_config()
  if config is None or not _WORKDIR.value:
    folder = command_line.shipped_configs()
    given = f'--config={folder}/digits.py --workdir=runs/digits'
    raise InputError(f'--config or --workdir is missing, such as {given}')
  processes.start(config, _WORKDIR.value)
  # After the flags, so that --help and a mistake in them answer at once.
  import jax

  from awconv_jax.tools import plot_curves
  from awconv_jax.train import logging, loop

  result = loop.train(
      config,
      _WORKDIR.value,
      profile_steps=_PROFILE_STEPS.value,
      stall_seconds=_STALL_SECONDS.value,
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
  workdir = _WORKDIR.value.rstrip('/') or '/'
  print(
      f'checkpoints: {workdir}/checkpoints\n'
      f'metrics:     {workdir}/metrics.jsonl\n'
      f'TensorBoard: {workdir}/tensorboard (pip install tensorboard)\n'
      f'curves:      {plot_curves.plot([workdir], f"{workdir}/curves.png")}\n'
      f'compare:     python -m awconv_jax.tools.plot_curves '
      f'{shlex.quote(workdir)} ANOTHER\n'
      f'done:        {logging.shown(result.metrics)}'
  )


if __name__ == '__main__':
  command_line.run(main)
