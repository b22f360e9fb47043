"""The directory of a run belongs to one config, saved beside its results."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import json
import os
import pathlib
from typing import Any

import jax
import ml_collections

from awconv_jax.errors import InputError
from awconv_jax.train import partition, settings

CONFIG = 'config.json'
# The names of the classes, in the order of labels.
CLASSES = 'classes.json'
# Where labels stand for numbers of the data set: those, and the names, in the
# order of labels.
CATEGORIES = 'categories.json'
# The images that could not be read, one a line.
UNREADABLE = 'unreadable.txt'

# What may differ when a run is continued: it changes where data lie or what is
# shown and kept when, but not one bit of the trained weights.
FREE_KEYS = (
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
)


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """Returns the config that a run was made with, complete.

  Raises:
    InputError: the directory has none, or not one of a run.
  """
  path = pathlib.Path(workdir) / CONFIG
  try:
    return settings.complete(json.loads(path.read_text()))
  except OSError as error:
    reason = f'{error.strerror}; weights without one need a config (--config)'
  except (AttributeError, TypeError, ValueError) as error:
    reason = str(error).replace('\n', '; ')
  raise InputError(f'{path} does not hold the config of a run: {reason}')


@contextlib.contextmanager
def claim(
    workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> Iterator[None]:
  """Has the directory for this run alone, and saves its config there.

  One without any checkpoint holds nothing to continue, and takes any config.
  With several processes, the first does all this, and all of them call it.

  Args:
    workdir: directory of the run; made if it is not there.
    config: the whole config.

  Raises:
    InputError: the directory cannot be written, another run is under way in
      it, or it holds one with another config.
  """
  with contextlib.ExitStack() as stack:

    def take():
      if jax.process_index() == 0:
        stack.enter_context(_lock(workdir))
        _save_config(workdir, config)

    partition.sync_errors(take)
    yield


@contextlib.contextmanager
def _lock(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out; the lock also ends with the process."""
  with _writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / '.lock').open('w')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise InputError(
          f'another run is under way in {workdir}; wait for it, or give '
          'another --workdir'
      ) from error
    yield


@contextlib.contextmanager
def _writing(workdir: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise InputError(
        f'cannot write to --workdir={workdir}: {error.strerror}; give another'
    ) from error


def _save_config(
    workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  path = workdir / CONFIG
  steps = (workdir / 'checkpoints').glob('*')
  if path.exists() and any(step.name.isdigit() for step in steps):
    held, given = _flat(read_config(workdir)), _flat(config)
    changes = [
        f'config.{key} is {held.get(key, "absent")!r} there and '
        f'{given.get(key, "absent")!r} here'
        for key in sorted(held.keys() | given.keys())
        if key not in FREE_KEYS
        and held.get(key, 'absent') != given.get(key, 'absent')
    ]
    if changes:
      more = f' and {len(changes) - 3} more' if len(changes) > 3 else ''
      raise InputError(
          f'{workdir} belongs to a run with another config: '
          f'{"; ".join(changes[:3])}{more}; give another --workdir, or that '
          'config to continue it'
      )
  with _writing(workdir):
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + '\n')
    temporary.replace(path)


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, ml_collections.ConfigDict) and value:
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def write_classes(
    workdir: pathlib.Path,
    names: Sequence[str],
    category_ids: Sequence[int] | None,
) -> None:
  """Writes what the labels stand for into a run's directory.

  Args:
    workdir: of the run.
    names: of the classes, in the order of labels.
    category_ids: the data set's numbers of them, if it has any.
  """
  names = list(names)
  (workdir / CLASSES).write_text(json.dumps(names) + '\n')
  if category_ids is not None:
    rows = [
        {'id': int(number), 'name': name}
        for number, name in zip(category_ids, names, strict=True)
    ]
    (workdir / CATEGORIES).write_text(json.dumps(rows) + '\n')


def add_lines(path: pathlib.Path, lines: Sequence[str]) -> None:
  """Adds lines to a file, those that it does not have yet; made if needed."""
  if lines:
    known = set(path.read_text().splitlines()) if path.exists() else set()
    with path.open('a') as file:
      file.writelines(f'{line}\n' for line in lines if line not in known)
