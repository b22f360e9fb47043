"""Ends a run in order when it is asked to: SIGTERM, or Ctrl-C."""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
  """Gives a function that returns the signal to stop now, or None to go on.

  A second Ctrl-C interrupts at once. With several processes, which call the
  function equally often, JAX's own service watches for SIGTERM, and all stop at
  the same call; a Ctrl-C is handed on as a SIGTERM.
  """
  several, names, calls = jax.process_count() > 1, [], itertools.count()

  def note(number, frame):
    del frame
    if names and number == signal.SIGINT:
      raise KeyboardInterrupt
    names.append(signal.Signals(number).name)
    if several:
      os.kill(os.getpid(), signal.SIGTERM)

  def reason():
    if several:
      stop = multihost_utils.reached_preemption_sync_point(next(calls))
      return 'SIGTERM' if stop else None
    return names[0] if names else None

  numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
  if threading.current_thread() is not threading.main_thread():
    numbers = ()  # Python allows no handlers there.
  before = {number: signal.signal(number, note) for number in numbers}
  try:
    yield reason
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
