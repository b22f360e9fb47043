"""Reads batches in processes that end with this one, and only with it.

Ctrl-C, and signals to a whole group of processes, are for this one to answer:
they do not reach the readers, of which another batch, or the rest of an
evaluation, may be wanted yet. A reader that is killed is replaced, and reading
goes on where it was; one that is stopped is woken.
"""

from collections.abc import Generator, Iterator
from concurrent import futures
import contextlib
import errno
import multiprocessing
from multiprocessing import resource_tracker
import os
import re
import signal
import threading
from typing import Any

from absl import flags, logging
import cv2
import grain
import numpy as np

from awconv_jax.errors import InputError

_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
# Seconds without a batch after which readers may be stopped ones.
_PATIENCE = 5.0
# There are too many files, processes, or bytes.
_LACKING = errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM, errno.EAGAIN
_KILLED = re.compile(r'Worker process was terminated .* exit code -(\d+)')


def read(
    batches: grain.MapDataset, ahead: grain.ReadOptions, num_workers: int
) -> Iterator[Any]:
  """Yields the batches in order; each of the processes reads so far ahead.

  Raises:
    InputError: the system refuses what they need; or a reader was killed, and
      the one in its place before its first batch.
  """
  if not flags.FLAGS.is_parsed():
    # Grain reads its own flags here, which only absl's app.run has parsed.
    flags.FLAGS.mark_as_parsed()
  given, started_at = 0, -1
  while True:
    rest = batches[given:].to_iter_dataset(ahead)
    try:
      with contextlib.closing(_read(rest, num_workers)) as opened:
        for batch in opened:
          yield batch
          given += 1
      return
    except OSError as error:
      if error.errno not in _LACKING:
        raise
      raise InputError(
          f'reading processes cannot go on: {error.strerror}; raise `ulimit '
          '-n` or the size of /dev/shm, or lower config.data.num_workers='
          f'{num_workers}'
      ) from error
    except RuntimeError as error:
      if (killed := _KILLED.search(str(error))) is None:
        raise
    fault = (
        f'a reading process was killed by {signal.Signals(int(killed[1])).name}'
    )
    if given == started_at:
      raise InputError(
          f'{fault}, as was the one before: memory or /dev/shm may be too '
          f'small; lower config.data.num_workers={num_workers}, prefetch or '
          'the batch size'
      )
    logging.warning('%s; another one goes on', fault)
    started_at = given


def _read(
    dataset: grain.IterDataset, num_workers: int
) -> Generator[Any, None, None]:
  options = grain.MultiprocessingOptions(
      num_workers=num_workers, per_worker_buffer_size=1
  )
  with (
      # Grain starts threads, and these processes, that inherit what is blocked.
      futures.ThreadPoolExecutor(1, initializer=_block_signals) as thread,
      contextlib.closing(iter(dataset.mp_prefetch(options, _begin))) as opened,
  ):
    try:
      while True:
        asked = thread.submit(_next, opened)
        while not futures.wait([asked], _PATIENCE).done:
          _send(signal.SIGCONT)
        if (batch := asked.result()) is None:
          return
        yield batch
    except KeyboardInterrupt:
      _send(signal.SIGKILL)  # Not to be waited for.
      raise
    finally:
      _send(signal.SIGCONT)  # A stopped one could not end.


def _next(opened: Iterator[Any]) -> Any:
  # Copied, as what is held of shared memory when the run ends would be told as
  # a leak.
  batch = next(opened, None)
  return batch and {name: np.array(value) for name, value in batch.items()}


def _block_signals() -> None:
  resource_tracker.ensure_running()  # Or its start would unblock them.
  signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _send(number: int) -> None:
  """Sends a signal to all reading processes."""
  for process in multiprocessing.active_children():
    if process.name.startswith('grain'):
      os.kill(process.pid, number)


def _begin(*_: int) -> None:
  """Is called in a reading process first."""
  settle_opencv()
  parent = multiprocessing.parent_process()
  threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
  parent.join()  # Also one that was killed.
  os._exit(1)


def settle_opencv() -> None:
  """Keeps OpenCV's threads from fighting those that read for the cores."""
  cv2.setNumThreads(0)
  # What it says of a broken image is told once, and with the image's name.
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
