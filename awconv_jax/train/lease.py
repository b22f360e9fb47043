"""The lock of a run's directory in a bucket: `<workdir>/.lock`.

It is an object that says whose it is, written only where there was none, or
over what was read just before: the bucket compares generations. The owner
renews it every `RENEWED` seconds. One that is not renewed for `STALE` seconds
is that of a run that is gone, and is taken over; no clocks are compared. Where
the owner was a process of this machine it is seen at once whether it lives.
"""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any
import urllib.parse
import uuid

from awconv_jax.errors import InputError, first_line

RENEWED = 10.0
STALE = 60.0
PATIENCE = 30.0  # With a bucket that does not answer; TensorStore has more.


def _started(pid: int) -> str | None:
  """Returns when a process began, in the system's ticks; None if it is gone."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text(errors='replace')
  except OSError:
    return None
  state, *fields = stat.rpartition(')')[2].split()
  return None if state in 'ZX' else fields[18]


def _machine() -> str | None:
  """Returns a name of what has process ids: a start of Linux, a container."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return None


def _answer(future: Any, seconds: float | None = None) -> Any:
  seconds = seconds or PATIENCE
  try:
    return future.result(timeout=seconds)
  except TimeoutError:
    raise TimeoutError(f'no answer for {seconds:.0f} s') from None


def _is_gone(owner: Any) -> bool:
  """Returns whether the owner was a process of this machine that has ended."""
  ours = _machine() is not None and owner.get('machine') == _machine()
  return ours and _started(owner.get('pid', 0)) != owner.get('started')


class _Lease:
  """What one process holds, or wants to."""

  def __init__(self, path: pathlib.Path):
    import tensorstore

    self._path, self._number = path, itertools.count()
    # TensorStore takes a URL, in which a '%' stands for something else.
    url = urllib.parse.quote(f'{path.parent}/', safe='/:')
    opened = tensorstore.KvStore.open(url)
    self._store, self._lock = _answer(opened), threading.Lock()
    self._seen = b''
    self._renewed, self._lost = 0.0, ''
    self._owner = {
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'started': _started(os.getpid()),
        'machine': _machine(),
        'key': uuid.uuid4().hex,
    }

  def _read(self) -> tuple[dict[str, Any] | None, bytes]:
    found, owner = _answer(self._store.read(self._path.name)), None
    if found.state == 'value':
      owner = {}  # Of whoever wrote something else.
      with contextlib.suppress(ValueError, TypeError):
        owner |= json.loads(found.value)
    return owner, found.stamp.generation

  def _write(self, generation: bytes) -> bool:
    """Writes over what has the generation; False if another has, or removed."""
    while True:
      value = self._owner | {'number': next(self._number), 'time': time.time()}
      begun = time.monotonic()
      write = self._store.write(
          self._path.name, json.dumps(value), if_equal=generation
      )
      _answer(write)
      # What was refused may be a repeated request whose answer got lost.
      owner, found = self._read()
      if (owner or {}).get('key') != self._owner['key']:
        return False
      generation = self._seen = found
      if owner == value:
        self._renewed = begun
        return True
      # Ours, too: it was written, and then this read failed.

  def take(self, report: Callable[[str], object]) -> None:
    """Takes it, or raises InputError with the owner."""
    owner, generation = self._read()
    if owner is not None and not _is_gone(owner):
      report(
          f'{self._path.parent} has a lock; waiting up to {STALE:.0f} s to see '
          'whether its owner renews it'
      )
    end = time.monotonic() + STALE
    while owner is not None and not _is_gone(owner) and time.monotonic() < end:
      time.sleep(min(1.0, RENEWED / 4))
      before = generation
      owner, generation = self._read()
      if owner is not None and generation != before:
        raise InputError(self._told(owner))
    if not self._write(generation):
      raise InputError(self._told(self._read()[0] or {}))

  def _told(self, owner: dict[str, Any]) -> str:
    who = f'process {owner.get("pid")} on {owner.get("host")}'
    return f'has another run under way, {who}'

  def renew(self) -> None:
    """Renews it; what happens to one that is lost, `check` tells."""
    with self._lock:
      if not self._lost and not self._write(self._seen):
        self._lost = self._told(self._read()[0] or {})

  def check(self) -> None:
    """Raises InputError if it is not held any more, or cannot be renewed."""
    if time.monotonic() - self._renewed > STALE / 2:
      try:
        self.renew()
      except Exception as error:  # Of TensorStore, by the kind of its status.
        reason = f'cannot be written: {first_line(error, 300)}'
        raise InputError(f'{self._path.parent} {reason}') from error
    if self._lost:
      raise InputError(
          f'{self._path.parent} {self._lost}, which took it over as this one '
          f'had not written to the bucket for {STALE:.0f} s; this one ends'
      )

  def release(self) -> None:
    """Removes it, if it is still ours."""
    # A renewal may be waiting for a bucket that is out of reach.
    if self._lock.acquire(timeout=RENEWED) and not self._lost:
      gone = self._store.write(self._path.name, None, if_equal=self._seen)
      _answer(gone, RENEWED)


@contextlib.contextmanager
def held(
    path: pathlib.Path, report: Callable[[str], object] = print
) -> Iterator[Callable[[], None]]:
  """Holds the lock at a path; gives what raises InputError once it is lost.

  `report` is called with one line before it waits for a lock to become stale.

  Raises:
    InputError: another run holds it (after up to `STALE` seconds), or the
      bucket cannot be read or written.
  """
  over = threading.Event()
  try:
    lease = _Lease(path)
    lease.take(report)
  except InputError:
    raise
  except Exception as error:  # Of TensorStore, by the kind of its status.
    reason = f'cannot be written: {first_line(error, 300)}'
    raise InputError(reason) from error

  def go_on():
    while not over.wait(RENEWED):
      with contextlib.suppress(Exception):  # `check` sees what it led to.
        lease.renew()

  thread = threading.Thread(target=go_on, daemon=True)
  thread.start()
  try:
    yield lease.check
  finally:
    over.set()
    thread.join(RENEWED)
    with contextlib.suppress(Exception):  # It is then taken as a stale one.
      lease.release()
