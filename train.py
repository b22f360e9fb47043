"""Trains a network; every number of the run is in its config.

  python train.py --config=configs/digits.py --workdir=runs/digits
  python train.py --config=configs/digits.py:model=resnet34 \
      --workdir=runs/digits34 --config.batch_size=32

The same command goes on with a run that was stopped. Several processes run it
each with --coordinator, --num_processes and --process_id; under SLURM and on
Cloud TPU they find each other.
"""

from collections.abc import Sequence
import os
import shlex
import sys

from absl import flags, logging
from ml_collections import config_flags

from awconv_jax import command_line, errors

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


def _network(model):
  """Returns the options of the network, which may be a detector's backbone."""
  return model.backbone if 'backbone' in model else model


def _compared(config_path: str, arguments: Sequence[str], plain: bool):
  """Returns the flags of the same run with AW-convolutions, or without."""
  path, _, arg = config_path.partition(':')
  items = [i for i in arg.split(',') if i and not i.startswith('aw_conv=')]
  items.append(f'aw_conv={"true" if plain else "false"}')
  overrides = [
      a
      for a in arguments
      if a.startswith('--config.')
      and not a.startswith(
          ('--config.model.aw_conv', '--config.model.backbone.aw_conv')
      )
  ]
  return [f'--config={path}:{",".join(items)}', *overrides]


def _summarize(
    result, workdir: str, config_path: str, split: str, plain: bool
) -> None:
  """Prints where things are and what to try next."""
  workdir = workdir.rstrip('/')
  from awconv_jax.tools import plot_curves

  curves = plot_curves.plot([workdir], f'{workdir}/curves.png')
  if 'top1' in result.metrics:
    count = int(result.metrics['num_examples'])
    print(f'{split} top-1: {100 * result.metrics["top1"]:.2f} % of {count}')
  if 'AP' in result.metrics:
    count = int(result.metrics['num_images'])
    shown = '  '.join(
        f'{name} {100 * result.metrics[name]:.2f} %' for name in ('AP', 'AP50')
    )
    print(f'{split}: {shown} on {count} images')
  print(
      f'checkpoints: {workdir}/checkpoints\n'
      f'metrics:     {workdir}/metrics.jsonl\n'
      f'TensorBoard: {workdir}/tensorboard (pip install tensorboard)\n'
      f'curves:      {curves}\n'
      'next, for example:'
  )
  python = shlex.quote(os.path.relpath(sys.executable))
  other = f'{workdir}_{"aw" if plain else "plain"}'
  command = shlex.join(
      [
          *_compared(config_path, sys.argv[1:], plain),
          f'--workdir={other}',
      ]
  )
  print(
      f'  {python} train.py {command}\n'
      f'  {python} -m awconv_jax.tools.plot_curves --output=compare.png '
      f'{shlex.join([workdir, other])}'
  )


def main(arguments):
  """Trains as the flags say."""
  command_line.refuse_arguments(arguments)
  if _CONFIG.value is None:
    raise errors.InputError(
        '--config is missing, such as --config=configs/digits.py'
    )
  if not _WORKDIR.value:
    raise errors.InputError(
        '--workdir is missing, such as --workdir=runs/digits'
    )
  logging.set_verbosity(logging.WARNING)
  # After the flags, so that --help and a mistake in them answer at once.
  import jax

  from awconv_jax.train import loop as train_loop
  from awconv_jax.train import partition

  partition.initialize_distributed(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  )
  result = train_loop.train(_CONFIG.value, _WORKDIR.value)
  if jax.process_index() != 0:
    return
  if result.stopped_by:
    print(
        f'stopped by {result.stopped_by} after step {result.step} of '
        f'{result.total_steps}; saved. The same command goes on.'
    )
    return
  config_path = config_flags.get_config_filename(flags.FLAGS['config'])
  _summarize(
      result,
      _WORKDIR.value,
      config_path,
      _CONFIG.value.data.eval_split,
      plain=not _network(_CONFIG.value.model).aw_conv,
  )


if __name__ == '__main__':
  command_line.run(main)
