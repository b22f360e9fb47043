"""The directory of a run belongs to one config, saved beside its results."""

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import json
import os
import pathlib
from typing import Any

import flax.traverse_util
import jax
import ml_collections

from awconv_jax.errors import InputError
from awconv_jax.train import partition, settings

CONFIG = 'config.json'
CLASSES = 'classes.json'  # The names, in the order of labels.
CATEGORIES = 'categories.json'  # With the data set's numbers, if it has any.
UNREADABLE = 'unreadable.txt'  # Images that could not be read, one a line.

# What may differ when a run is continued: it changes where data lie or what is
# shown and kept when, but not one bit of the trained weights.
FREE_KEYS = {
    'log_every_steps',
    'eval_every_epochs',
    'eval_batch_size',
    'checkpoint_every_epochs',
    'checkpoints_to_keep',
    'data.dir',
    'data.num_workers',
    'data.num_threads',
    'data.prefetch',
    'data.max_bad_fraction',
}


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """Returns the config of a run, complete, or raises InputError without one."""
  path = pathlib.Path(workdir) / CONFIG
  try:
    return settings.complete(json.loads(path.read_text()))
  except OSError as error:
    reason = f'{error.strerror}; weights without one need a config'
  except (AttributeError, TypeError, ValueError) as error:
    reason = str(error).replace('\n', '; ')
  raise InputError(f'{path} does not hold the config of a run: {reason}')


@contextlib.contextmanager
def claim(workdir: pathlib.Path, config: Any) -> Iterator[None]:
  """Has a directory for this run alone, and saves its whole config there.

  One without any checkpoint holds nothing to continue, and takes any config.
  With several processes, the first does all this, and all of them call it.

  Raises:
    InputError: it cannot be written, or has another run or another config.
  """
  with contextlib.ExitStack() as stack:

    def take():
      if jax.process_index() != 0:
        return
      try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((workdir / '.lock').open('w'))
        # It also ends with the process.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        why = f'cannot be written: {error.strerror}'
        if isinstance(error, BlockingIOError):
          why = 'has another run under way'
        raise InputError(f'--workdir={workdir} {why}; give another') from error
      _save_config(workdir, config)

    partition.sync_errors(take)
    yield


def _save_config(workdir: pathlib.Path, config: Any) -> None:
  path = workdir / CONFIG
  steps = (workdir / 'checkpoints').glob('*')
  if path.exists() and any(step.name.isdigit() for step in steps):
    held, given = (
        flax.traverse_util.flatten_dict(c.to_dict(), True, sep='.')
        for c in (read_config(workdir), config)
    )
    changes = [
        f'config.{key} is {there!r} there and {here!r} here'
        for key in sorted((held.keys() | given.keys()) - FREE_KEYS)
        if (there := held.get(key, 'absent'))
        != (here := given.get(key, 'absent'))
    ]
    if changes:
      more = f' and {len(changes) - 3} more' * (len(changes) > 3)
      raise InputError(
          f'--workdir={workdir} belongs to a run with another config: '
          f'{"; ".join(changes[:3])}{more}; give another, or that config'
      )
  write_config(workdir, config)


def write_config(
    workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Writes what `read_config` reads; all of it or nothing."""
  temporary = workdir / 'config.tmp'
  temporary.write_text(json.dumps(config.to_dict(), indent=2) + '\n')
  temporary.replace(workdir / CONFIG)


def write_classes(
    workdir: pathlib.Path,
    names: Sequence[str],
    category_ids: Sequence[int] | None,
) -> None:
  """Writes what labels stand for: names, and the data set's numbers of them."""
  (workdir / CLASSES).write_text(json.dumps(list(names)) + '\n')
  if category_ids is not None:
    pairs = zip(category_ids, names, strict=True)
    rows = [{'id': int(number), 'name': name} for number, name in pairs]
    (workdir / CATEGORIES).write_text(json.dumps(rows) + '\n')
