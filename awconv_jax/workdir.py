"""A run's directory belongs to one config, saved beside its results."""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

from awconv_jax import errors

# What may differ when a run is continued: it changes where data lie or how
# much is shown and kept, but not one bit of the result.
FREE_KEYS = (
    'log_every_steps',
    'checkpoints_to_keep',
    'data.dir',
    'data.num_workers',
    'data.num_threads',
    'data.prefetch',
)


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def claim(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
  """Saves the config in the directory, or checks that it is the one there.

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
  if path.exists():
    try:
      held = _flatten(json.loads(path.read_text()))
    except ValueError as error:
      raise errors.InputError(
          f'{path} is not JSON; give another --workdir, or restore that file'
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
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(config, indent=2) + '\n')
    temporary.replace(path)
  except OSError as error:
    raise errors.InputError(
        f'cannot write to --workdir={workdir}: {error.strerror}; give another'
    ) from error
