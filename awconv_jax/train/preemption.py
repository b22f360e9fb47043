"""Ends a run in order when it is asked to: SIGTERM, or Ctrl-C."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopRequest:
  """Notes SIGTERM and Ctrl-C while it is entered as a context.

  A second Ctrl-C interrupts at once. With several processes JAX's own service
  watches for SIGTERM, and all processes stop after the same step; a Ctrl-C is
  handed on as a SIGTERM.
  """

  def __init__(self):
    self._name = None
    self._before = {}

  def __enter__(self) -> 'StopRequest':
    if threading.current_thread() is not threading.main_thread():
      return self  # Python allows no handlers there.
    handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
    if jax.process_count() > 1:  # SIGTERM is JAX's own then.
      handlers = {signal.SIGINT: self._hand_on}
    for number, handler in handlers.items():
      self._before[number] = signal.signal(number, handler)
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

  def _hand_on(self, number, frame):
    del frame
    if self._name is not None:
      raise KeyboardInterrupt
    self._name = signal.Signals(number).name
    os.kill(os.getpid(), signal.SIGTERM)

  def reason(self, step: int) -> str | None:
    """Returns what asked to stop after this step, or None to go on."""
    if jax.process_count() > 1:
      stop = multihost_utils.reached_preemption_sync_point(step)
      return 'SIGTERM' if stop else None
    return self._name
