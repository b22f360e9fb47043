"""A run's directory belongs to one config, saved beside its results."""

from collections.abc import Mapping, Sequence
import fcntl
import json
import os
import pathlib
from typing import Any

from awconv_jax import errors

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


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def lock(workdir: str | os.PathLike) -> Any:
  """Keeps other runs out of a directory until the result is closed.

  Args:
    workdir: directory of the run; made if it is not there.

  Returns:
    An open file; the lock also ends with the process.

  Raises:
    InputError: another run is under way in there, or it cannot be written.
  """
  workdir = pathlib.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / '.lock').open('w')
  except OSError as error:
    raise _cannot_write(workdir, error) from error
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    file.close()
    raise errors.InputError(
        f'another run is under way in {workdir}; wait for it, or give another '
        '--workdir'
    ) from error
  return file


def _cannot_write(workdir, error) -> errors.InputError:
  return errors.InputError(
      f'cannot write to --workdir={workdir}: {error.strerror}; give another'
  )


def claim(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
  """Saves the config in the directory, or checks that it is the one there.

  A directory without any checkpoint holds nothing to continue, and takes any
  config.

  Args:
    workdir: directory of the run; made if it is not there.
    config: the whole config.

  Raises:
    InputError: the directory cannot be written, or holds a run with another
      config.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / 'config.json'
  # Through JSON, so that tuples and lists compare equal.
  config = json.loads(json.dumps(config))
  steps = (workdir / 'checkpoints').glob('*')
  if path.exists() and any(p.name.isdigit() for p in steps):
    try:
      held = _flatten(json.loads(path.read_text()))
    except (ValueError, AttributeError) as error:
      raise errors.InputError(
          f'{path} holds no config; give another --workdir, or restore it'
      ) from error
    given = _flatten(config)
    missing = object()
    differ = [
        key
        for key in sorted(held.keys() | given.keys())
        if key not in FREE_KEYS
        and held.get(key, missing) != given.get(key, missing)
    ]
    if differ:
      changes = '; '.join(
          f'config.{key} is {held.get(key, "absent")!r} there and '
          f'{given.get(key, "absent")!r} here'
          for key in differ[:3]
      )
      more = f' and {len(differ) - 3} more' if len(differ) > 3 else ''
      raise errors.InputError(
          f'{workdir} belongs to a run with another config: {changes}{more}; '
          'give another --workdir, or that config to continue it'
      )
  try:
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(config, indent=2) + '\n')
    temporary.replace(path)
  except OSError as error:
    raise _cannot_write(workdir, error) from error


def note(workdir: str | os.PathLike, name: str, lines: Sequence[str]) -> None:
  """Adds lines to a file of the run, those that it does not have yet.

  Args:
    workdir: directory of the run.
    name: of the file, which is made with the first line.
    lines: to add.
  """
  if not lines:
    return
  path = pathlib.Path(workdir) / name
  known = set(path.read_text().splitlines()) if path.exists() else set()
  with path.open('a') as file:
    file.writelines(f'{line}\n' for line in lines if line not in known)
