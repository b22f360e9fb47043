"""Starts train.py and the tools: a user's mistake is one line, exit code 1."""

from collections.abc import Callable, Sequence
import errno
import os
import pathlib
import re
import runpy
import sys
import tempfile
from typing import Any, NoReturn

from absl import app, flags

from awconv_jax import errors

# The system's word on a file or a place that was given, not faults of ours.
_OF_THE_PLACE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
)


def fail(message: object) -> NoReturn:
  """Ends the program with exit code 1, and the lines on standard error."""
  sys.exit('\n'.join(f'error: {line}' for line in str(message).splitlines()))


def define_config(text: str) -> None:
  """Defines `--config`, with a text for --help, and `--config.<path>=`."""
  flags.disclaim_key_flags()  # It is the program's that calls this.
  text += ' Its options are overridden one by one: --config.seed=1.'
  flags.DEFINE_string('config', None, text)


def given(*names: str) -> dict[str, Any]:
  """Returns those of these flags that there are and that are not None."""
  values = flags.FLAGS.flag_values_dict()
  return {name: values[name] for name in names if values.get(name) is not None}


def read_config(default: Callable[[], Any] | None = None) -> Any:
  """Returns the complete `ConfigDict` that the flags say, or None.

  Args:
    default: gives a config in place of `--config`, to be overridden alike.

  Raises:
    InputError: the file or an override cannot be used.
  """
  from awconv_jax.train import settings  # Takes its time to import.

  value = flags.FLAGS.config
  overrides = given(*(n for n in flags.FLAGS if n.startswith('config.')))
  if value is not None:
    return settings.complete(load_config(value), overrides)
  if default is not None:
    return settings.complete(default(), overrides)
  if overrides:
    raise errors.InputError(f'--{min(overrides)} needs --config')
  return None


def load_config(value: str) -> Any:
  """Returns the `ConfigDict` of '--config=path.py:arguments'.

  Args:
    value: path of a config file, with keyword arguments of its `get_config`
      after a colon, if any.

  Raises:
    InputError: no such file, one that fails, or wrong arguments.
  """
  from awconv_jax import config  # Takes its time to import.

  path, _, text = value.partition(':')
  if not os.path.isfile(path):
    folder = pathlib.Path(os.path.dirname(path) or 'configs')
    known = map(str, folder.glob('*[!_].py'))
    raise errors.unknown_name('config file', path, known)
  try:
    function = runpy.run_path(path, run_name='config').get('get_config')
    if function is None:
      raise errors.InputError(f'{path} has no function get_config')
    return function(**config.arguments(text, function))
  except errors.ReportedError:
    raise
  except Exception as error:  # It is the user's own program.
    raise errors.InputError(
        f'--config={value} cannot be read: {type(error).__name__}: {error}'
    ) from error


def _parse(argv: Sequence[str]) -> list[str]:
  if any(a in ('--help', '-h', '-help', '--helpshort') for a in argv):
    app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
  if 'config' in flags.FLAGS:
    # Which of them exist is seen once the config is there.
    names = (a.lstrip('-').partition('=')[0] for a in argv if a[:1] == '-')
    for name in set(names):
      if name.startswith('config.') and name not in flags.FLAGS:
        flags.DEFINE_string(name, None, 'An option of the config.')
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    fail(re.sub(r'flag (--\w+)=None: .*', r'\1=... is wanted', str(error)))


def check_output(output: str) -> None:
  """Raises InputError if nothing can be written where --output says."""
  try:
    tempfile.TemporaryFile(dir=os.path.dirname(output) or '.').close()
  except OSError as error:
    raise errors.InputError(
        f'--output={output}: {error.strerror}; name a place that can be written'
    ) from error


def run(main: Callable[..., Any], *, positional: bool = False) -> None:
  """Parses the flags and calls main.

  Args:
    main: what may raise a `ReportedError`, which is printed as one line.
    positional: main takes a list of the arguments that are no flags.
  """

  def guarded(argv):
    if argv[1:] and not positional:
      fail(f'unexpected argument {argv[1]!r}; flags begin with --')
    try:
      main(argv[1:]) if positional else main()
    except errors.ReportedError as error:
      fail(error)
    except OSError as error:
      if error.errno not in _OF_THE_PLACE:
        raise
      fail(f'{error.strerror}: {error.filename or "while writing"}')
    except KeyboardInterrupt:
      sys.exit('interrupted')

  app.run(guarded, flags_parser=_parse)
