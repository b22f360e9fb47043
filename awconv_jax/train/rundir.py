"""The directory of a run belongs to one config, saved beside its results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
from typing import Annotated, Any

import flax.traverse_util
import jax
import ml_collections
import pydantic

from awconv_jax import places, weights
from awconv_jax.errors import InputError, nearest, some
from awconv_jax.options import Bound, any_path
from awconv_jax.train import checkpoint, lease, processes, settings
from awconv_jax.weights import located
from awconv_jax.weights.located import CHECKPOINTS, CONFIG

CLASSES = 'classes.json'  # The names, in the order of labels.
CATEGORIES = 'categories.json'  # With the data set's numbers, if it has any.
UNREADABLE = 'unreadable.txt'  # Images that could not be read, one a line.
LOCK = '.lock'  # Held by who trains the run.
FINISHED = 'finished.json'  # Of a run that came to its end, see `finish`.

# What may differ when a run is continued: it changes where data lie or what is
# shown and kept when, but not one bit of the trained weights; or, as another
# number of devices, no more than rounding.
FREE_KEYS = {
    'shard_state',
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


# May grow, by which a run is extended.
LENGTH = 'num_epochs'


def place(workdir: str | os.PathLike) -> pathlib.Path:
  """Returns the whole path of a run's directory; InputError if none can be."""
  path = places.whole(any_path(workdir))
  checkpoint.check_place(path)
  return path


def commit() -> str | None:
  """Returns the commit of a checkout of this code; None of an installed one."""
  root = pathlib.Path(__file__).parents[2]
  if not (root / '.git').exists() or not shutil.which('git'):
    return None
  words = ['git', '-C', str(root), 'describe', '--always', '--dirty']
  words += ['--exclude=*', '--abbrev=40']
  done = subprocess.run(words, capture_output=True, text=True, check=False)
  return done.stdout.strip() or None


def made_by() -> dict[str, Any]:
  """Returns what a run's numbers depend on, beside its config.

  It is the same in all of its processes.
  """
  names = processes.LIBRARIES
  libraries = {name: importlib.metadata.version(name) for name in names}
  return {
      'commit': commit(),
      'code': processes.hash_of_code(),
      'version': importlib.import_module('awconv_jax').__version__,
      'device': jax.devices()[0].device_kind,
      'devices': jax.device_count(),
      'processes': jax.process_count(),
      'python': platform.python_version(),
  } | libraries


class Maker(pydantic.BaseModel, strict=True):
  """What is read of `made_by`."""

  commit: str | None
  code: str
  device: str
  devices: int
  jax: str
  python: str


class _Host(pydantic.BaseModel, strict=True):
  platform: str
  cores: int | None


class _Config(pydantic.BaseModel, strict=True):
  num_epochs: float


class _Finished(pydantic.BaseModel, strict=True):
  """What is read of `finish`."""

  metrics: dict[str, float]
  starts: Annotated[list[Maker], Bound(min_length=1)]
  host: _Host
  config: _Config
  parameters: int | None = None
  multiply_adds: int | None = None


def finish(
    workdir: pathlib.Path,
    config: ml_collections.ConfigDict,
    metrics: Mapping[str, float],
    **facts: Any,
) -> None:
  """Writes what is known of a run at its end, for `finished`.

  Args:
    workdir: of the run.
    config: of the run.
    metrics: of the last evaluation.
    **facts: further ones, as JSON can hold them.
  """
  told = {'metrics': dict(metrics), **facts}
  told['host'] = {'platform': platform.platform(), 'cores': os.cpu_count()}
  told['config'] = config.to_dict()
  write(workdir / FINISHED, json.dumps(told, indent=2) + '\n')


def finished(workdir: str | os.PathLike) -> dict[str, Any] | None:
  """Returns what `finish` wrote; None if there is nothing.

  Raises:
    InputError: it is damaged.
  """
  path = places.at(workdir) / FINISHED
  try:
    told = json.loads(path.read_text())
    _Finished.model_validate(told)
    return told
  except FileNotFoundError:
    return None
  except (ValueError, RecursionError) as error:
    raise InputError(
        f'{path} is damaged; take it away, and start the run again: it will '
        'evaluate, and write it anew'
    ) from error


