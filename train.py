"""Trains a network; every number of the run is in its config.

  python train.py --config=configs/digits.py --workdir=runs/digits
  python train.py --config=configs/digits.py:model=resnet34 \
      --workdir=runs/digits34 --config.batch_size=32

The same command goes on with a run that was stopped. Several processes run it
each with --coordinator, --num_processes and --process_id; under SLURM and on
Cloud TPU they find each other.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from awconv_jax import errors

_CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    'Config file, such as configs/digits.py or, with arguments, '
    'configs/digits.py:model=resnet34. Its values can be overridden one by '
    'one: --config.batch_size=32.',
)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory for the checkpoints, metrics and curves.'
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


def _fail(message: object) -> None:
  """Ends with one line on standard error."""
  sys.exit(f'error: {" ".join(str(message).split())}')


def _parse(argv):
  """Parses flags; a mistake in them is one line, not a traceback."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    _fail(error.args[0] if isinstance(error, KeyError) else error)


def _summarize(result, workdir: str, config_path: str) -> None:
  """Prints where things are and what to try next."""
  from awconv_jax.tools import plot_curves

  curves = plot_curves.plot([workdir], f'{workdir}/curves.png')
  if 'top1' in result.metrics:
    count = int(result.metrics['num_examples'])
    print(f'test top-1: {100 * result.metrics["top1"]:.2f} % of {count}')
  print(
      f'checkpoints: {workdir}/checkpoints\n'
      f'metrics:     {workdir}/metrics.jsonl\n'
      f'TensorBoard: tensorboard --logdir={workdir}/tensorboard\n'
      f'curves:      {curves}\n'
      'next, for example:\n'
      f'  python train.py --config={config_path}:aw_conv=false '
      f'--workdir={workdir}_plain\n'
      '  python -m awconv_jax.tools.plot_curves --output=compare.png '
      f'{workdir} {workdir}_plain'
  )


def main(argv):
  if len(argv) > 1:
    _fail(f'unexpected argument {argv[1]!r}; flags begin with --')
  if _CONFIG.value is None:
    _fail('--config is missing, such as --config=configs/digits.py')
  if not _WORKDIR.value:
    _fail('--workdir is missing, such as --workdir=runs/digits')
  logging.set_verbosity(logging.WARNING)
  # After the flags, so that --help and a mistake in them answer at once.
  import jax

  from awconv_jax import partition, train_loop

  try:
    partition.initialize_distributed(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
    result = train_loop.train(_CONFIG.value, _WORKDIR.value)
  except errors.ReportedError as error:
    _fail(error)
  if jax.process_index() != 0:
    return
  if result.stopped_by:
    print(
        f'stopped by {result.stopped_by} after step {result.step} of '
        f'{result.total_steps}; saved. The same command goes on.'
    )
    return
  config_path = config_flags.get_config_filename(flags.FLAGS['config'])
  _summarize(result, _WORKDIR.value, config_path.partition(':')[0])


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
