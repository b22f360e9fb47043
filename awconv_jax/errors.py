"""Errors whose message is the whole story: one line, shown without traceback.

`train.py` and the tools print a `ReportedError`, and the system's refusal of a
file or a place, as one line and exit with 1; every other exception is a defect
of ours and keeps its traceback.
"""

from collections.abc import Iterable, Mapping
import difflib
import errno
import os
import sys
from typing import Any

# The system's word on a file or a place that was given, and on itself; neither
# are faults of ours.
_OF_THE_PLACE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EPIPE, errno.EIO, errno.ESTALE),
)
_OF_THE_SYSTEM = {
    errno.EMFILE: '; raise `ulimit -n`',
    errno.ENFILE: '; close programs that hold many',
    errno.ENOMEM: '; make the batches, the images or the network smaller',
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
        '; the disk, or the way to it, is at fault',
    ),
}
# Packages of what buckets are read with: their errors, after retries.
_OF_BUCKETS = 'gcsfs', 'aiohttp', 'google'


class ReportedError(Exception):
  """Says what is wrong, where, and what to do about it, in one line each."""

  def __init__(self, *lines: str):
    # A name that holds the end of a line makes no further line.
    super().__init__('\n'.join(map(one_line, lines)))


class InputError(ReportedError, ValueError):
  """A config value, file or argument that cannot be used as given."""


class DivergenceError(ReportedError, FloatingPointError):
  """The loss, the gradients or the parameters are no longer finite."""


def one_line(text: str | bytes) -> str:
  """Returns text that others chose, such as a file's name, for a message.

  What is not printable, such as the end of a line, is escaped, and so are bytes
  that are not UTF-8.
  """
  if isinstance(text, bytes):
    text = text.decode('utf-8', 'surrogateescape')
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: BaseException, most: int = 200) -> str:
  """Returns the first line of what an error of others says, or its name."""
  return (str(error) or repr(error)).splitlines()[0][:most]


def of_the_system(error: BaseException) -> bool:
  """Returns whether an error says nothing of the file that was asked for."""
  ours = isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM
  return ours or isinstance(error, MemoryError)


def reported(error: BaseException) -> str | None:
  """Returns what to tell of an error, or None if it is a defect of ours."""
  if isinstance(error, ReportedError):
    return str(error)
  known = {**dict.fromkeys(_OF_THE_PLACE, ''), **_OF_THE_SYSTEM}
  if isinstance(error, OSError) and error.errno in known:
    place = repr(error.filename) if error.filename else 'while writing'
    return f'{error.strerror}: {place}{known[error.errno]}'
  reason = ' '.join(str(error).split())
  if type(error).__module__.partition('.')[0] in _OF_BUCKETS:
    return f'the bucket, or the way to it: {reason[:300] or repr(error)}'
  if isinstance(error, RuntimeError) and 'initialize backend' in reason:
    return reason  # There is no such device; it says what to do.
  if isinstance(error, AssertionError) and 'jax' in sys.modules:
    try:  # Of CUDA without a GPU, JAX says no more than that.
      sys.modules['jax'].devices()
    except AssertionError:
      wanted = os.environ.get('JAX_PLATFORMS')
      return f'there is no device of JAX_PLATFORMS={wanted!r}'
  memory = isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' in reason
  if memory or isinstance(error, MemoryError):  # The former is that of XLA.
    remedy = 'make the batches, the images or the network smaller'
    return f'out of memory: {reason[:200]}; {remedy}'
  return None


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
  """Returns an error with the nearest known name, and all of them.

  Args:
    kind: what is named, such as 'model'.
    name: the name given.
    known: all names that would have been accepted.
  """
  known = sorted(known)
  hint, listed = nearest(name, known), ', '.join(known)
  return InputError(f'unknown {kind} {quoted(name)}{hint}; known: {listed}')


def look_up(kind: str, name: str, registry: Mapping[str, Any]) -> Any:
  """Returns the entry of a registry called `name`.

  Raises:
    InputError: there is none; see `unknown_name`.
  """
  if name not in registry:
    raise unknown_name(kind, name, registry)
  return registry[name]


def unnamed(path: str, options: Mapping[str, Any], by: str) -> InputError:
  """Returns an error on options of what `by` should name, but it is None."""
  return InputError(f'{path}={dict(options)} needs {by}, which is None')


def some(parts: Iterable[str], most: int = 10, separator: str = ', ') -> str:
  """Returns the first of many names or faults, and how many more there are."""
  parts = list(parts)
  more = [f'and {len(parts) - most} more'] * (len(parts) > most)
  return separator.join(parts[:most] + more)


def quoted(value: object, most: int = 200) -> str:
  """Returns a value as Python writes it, cut where it is very long."""
  text = repr(value)
  return text if len(text) <= most else f'{text[:most]}...'


def nearest(name: object, known: Iterable[str]) -> str:
  """Returns ' (did you mean ...?)' with the nearest known names, or ''."""
  return did_you_mean(nearest_of(name, known))


def nearest_of(name: object, known: Iterable[str]) -> list[str]:
  """Returns the known names that are nearest, several if equally so; or []."""
  name, most = str(name), 0.6
  found: list[str] = []
  for one in dict.fromkeys(known):
    score = difflib.SequenceMatcher(None, one, name).ratio()
    if score > most:
      found, most = [], score
    if score == most:
      found.append(one)
  return found


def did_you_mean(names: Iterable[str]) -> str:
  """Returns ' (did you mean ...?)', or '' for no names."""
  listed = ' or '.join(repr(name) for name in dict.fromkeys(names))
  return f' (did you mean {listed}?)' if listed else ''
