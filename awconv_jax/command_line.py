"""Starts train.py and the tools: a user's mistake is one line, exit code 1.

ml_collections reports a mistyped `--config.key` or config argument with a
traceback; here the config is tried first, and the nearest known key named.
"""

from collections.abc import Callable, Sequence
import difflib
import errno
import importlib.util
import os
import pathlib
import sys
import tempfile
from typing import Any

from absl import app, flags

from awconv_jax import errors


def fail(message: object) -> None:
  """Ends the program with one line on standard error and exit code 1."""
  sys.exit(f'error: {" ".join(str(message).split())}')


def load_config(value: str) -> Any:
  """Returns the `ConfigDict` of '--config=path.py:arguments'.

  Args:
    value: path of a config file, with its arguments after a colon, if any.

  Raises:
    InputError: no such file, no `get_config` in it, or wrong arguments.
  """
  path, _, argument = value.partition(':')
  if not pathlib.Path(path).is_file():
    known = sorted(map(str, pathlib.Path(path).parent.glob('*.py')))
    known = [p for p in known if not p.endswith(('__init__.py', 'common.py'))]
    raise errors.unknown_name('config file', path, known or ['(none there)'])
  spec = importlib.util.spec_from_file_location('config', path)
  if spec is None:
    raise errors.InputError(f'config file {path!r} is not a Python file')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as error:  # It is the user's own program.
    raise errors.InputError(
        f'config file {path} cannot be read: {type(error).__name__}: {error}'
    ) from error
  if not hasattr(module, 'get_config'):
    raise errors.InputError(f'{path} has no function get_config')
  try:
    return module.get_config(argument) if argument else module.get_config()
  except ValueError as error:
    raise errors.InputError(f'--config={value}: {error}') from error


def _known_keys(config: Any, prefix: str) -> list[str]:
  import ml_collections  # Tools without a config do without it.

  keys = []
  for key, value in config.items():
    keys.append(f'{prefix}.{key}')
    if isinstance(value, ml_collections.ConfigDict):
      keys += _known_keys(value, f'{prefix}.{key}')
  return keys


def _unknown_key(key: str, known: Sequence[str]) -> errors.InputError:
  """Returns the error for a key, with the known ones of its section."""
  near = difflib.get_close_matches(key, known, n=1)
  section = (near[0] if near else key).rpartition('.')[0]
  beside = [k for k in known if k.rpartition('.')[0] == section]
  if not beside:
    beside = [k for k in known if k.count('.') == 1]
  return errors.unknown_name('config key', key, beside)


def check_overrides(argv: Sequence[str]) -> None:
  """Raises InputError for a `--config.key` that the config does not have."""
  value = next((a for a in argv if a.lstrip('-').startswith('config=')), None)
  if value is None:
    return
  known = _known_keys(load_config(value.partition('=')[2]), 'config')
  for argument in argv:
    name = argument.lstrip('-').partition('=')[0]
    # An index into a tuple is left to ml_collections.
    key = name.partition('[')[0]
    if argument.startswith('-') and key.startswith('config.'):
      if key not in known:
        raise _unknown_key(key, known)


def _parse(argv: Sequence[str]) -> list[str]:
  if any(a in ('--help', '-h', '-help', '--helpshort') for a in argv):
    app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
  try:
    # As two arguments, '--config path', too.
    flat = list(argv)
    for i in range(len(flat) - 1):
      if flat[i] in ('--config', '-config'):
        flat[i] = f'--config={flat[i + 1]}'
    check_overrides(flat)
    return flags.FLAGS(argv)
  except (errors.ReportedError, flags.Error) as error:
    fail(error)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    fail(f'a --config override cannot be used: {error}')


def refuse_arguments(arguments: Sequence[str]) -> None:
  """Raises InputError if there are arguments that are no flags."""
  if arguments:
    raise errors.InputError(
        f'unexpected argument {arguments[0]!r}; flags begin with --'
    )


def check_output(output: str) -> None:
  """Raises InputError if nothing can be written where --output says."""
  folder = os.path.dirname(output) or '.'
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise errors.InputError(
        f'--output={output}: cannot write in the folder {folder}: '
        f'{error.strerror}; make it, or give another --output'
    ) from error


def run(main: Callable[[list[str]], Any]) -> None:
  """Parses the flags and calls main.

  Args:
    main: takes the arguments that are no flags, without the program's name. A
      `ReportedError` that it raises is printed as one line.
  """

  def guarded(argv):
    try:
      main(argv[1:])
    except errors.ReportedError as error:
      fail(error)
    except OSError as error:
      if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise
      fail(f'{error.strerror}: {error.filename or "while writing"}')
    except KeyboardInterrupt:
      sys.exit('interrupted')

  app.run(guarded, flags_parser=_parse)
