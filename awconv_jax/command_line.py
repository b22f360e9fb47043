"""Starts train.py and the tools: a user's mistake is one line, exit code 1."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import errno
import functools
import io
import os
import pathlib
import re
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from typing import Any, NoReturn

from absl import app, flags, logging

from awconv_jax import errors, options, places

TRAIN = 'awconv-train'  # What train.py is called where it is installed.
# A link in the repository, and a directory where it is installed.
_SHIPPED = pathlib.Path(__file__).parent / 'configs'


def fail(message: object) -> NoReturn:
  """Ends the program with exit code 1, and the lines on standard error."""
  sys.exit('\n'.join(f'error: {line}' for line in str(message).split('\n')))


def define_config(text: str) -> None:
  """Defines `--config`, with a text for --help, and `--config.<path>=`."""
  flags.disclaim_key_flags()  # It is the program's that calls this.
  text += ' Its options are overridden one by one: --config.seed=1.'
  flags.DEFINE_string('config', None, text)


class _AnyPath(flags.ArgumentParser):
  """Parses what `options.any_path` takes."""

  def parse(self, argument: str) -> str:
    return options.any_path(argument)


def define_path(
    name: str, text: str, default: str | None = None, **kwargs: Any
) -> flags.FlagHolder:
  """Defines a flag that is a path on this machine, or in a bucket."""
  flags.disclaim_key_flags()  # It is the program's that calls this.
  serializer = flags.ArgumentSerializer()
  return flags.DEFINE(
      _AnyPath(), name, default, text, serializer=serializer, **kwargs
  )


def given(*names: str) -> dict[str, Any]:
  """Returns those of these flags that there are and that are not None."""
  values = flags.FLAGS.flag_values_dict()
  found = {n: values[n] for n in names if values.get(n) is not None}
  return {n: v for n, v in found.items() if str(v).lower() not in options.NONE}


def read_config(default: Callable[[], Any] | None = None) -> Any:
  """Returns the complete `ConfigDict` that the flags say, or None.

  Args:
    default: gives a config in place of `--config`, to be overridden alike.

  Raises:
    InputError: the file or an override cannot be used.
  """
  from awconv_jax.train import settings  # Takes its time to import.

  value = flags.FLAGS.config
  values = flags.FLAGS.flag_values_dict().items()
  texts = {k: v for k, v in values if k.startswith('config.')}
  overrides = {k: v for k, v in texts.items() if v is not None}
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
  import ml_collections  # Takes its time to import, as the other.

  from awconv_jax import config

  path, _, text = value.partition(':')
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    folder, name = os.path.split(path.removesuffix('.py'))
    shipped = {p.stem: str(p) for p in _SHIPPED.glob('*[!_].py')}
    # Its name, or its path in a clone of the repository, where that is not.
    if folder not in ('', 'configs') or name not in shipped:
      beside = map(str, pathlib.Path(folder or '.').glob('*[!_].py'))
      known = {'': shipped, 'configs': [f'configs/{n}.py' for n in shipped]}
      known = dict.fromkeys((*known.get(folder, ()), *beside))
      raise errors.unknown_name('config file', path, known)
    path = shipped[name]
  try:
    function = runpy.run_path(path, run_name='config').get('get_config')
    if not callable(function):
      raise errors.InputError(f'--config={path!r} has no function get_config')
    made = function(**config.arguments(text, function))
  except errors.ReportedError:
    raise
  except (Exception, SystemExit) as error:  # It is the user's own program.
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise errors.InputError(
        f'--config={value!r} cannot be read: {reason}'
    ) from error
  if not isinstance(made, (Mapping, ml_collections.ConfigDict)):
    raise errors.InputError(
        f'--config={value!r}: get_config returned {errors.quoted(made)}, want '
        'a dict of options, or what settings.complete makes of one'
    )
  return made


def python() -> str:
  """Returns what starts this Python in the user's shell."""
  return found(sys.executable, 'python')


def tools() -> str:
  """Returns what starts a tool in the user's shell, up to the tool's name."""
  home = str(pathlib.Path(__file__).resolve().parent.parent)
  # train.py is started from elsewhere, and Python may know of no other package.
  beside = os.path.abspath(sys.path[0]) == home != os.getcwd()
  where = f'PYTHONPATH={shlex.quote(home)}:"$PYTHONPATH" ' * beside
  return f'{where}{python()} -m awconv_jax.tools.'


def found(program: str, *names: str) -> str:
  """Returns a program's name if a shell finds it by that, or else its path.

  Args:
    program: its path.
    names: to try before its own.
  """
  for name in (*names, os.path.basename(program)):
    there = shutil.which(name)
    if there and os.path.abspath(there) == os.path.abspath(program):
      return name
  near = os.path.relpath(program)
  return shlex.quote(program if near.startswith('..') else near)