def write(path: pathlib.Path, text: str) -> None:
  """Writes a file of a run: all of it or nothing.

  Raises:
    InputError: it cannot be written.
  """
  temporary = path.with_name(f'.{path.name}.tmp')
  try:
    if places.in_bucket(path):  # Where objects are written as a whole.
      path.write_text(text, encoding='utf-8')
      return
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    reason = f'{str(path)!r} cannot be written: {error.strerror or error}'
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = 'make room for it' if full else 'make its folder writable'
    raise InputError(f'{reason}; {remedy}') from error


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """Returns the config of a run, or of what describes itself; complete.

  Args:
    workdir: of the run; or what else `weights.locate` takes.

  Raises:
    InputError: there is none, or not that of the run's checkpoints.
  """
  workdir = weights.locate(workdir)
  if told := weights.describe(workdir):
    return settings.complete(told['config'])
  path = places.at(workdir) / CONFIG
  if not path.parent.exists():
    shipped = weights.shipped()
    raise InputError(
        f'{str(path.parent)!r} does not exist; which run is meant?'
        f'{nearest(workdir, shipped)} models by name: {", ".join(shipped)}'
    )
  if path.parent.is_file():
    raise InputError(f'{path.parent} {_of_file(path.parent)}')
  trained = []
  for record in checkpoint.records(path.parent / CHECKPOINTS):
    with contextlib.suppress(InputError):  # It may be damaged.
      trained.append(settings.complete(record['config']))
  held = None
  try:
    config = settings.complete(held := json.loads(path.read_text()))
  except OSError as error:
    fault = error.strerror or os.strerror(errno.ENOENT)
    reason = f'{fault}; weights without one need a config'
    if trained:
      reason = f'{fault}; the command that trained it writes it anew'
  except RecursionError:
    reason = 'it is nested too deeply'
  except (AttributeError, TypeError, ValueError) as error:
    reason = str(error).replace('\n', '; ')
    if isinstance(error, InputError) and 'cannot be imported' in reason:
      raise InputError(f'{path}: {reason}') from error
    if isinstance(held, dict) and 'sha256' in held:  # Of a model.
      raise InputError(
          f'{path.parent} has no {located.MODEL}; fetch it again'
      ) from error
  else:
    changes = [differences(there, config) for there in trained]
    if not all(changes) or not changes:
      return config
    reason = (
        f'it was changed after the checkpoints were written: {changes[-1]}; '
        'put the old values back'
    )
  raise InputError(f'{path} does not hold the config of a run: {reason}')


def _of_file(path: pathlib.Path) -> str:
  """Returns what is wrong with a file in the place of a run."""
  if path.suffix.lower() in weights.READERS:
    return (
        'has weights without a config; give one, such as '
        '--config=configs/imagenet.py:model=resnet50'
    )
  names = located.MODEL, CONFIG, CHECKPOINTS
  if any((path.parent / name).exists() for name in names):
    return f'is a file of a model or a run; give {path.parent}'
  return 'is neither a model nor a run'


def check_record(
    workdir: pathlib.Path,
    record: Mapping[str, Any] | None,
    config: Any,
    classes: Sequence[str],
) -> None:
  """Raises InputError if a checkpoint is of another config or other classes.

  Checkpoints that were written before there were records have None.
  """
  if record is None:
    read_config(workdir)
  elif changes := differences(settings.complete(record['config']), config):
    raise InputError(
        f'--workdir={str(workdir)!r} has checkpoints of another config: '
        f'{changes}; give another, or that config'
    )
  elif (kept := record.get('classes', [*classes])) != [*classes]:
    pairs = enumerate(zip(kept, classes, strict=False))
    label, pair = next((n, p) for n, p in pairs if p[0] != p[1])
    raise InputError(
        f'--workdir={str(workdir)!r} was trained on other classes than '
        f'{config.data.name!r} has: label {label} is {pair[0]!r} there and '
        f'{pair[1]!r} here'
    )


def check_own(
    workdir: str | os.PathLike, record: Mapping[str, Any] | None
) -> None:
  """Raises InputError if a checkpoint is not of the config beside it."""
  changes = ''
  with contextlib.suppress(InputError):  # There may be no config.
    if record is not None:
      there = settings.complete(record['config'])
      changes = differences(there, read_config(workdir))
  if changes:
    raise InputError(
        f'{str(workdir)!r} has a checkpoint of another run, put in its place: '
        f'{changes}; take it away'
    )


