"""Ends a run in order when it is asked to: SIGTERM, or Ctrl-C."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopRequest:
  """Notes SIGTERM and Ctrl-C while it is entered as a context.

  A second Ctrl-C interrupts at once. With several processes JAX's own service
  watches for SIGTERM, and all processes stop after the same step.
  """

  def __init__(self):
    self._name = None
    self._before = {}

  def __enter__(self) -> 'StopRequest':
    # JAX's service has its own handler, and Python allows none off the main
    # thread.
    main = threading.current_thread() is threading.main_thread()
    if jax.process_count() == 1 and main:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def _note(self, number, frame):
    del frame
    if self._name is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._name = signal.Signals(number).name

  def reason(self, step: int) -> str | None:
    """Returns what asked to stop after this step, or None to go on."""
    if jax.process_count() > 1:
      stop = multihost_utils.reached_preemption_sync_point(step)
      return 'SIGTERM' if stop else None
    return self._name
