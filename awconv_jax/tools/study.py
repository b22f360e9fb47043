"""A study: variants of a config, each trained with several seeds.

Its file, in TOML, has a config, changes to it by name, and the seeds; see
configs/studies. Runs lie in <workdir>/<variant>/seed<k>, and are runs like any
other; `study_runner` trains them.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import copy
import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
import re
import tomllib
from typing import Annotated, Any, NamedTuple
import unicodedata

from awconv_jax import command_line
from awconv_jax import config as engine
from awconv_jax.errors import InputError, look_up, one_line
from awconv_jax.options import Bound, Check, PositiveInt, Seed, local_path
from awconv_jax.train import rundir, settings

# What a name of a variant may be, as it is that of a folder, too. --only parts
# names at commas.
_NAME = re.compile(r'(?!results\.|curves\.|times\.)\w[\w +.=()-]{,99}(?<! )')


def _seeds(given: int | tuple[int, ...]) -> int | tuple[int, ...]:
  if isinstance(given, int):
    if given > 1000:
      raise ValueError(f'is how many; to name one, want a list: [{given}]')
  elif not given or len(set(given)) < len(given):
    raise ValueError('must name one at least, and none twice')
  return given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """What the file of a study holds.

  Attributes:
    config: of all runs, as --config takes it.
    metric: of the evaluation, such as 'top1'.
    baseline: name of the variant that the others are compared with.
    seeds: how many, from 0 on; or which.
    variants: changes to the config, by the name of a variant.
    overrides: changes to the config for all of them.
  """

  config: str
  metric: str
  baseline: str
  seeds: Annotated[PositiveInt | tuple[Seed, ...], Check(_seeds)]
  variants: Annotated[Mapping[str, Any], Bound(min_length=1)]
  overrides: Mapping[str, Any] | None = None

  def all_seeds(self) -> tuple[int, ...]:
    """Returns the seeds."""
    if isinstance(self.seeds, int):
      return tuple(range(self.seeds))
    return tuple(self.seeds)


class Run(NamedTuple):
  """One run of a study: where it lies, and its config.

  `flags` are those of train.py.
  """

  variant: str
  seed: int
  path: pathlib.Path
  config: Any
  flags: tuple[str, ...]

  def __str__(self) -> str:
    return f'{self.variant}, seed {self.seed}'


def read(path: str) -> Study:
  """Reads the file of a study.

  Raises:
    InputError: it cannot be read, or holds something else; in one line each.
  """
  try:
    text = pathlib.Path(local_path(path)).read_text(encoding='utf-8-sig')
    held = tomllib.loads(text)
  except (OSError, ValueError, RecursionError) as error:
    reason = getattr(error, 'strerror', None) or one_line(str(error))
    raise InputError(f'--study={path!r} cannot be read: {reason}') from error
  with _named(f'--study={path!r}'):
    study = Study(**engine.filled(held, Study, name='study'))
    for name in study.variants:
      if not _NAME.fullmatch(name) or len(name.encode()) > 255:
        raise InputError(
            f'no variant can be called {name!r}; take letters, digits, spaces '
            'and +.=()-, at most 100 (255 bytes), no space at the ends, and '
            'not the name of a file of results'
        )
    folders = {}  # As disks see it that tell no capitals from others.
    for name in study.variants:
      folder = unicodedata.normalize('NFC', name).casefold()
      if (other := folders.setdefault(folder, name)) != name:
        raise InputError(
            f'the variants {other!r} and {name!r} would have one folder'
        )
    look_up('variant', study.baseline, study.variants)
  return study


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
  """Has errors say in each line what they are of."""
  try:
    yield
  except InputError as error:
    lines = (f'{name}: {line}' for line in str(error).split('\n'))
    raise InputError(*lines) from error


def runs(study: Study, workdir: str | os.PathLike) -> list[Run]:
  """Returns the runs of a study: all variants of a seed, then of the next.

  Raises:
    InputError: a variant cannot be, or is the same as another.
  """
  made, names, given = {}, {}, command_line.load_config(study.config)
  for name, changes in study.variants.items():
    with _named(f'variant {name!r}'):
      texts = _texts(study.overrides or {}, 'overrides') | _texts(changes, name)
      if 'config.seed' in texts:
        raise InputError('config.seed is set by study.seeds')
      config = settings.complete(given, texts)
      settings.create_task(config)  # Or it would fail hours later, alone.
      held = json.dumps(config.to_dict(), sort_keys=True)
      if (same := names.setdefault(held, name)) != name:
        raise InputError(f'it is the same as {same!r}')
    made[name] = config, texts
  found = []
  for seed in study.all_seeds():
    for name, (config, texts) in made.items():
      config = copy.deepcopy(config)
      with config.unlocked():
        config.seed = seed
      path = pathlib.Path(workdir) / name / f'seed{seed}'
      flags = [f'--config={study.config}', f'--workdir={path}']
      flags += [f'--{key}={text}' for key, text in texts.items()]
      flags += [f'--config.seed={seed}']
      found.append(Run(name, seed, path, config, tuple(flags)))
  return found


def chosen(
    every: Sequence[Run], only: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[Run]:
  """Returns the runs of these variants and seeds, in the order of both.

  Args:
    every: as of `runs`.
    only: names of variants; all if there are none.
    seeds: all if there are none.

  Raises:
    InputError: the study has no such variant, or no such seed.
  """
  variants = dict.fromkeys(run.variant for run in every)
  known = dict.fromkeys(run.seed for run in every)
  for name in only:
    look_up('variant', name, variants)
  for seed in seeds:
    if seed not in known:
      raise InputError(f'--seeds: {seed} is none of {tuple(known)}')
  found = {(run.seed, run.variant): run for run in every}
  wanted = itertools.product(
      dict.fromkeys(seeds or known), dict.fromkeys(only or variants)
  )
  return [found[pair] for pair in wanted]


def _texts(changes: Any, name: str, path: str = 'config') -> dict[str, str]:
  """Returns changes by their paths, as the command line has them."""
  if not isinstance(changes, Mapping):
    raise InputError(f'{name} is a table of options, not {changes!r}')
  texts = {}
  for key, value in changes.items():
    here = f'{path}.{key}'
    if isinstance(value, Mapping):
      found = _texts(value, name, here)
    else:
      found = {here: value if isinstance(value, str) else repr(value)}
    if twice := texts.keys() & found:
      raise InputError(f'{min(twice)} is set twice in {name}')
    texts |= found
  return texts


def is_finished(run: Run) -> bool:
  """Returns whether a run came to its end.

  Raises:
    InputError: its directory has one of another config.
  """
  told = rundir.finished(run.path)
  if told is None:
    rundir.check_owner(run.path, run.config)
    return False
  with _named(f'{run.path}/{rundir.FINISHED}'):
    held = settings.complete(told['config'])
  if changes := rundir.differences(held, run.config):
    raise InputError(
        f'{str(run.path)!r} was trained with another config: {changes}; give '
        'another --workdir, or that config, or take the run away'
    )
  return held.num_epochs == run.config.num_epochs


def made(workdir: str | os.PathLike) -> pathlib.Path:
  """Makes a directory for results; InputError if that cannot be."""
  path = pathlib.Path(workdir)
  with _writing(workdir):
    path.mkdir(parents=True, exist_ok=True)
  return path


@contextlib.contextmanager
def _writing(workdir: str | os.PathLike) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    reason = f'cannot be written: {error.strerror}; give another'
    raise InputError(f'--workdir={str(workdir)!r} {reason}') from error


@contextlib.contextmanager
def claimed(workdir: str | os.PathLike) -> Iterator[None]:
  """Has the directory of a study for this process alone.

  Raises:
    InputError: it cannot be written, or another process has it.
  """
  path = made(workdir) / rundir.LOCK
  with _writing(workdir):
    lock = path.open('w')
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Ends with the process.
    except BlockingIOError as error:
      raise InputError(
          f'--workdir={str(workdir)!r} has another `compare` under way; wait '
          'for it, or stop it'
      ) from error
    yield