def differences(held: Any, given: Any) -> str:
  """Returns where two configs differ that a run may not, or ''."""
  empty = flax.traverse_util.empty_node
  held, given = (
      {
          name: {} if value is empty else value
          for name, value in flax.traverse_util.flatten_dict(
              c.to_dict(), True, sep='.'
          ).items()
      }
      for c in (held, given)
  )
  free = FREE_KEYS | {LENGTH} if given[LENGTH] > held[LENGTH] else FREE_KEYS
  changes = [
      f'config.{key} is {there!r} there and {here!r} here'
      for key in sorted((held.keys() | given.keys()) - free)
      if (there := held.get(key, 'absent'))
      != (here := given.get(key, 'absent'))
  ]
  return some(changes, 3, '; ')


def check_owner(workdir: pathlib.Path, config: Any) -> None:
  """Raises InputError if a directory has a run that is not of this config."""
  held = checkpoint.steps_in(workdir / CHECKPOINTS)
  if held and (workdir / CONFIG).exists():
    if changes := differences(read_config(workdir), config):
      raise InputError(
          f'--workdir={str(workdir)!r} belongs to a run with another '
          f'config: {changes}; give another, or that config'
      )


def is_free(workdir: pathlib.Path) -> bool:
  """Returns whether no process of this machine has `claim`ed a directory."""
  try:
    with (workdir / LOCK).open() as lock:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except FileNotFoundError:
    pass
  return True


@contextlib.contextmanager
def claim(
    workdir: pathlib.Path,
    config: Any,
    report: Callable[[str], object] = print,
) -> Iterator[Callable[[], object]]:
  """Has a directory for this run alone.

  One without any checkpoint holds nothing to continue, and takes any config.
  With several processes, the first does all this, and all of them call it.
  Of a run that leaves nothing, nothing stays. `report` is that of `lease.held`.

  Yields:
    What raises InputError if another run took the directory meanwhile, as only
    one in a bucket can be.

  Raises:
    InputError: it cannot be written, or has another run or another config.
  """
  path, directory = workdir / LOCK, workdir / CHECKPOINTS
  if (workdir / located.MODEL).exists():
    raise InputError(
        f'--workdir={str(workdir)!r} holds a model; give another, and the '
        'model as --config.init_from to start from it'
    )
  made, checks = [], []
  with contextlib.ExitStack() as stack:

    def take():
      if jax.process_index() != 0:
        return
      if places.in_bucket(workdir):
        try:
          checks.append(stack.enter_context(lease.held(path, report)))
        except InputError as error:
          reason = f'--workdir={str(workdir)!r} {error}; give another'
          raise InputError(reason) from error
      else:
        lock_file()
      check_owner(workdir, config)

    def lock_file():
      try:
        folders = directory, workdir, *workdir.parents
        made.extend(folder for folder in folders if not folder.exists())
        workdir.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context(path.open('w'))
        # It also ends with the process.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_nlink == 0:  # Another has just ended.
          raise BlockingIOError
      except OSError as error:
        why = f'cannot be written: {error.strerror}'
        if isinstance(error, BlockingIOError):
          why = 'has another run under way'
        raise InputError(
            f'--workdir={str(workdir)!r} {why}; give another'
        ) from error
      stack.callback(leave)

    def leave():
      with contextlib.suppress(OSError):  # It may have gone, or not be empty.
        path.unlink()
        for folder in made:
          with contextlib.suppress(FileNotFoundError):  # Not made after all.
            folder.rmdir()

    take()
    processes.agree()  # No other looks into it before.
    yield lambda: checks and checks[0]()


def write_config(
    workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Writes what `read_config` reads."""
  write(workdir / CONFIG, json.dumps(config.to_dict(), indent=2) + '\n')


def write_classes(
    workdir: pathlib.Path,
    names: Sequence[str],
    category_ids: Sequence[int] | None,
) -> None:
  """Writes what labels stand for: names, and the data set's numbers of them."""
  write(workdir / CLASSES, json.dumps(list(names)) + '\n')
  if category_ids is not None:
    pairs = zip(category_ids, names, strict=True)
    rows = [{'id': int(number), 'name': name} for number, name in pairs]
    write(workdir / CATEGORIES, json.dumps(rows) + '\n')
