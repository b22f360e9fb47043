"""Where files lie: on a disk of this machine, or in a bucket (`gs://...`).

`at` returns paths of either with the methods of `pathlib.Path`. An object of a
bucket appears as a whole or not at all, as a file does that replaces another;
but there are no folders, nothing is renamed, and nothing is appended to. What
this takes is here, and in `train.lease`, as there are no locks, either.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import os
import pathlib
import re
import shutil
import tempfile
import time
from typing import Any

from awconv_jax.errors import InputError, first_line, unknown_name

_BLOCK = 1 << 24  # So much is copied at a time.


def in_bucket(path: str | os.PathLike) -> bool:
  """Returns whether a path is that of a bucket."""
  return os.fspath(path).startswith('gs://')


@functools.cache
def _open_buckets() -> None:
  try:
    import fsspec
    import gcsfs  # noqa: F401
  except ImportError as error:
    raise InputError(
        f"gs:// needs {error.name!r}: pip install 'awconv_jax[gcs]'"
    ) from error
  # A listing would be kept for ever, and other processes write, too.
  for name in ('gs', 'gcs'):
    fsspec.config.conf.setdefault(name, {})['use_listings_cache'] = False
  # Or, where it is installed, TensorFlow's readers, with other errors.
  os.environ.setdefault('EPATH_USE_TF', 'false')


def at(path: str | os.PathLike) -> pathlib.Path:
  """Returns a path of either kind; InputError if buckets cannot be read."""
  if not in_bucket(path):
    return pathlib.Path(path)
  _open_buckets()
  from etils import epath

  there: Any = epath.Path(path)
  return there


def whole(path: str | os.PathLike) -> pathlib.Path:
  """Returns the absolute path; see `at`."""
  return at(path) if in_bucket(path) else at(path).absolute()


def stamp(path: str | os.PathLike) -> tuple[int, int]:
  """Returns a file's size, and when it was last written."""
  found: Any = at(path).stat()
  if in_bucket(path):
    return found.length, found.mtime
  return found.st_size, found.st_mtime_ns


def move(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Moves a folder to a name that is free; in a bucket, object by object."""
  if not in_bucket(folder):
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return
  import fsspec

  files: Any = fsspec.filesystem('gcs')
  names, root = files.find(str(folder)), str(folder).removeprefix('gs://')
  # All is there twice before anything goes.
  for name in names:
    files.cp_file(name, f'{target}{name.removeprefix(root)}')
  files.rm(names)


def suffix_to_write(path: str | os.PathLike, known: Sequence[str]) -> str:
  """Returns the suffix of a file to write, one of these; '' of a directory.

  It may be in capitals. What begins with a digit, as in models/v1.5, is none.

  Raises:
    InputError: it is another, and there is no directory of that name.
  """
  path = at(path)
  suffix = path.suffix.lower()
  if not re.fullmatch('[.][a-z][a-z0-9]*', suffix) or path.is_dir():
    return ''
  if suffix not in known:
    names = *known, 'none (a directory)'
    raise unknown_name(f'suffix of {str(path)!r}:', path.suffix, names)
  return suffix


@contextlib.contextmanager
def _on_disk(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives the path itself, or one of its name in a folder that then goes."""
  if not in_bucket(path):
    yield pathlib.Path(path)
    return
  name = at(path).name
  with tempfile.TemporaryDirectory(prefix='awconv_jax_') as folder:
    yield pathlib.Path(folder) / name


@contextlib.contextmanager
def for_reading(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a file of this machine: itself, or a copy of what is in a bucket."""
  with _on_disk(path) as file:
    if in_bucket(path):
      _copy(at(path), file)
    yield file


@contextlib.contextmanager
def for_writing(
    path: str | os.PathLike, replaces: bool = True
) -> Iterator[pathlib.Path]:
  """Gives a file of this machine to write, which then takes the path's place.

  If the block raises, what was there before stays. Without `replaces` the file
  is the path itself, unless that is in a bucket.
  """
  with _on_disk(path) as file:
    if in_bucket(path):
      yield file
      _copy(file, at(path))
    elif (
        not replaces
        or file.is_symlink()  # What it points to is meant.
        or (file.exists() and not file.is_file())  # Of /dev, say.
    ):
      yield file
    else:
      # Its suffix gives the format.
      temporary = file.with_name(f'.{file.stem}.tmp{file.suffix}')
      try:
        yield temporary
        temporary.replace(file)
      finally:
        temporary.unlink(missing_ok=True)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
  with source.open('rb') as file, target.open('wb') as there:
    shutil.copyfileobj(file, there, _BLOCK)


class Growing(contextlib.AbstractContextManager):
  """A folder whose files grow: itself, or a copy that is uploaded at times.

  Attributes:
    path: where the files are to be written, a folder of this machine.
  """

  def __init__(self, folder: pathlib.Path, names: Sequence[str] = ()):
    """Takes over these files of the folder, where they are there."""
    self._folder, self._temporary = folder, None
    self.path = folder
    self._uploaded: dict[pathlib.Path, Any] = {}
    self._since = time.monotonic()
    if in_bucket(folder):
      self._temporary = tempfile.TemporaryDirectory(prefix='awconv_jax_')
      self.path = pathlib.Path(self._temporary.name)
      for name in names:
        if (folder / name).exists():
          (self.path / name).write_bytes((folder / name).read_bytes())

  def sync(self, seconds: float = 0.0) -> None:
    """Uploads what has changed, if the last time is so many seconds ago.

    Raises:
      InputError: the bucket does not take them, not after retries either.
    """
    if self._temporary is None or time.monotonic() - self._since < seconds:
      return
    for file in sorted(p for p in self.path.rglob('*') if p.is_file()):
      now = file.stat().st_size, file.stat().st_mtime_ns
      if self._uploaded.get(file) != now:
        target = self._folder / str(file.relative_to(self.path))
        try:
          _copy(file, target)
        except Exception as error:  # Of gcsfs, of aiohttp, of google.auth.
          reason = f'{target} cannot be written: {first_line(error)}'
          raise InputError(reason) from error
        self._uploaded[file] = now
    self._since = time.monotonic()

  def __exit__(self, *exception) -> None:
    """Removes the copy."""
    if self._temporary is not None:
      self._temporary.cleanup()
