"""Reads batches in processes that end with this one, and only with it.

Ctrl-C, and signals to a whole group of processes, are for this one to answer:
they do not reach the readers, of which another batch, or the rest of an
evaluation, may be wanted yet. A reader that is killed is replaced, and reading
goes on where it was; one that is stopped is woken.

Each has a socket to this process and shares nothing else with it, no lock and
no memory: whenever it dies, the socket ends, and so it does for the reader when
this process dies.
"""

from collections.abc import Callable, Generator, Iterable
import contextlib
import errno
import pickle
import signal
import socket
import struct
import subprocess
import sys
import traceback
from typing import Any

from absl import logging
import cloudpickle
import cv2
import grain
import numpy as np

from awconv_jax.errors import InputError

_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
# Seconds without a byte after which readers may be stopped ones.
_PATIENCE = 5.0
# There are too many files, processes, or bytes.
_LACKING = errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN
_SIZE = struct.Struct('!Q')


class _GoneError(Exception):
  """There is nobody at the other end."""


def read(
    batches: grain.MapDataset, ahead: grain.ReadOptions, num_workers: int
) -> Generator[Any, None, None]:
  """Yields the batches in order; each of the processes reads so far ahead.

  Raises:
    InputError: the system refuses what they need; or a reader was killed, and
      the one in its place before its first batch.
  """
  number = min(num_workers, len(batches))
  readers: list[_Reader] = []
  remedy = f'lower config.data.num_workers={num_workers}'

  def wake():
    for reader in readers:
      reader.process.send_signal(signal.SIGCONT)

  def start(places: Iterable[int]) -> list['_Reader']:
    try:
      started = [_Reader(wake) for _ in places]
    except OSError as error:
      if error.errno not in _LACKING:
        raise
      raise InputError(
          f'reading processes cannot be started: {error.strerror}; raise '
          f'`ulimit -n` and `ulimit -u`, or {remedy}'
      ) from error
    # They start at the same time, and then take what they are to do.
    for reader, place in zip(started, places, strict=True):
      reader.send((batches[place::number], ahead))
    return started

  try:
    readers += start(range(number))
    started_at = -1
    for place in range(len(batches)):
      while True:
        try:
          batch = readers[place % number].take()
          break
        except _GoneError:
          fault = readers[place % number].fault()
        if place == started_at:
          raise InputError(
              f'{fault}, as was the one before: memory may be too small; '
              f'{remedy}, prefetch or the batch size'
          )
        logging.warning('%s; another one goes on', fault)
        started_at = place
        # Of others, too, that met the same.
        turns = range(place, place + number)
        dead = [p for p in turns if readers[p % number].process.poll()]
        for p, reader in zip(dead, start(dead), strict=True):
          readers[p % number].close()
          readers[p % number] = reader
      if isinstance(batch, Exception):
        raise batch
      yield batch
  finally:
    for reader in readers:
      reader.close()


class _Reader:
  """A process that reads batches, and this one's end of what joins them."""

  def __init__(self, wake: Callable[[], None]):
    """Starts it; `wake` is called where it is long silent."""
    self._wake = wake
    self._socket, theirs = socket.socketpair()
    self._socket.settimeout(_PATIENCE)
    with theirs:
      end = theirs.fileno()
      command = (
          f'import sys; sys.path[:] = {sys.path}; '
          f'from {__name__} import serve; serve({end})'
      )
      # What is blocked is inherited.
      blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
      try:
        self.process = subprocess.Popen(
            [sys.executable, '-c', command],
            stdin=subprocess.DEVNULL,
            pass_fds=[end],
        )
      finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

  def _patiently(self, act: Callable[[Any], int]) -> Callable[[Any], int]:
    def acted(data):
      while True:
        try:
          return act(data)
        except TimeoutError:
          self._wake()

    return acted

  def send(self, message: Any) -> None:
    # Of one that has gone, `take` tells.
    with contextlib.suppress(_GoneError):
      _send(self._patiently(self._socket.send), message)

  def take(self) -> Any:
    """Returns a batch, or the exception in its place; raises `_GoneError`."""
    return _receive(self._patiently(self._socket.recv_into))

  def fault(self) -> str:
    """Returns how it was killed; raises RuntimeError if it ended by itself."""
    code = self.process.wait()
    if code >= 0:
      raise RuntimeError(f'a reading process ended with exit code {code}')
    return f'a reading process was killed by {signal.Signals(-code).name}'

  def close(self) -> None:
    self._socket.close()
    self.process.kill()
    self.process.wait()


def serve(end: int) -> None:
  """Reads in this process, for the one at the other end of a socket."""
  settle_opencv()
  joined = socket.socket(fileno=end)
  with contextlib.suppress(_GoneError):
    for message in _read(joined):
      _send(joined.send, message)


def _read(joined: socket.socket) -> Generator[Any, None, None]:
  try:
    # Which opens files, too.
    batches, ahead = _receive(joined.recv_into)
    yield from batches.to_iter_dataset(ahead)
  except _GoneError:
    raise
  except Exception as error:  # It is raised where the batch was wanted.
    error.add_note(traceback.format_exc())
    yield error


def _send(act: Callable[[Any], int], message: Any) -> None:
  """Sends a message, of which arrays are not copied."""
  buffers = []
  packed = cloudpickle.dumps(
      message, protocol=5, buffer_callback=buffers.append
  )
  parts = [buffer.raw() for buffer in buffers]
  head = pickle.dumps((packed, [part.nbytes for part in parts]))
  for part in (_SIZE.pack(len(head)), head, *parts):
    _whole(act, memoryview(part))


def _receive(act: Callable[[Any], int]) -> Any:
  (size,) = _SIZE.unpack(_filled(act, _SIZE.size))
  packed, sizes = pickle.loads(_filled(act, size))
  return pickle.loads(packed, buffers=[_filled(act, n) for n in sizes])


def _filled(act: Callable[[Any], int], size: int) -> memoryview:
  data = memoryview(np.empty(size, np.uint8))
  _whole(act, data)
  return data


def _whole(act: Callable[[Any], int], data: memoryview) -> None:
  """Sends, or fills, data of which a socket takes parts."""
  while data:
    try:
      done = act(data)
    except ConnectionError as error:
      raise _GoneError from error
    if not done:
      raise _GoneError
    data = data[done:]


def settle_opencv() -> None:
  """Keeps OpenCV's threads from fighting those that read for the cores."""
  cv2.setNumThreads(0)
  # What it says of a broken image is told once, and with the image's name.
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
