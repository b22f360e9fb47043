"""Says where a run stands when it does not go on. It ends nothing."""

import collections
import contextlib
import faulthandler
import io
import statistics
import sys
import threading
import time

import jax

# Of what ends for certain, only later: so many of the usual steps, at least
# this long [s].
_STEPS, _LEAST = 10, 300
# What compiles the first time, for as long as that takes.
STEP, EVALUATION = 'in a step', 'in evaluation'
SAVE, TRACE = 'in a save', 'writing a trace'
_COMPILES = STEP, EVALUATION


class Watch(contextlib.AbstractContextManager):
  """Hears where the loop is, and shows stacks when it hears nothing for long.

  Args:
    first: steps taken so far.
    seconds: what is long; by default ten times the median time between the ends
      of two steps, and at least 300 s. 0 is never.

  Attributes:
    step: steps taken so far.
  """

  def __init__(self, first: int, seconds: int | None = None):
    self.step, self._seconds = first, seconds
    self._ended_at: float | None = None
    self._lengths = collections.deque(maxlen=100)  # [s]
    self._met = set()
    self._stands = 'at the start', None  # Where, and since when if that counts.
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    if seconds != 0:
      self._thread.start()

  def __exit__(self, *exception) -> None:
    self._over.set()

  def at(self, where: str) -> None:
    """Takes note of what the loop does from now on."""
    compiles = where in _COMPILES and where not in self._met
    self._met.add(where)
    self._stands = where, None if compiles else time.monotonic()

  def ended(self, step: int) -> None:
    """Takes note that a step has ended."""
    now = time.monotonic()
    if self._ended_at is not None:
      self._lengths.append(now - self._ended_at)
    self.step, self._ended_at = step, now

  def _limit(self) -> float:
    if self._seconds is not None:
      return self._seconds
    lengths = list(self._lengths)
    return max(_LEAST, _STEPS * statistics.median(lengths or [0]))

  def _watch(self) -> None:
    told, wait = self._stands, 1  # Where it was shown last; how often to wait.
    while not self._over.wait(min(5, self._limit() / 10)):
      where, since = stands = self._stands
      if stands is not told:
        told, wait = stands, 1
      if since is not None:
        silent = time.monotonic() - since
        if silent >= wait * self._limit():
          wait *= 2  # Its stacks stay as they are, mostly.
          self._tell(where, silent)

  def _tell(self, where: str, seconds: float) -> None:
    who = f'process {jax.process_index()}' if jax.process_count() > 1 else ''
    with contextlib.suppress(OSError, ValueError):  # As of a pipe that is gone.
      with contextlib.suppress(io.UnsupportedOperation):  # As in a notebook.
        faulthandler.dump_traceback(sys.stderr)
      print(
          f'{who or "the run"} has not gone on for {seconds:.0f} s: it is '
          f'{where}, after step {self.step}. Above, the newest call first, is '
          'where its threads are; it goes on being watched',
          file=sys.stderr,
          flush=True,
      )