def _parse(argv: Sequence[str]) -> list[str]:
  if any(a in ('--help', '-h', '-help', '--helpshort') for a in argv):
    with reported():
      app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
  if 'config' in flags.FLAGS:
    # Which of them exist is seen once the config is there.
    names = (a.lstrip('-').partition('=')[0] for a in argv if a[:1] == '-')
    for name in set(names):
      if name.startswith('config.') and name not in flags.FLAGS:
        flags.DEFINE_string(name, None, 'An option of the config.')
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    fail(_unknown_flag(error.flagname))
  except flags.Error as error:
    line = re.sub(r'flag (--\w+)=None: .*', r'\1=... is wanted', str(error))
    value = r'flag (--\w+)=(.*?): (.*)'
    fail(re.sub(value, lambda m: f'{m[1]}={m[2]!r}: {m[3]}', line, flags=re.S))


def _unknown_flag(name: str) -> errors.InputError:
  """Returns an error on a flag that there is not, or not by that name."""
  key_flags = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
  known = sorted(flag.name for flag in key_flags)
  ours = []
  if 'config' in known:
    from awconv_jax.train import settings

    ours = [f'config.{n}' for n in options.options_of(settings.Settings)]
  # A hint may be an option of the config, of which there are many to list.
  hint, listed = errors.nearest(name, known + ours), ', '.join(known)
  more = ', also on --config.<option>' * bool(ours)
  return errors.InputError(
      f'unknown flag {name!r}{hint}; known: {listed}; see --help{more}'
  )


def check_output(output: str) -> None:
  """Raises InputError if nothing can be written where --output says."""
  try:
    if places.in_bucket(output):
      test = places.at(f'{output}.tmp')
      test.write_text('')
      return test.unlink()
    if os.path.isdir(output):
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    tempfile.TemporaryFile(dir=os.path.dirname(output) or '.').close()
  except OSError as error:
    raise errors.InputError(
        f'--output={output!r}: {error.strerror or error}; name another place'
    ) from error


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
  """Has SIGTERM raise, so that `finally` is done; the exit code is 143."""
  code = 128 + signal.SIGTERM
  before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def run(main: Callable[..., Any], *, positional: bool = False) -> None:
  """Parses the flags and calls main.

  Args:
    main: what may raise a `ReportedError`, which is printed as one line.
    positional: main takes a list of the arguments that are no flags.
  """

  def guarded(argv):
    if argv[1:] and not positional:
      fail(f'unexpected argument {argv[1]!r}; flags begin with --')
    # Orbax tells of every step, and by tracebacks of what it raises, too.
    logging.set_verbosity(logging.FATAL)
    # Modules of the user's own, such as a layer's; last, so as to hide nothing.
    if not {'', os.getcwd()} & {*sys.path}:
      sys.path.append(os.getcwd())
    if sys.stdout is None:  # As of `>&-`.
      sys.stdout = open(os.devnull, 'w')
    if isinstance(sys.stdout, io.TextIOWrapper):
      # Names of files and classes may have what a terminal does not take.
      sys.stdout.reconfigure(errors='backslashreplace')
    with reported():
      main(argv[1:]) if positional else main()
      sys.stdout.flush()  # Or Python itself would tell that nobody reads.

  app.run(guarded, flags_parser=_parse)


@contextlib.contextmanager
def reported() -> Iterator[None]:
  """Ends the program in one line for what is no defect of ours."""
  sys.unraisablehook = functools.partial(_interrupt_again, sys.unraisablehook)
  try:
    if callable(signal.getsignal(signal.SIGINT)):  # As it was for the imports.
      signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
  except KeyboardInterrupt:
    sys.exit('interrupted')
  except Exception as error:
    line = errors.reported(error)
    if line is None:
      raise
    silence_output()
    fail(line)


def _interrupt_again(hook: Callable[[Any], object], fault: Any) -> None:
  """Hands on what Python cannot raise; sends Ctrl-C again a little later.

  Where it meets a callback of the garbage collector, of which JAX has one, it
  would be lost.
  """
  if fault.exc_type is KeyboardInterrupt:
    again = os.getpid(), signal.SIGINT
    threading.Timer(0.1, os.kill, again).start()
  else:
    hook(fault)


def silence_output() -> None:
  """Has standard output lead nowhere if it takes no more, as of `| head`."""
  try:
    sys.stdout.flush()
  except OSError:
    # The descriptor, as there may be text that waits for it.
    with open(os.devnull, 'w') as nowhere:
      os.dup2(nowhere.fileno(), sys.stdout.fileno())
