"""Timing that can be trusted: warm, in turn, on changing inputs, medians."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np

from awconv_jax import errors

# Off CPU, calls are timed together until they take so long, or are so many.
_LEAST_SECONDS, _MOST_TOGETHER = 0.02, 100


@dataclasses.dataclass
class Ready:
  """A function that is compiled, with its inputs where it wants them.

  Attributes:
    run: takes a number, which chooses among the sets of inputs; computes,
      waits for the end and returns the results.
    fetch: returns results as a tree of arrays on the host, the same tree for
      all functions that are compared.
    temporary_mib: memory that is asked for besides arguments and results, in
      MiB (of each device); None where it is not known.
    program: text of the compiled program; '' where there is none.
  """

  run: Callable[[int], Any]
  fetch: Callable[[Any], Any]
  temporary_mib: float | None = None
  program: str = ''


@dataclasses.dataclass
class Measurement:
  """What was seen of one function.

  Attributes:
    milliseconds: median time of a call.
    calls: how many were timed.
    error: norm of the difference to the reference over the reference's norm,
      the largest of all results; 0 for what is compared with nothing.
  """

  milliseconds: float
  calls: int
  error: float


def compile_jax(
    function: Callable[..., Any],
    inputs: Sequence[tuple[Any, ...]],
    fetch: Callable[[Any], Any] = jax.device_get,
    **options: Any,
) -> Ready:
  """Compiles a function for one kind of input.

  Args:
    function: what to compile.
    inputs: sets of arguments, of the same shapes.
    fetch: as in `Ready`.
    **options: of `jax.jit`.
  """
  compiled = jax.jit(function, **options).lower(*inputs[0]).compile()
  analysis = compiled.memory_analysis()

  def run(turn, calls=1):
    for own in range(turn, turn + calls):
      result = compiled(*inputs[own % len(inputs)])
    return jax.block_until_ready(result)

  return Ready(
      run=run,
      fetch=fetch,
      temporary_mib=analysis.temp_size_in_bytes / 2**20 if analysis else None,
      program=compiled.as_text(),
  )


def norm(tree: Any) -> np.ndarray:
  """Returns the norm of all arrays of a tree together, taken on the host.

  On the devices it would be many small programs that wait for each other.
  """
  return np.linalg.norm(norms(tree))


def norms(tree: Any) -> np.ndarray:
  """Returns the norm of each array of a tree, in its order, as `norm` does."""
  leaves = (np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree))
  return np.array([np.linalg.norm(leaf) for leaf in leaves])


def relative_error(result: Any, reference: Any) -> float:
  """Returns the largest relative difference of two trees of arrays."""

  def one(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)

  return float(max(jax.tree.leaves(jax.tree.map(one, result, reference))))


def _refuse_meaningless(name: str, result: Any) -> None:
  """Raises ReportedError for an array that is zero, or not finite."""
  for array in jax.tree.leaves(result):
    norm = np.linalg.norm(np.asarray(array, np.float64))
    if not (np.isfinite(norm) and norm > 0):
      raise errors.ReportedError(
          f'a result of {name} has the norm {norm}: its time and what is '
          'compared with it would mean nothing'
      )


def leave_out(name: str, check: Mapping[str, str], error: Exception) -> None:
  """Says why a function cannot be measured.

  Args:
    name: of the function.
    check: by name of a function, which one its results are compared with.
    error: what it ended with.

  Raises:
    ReportedError: others are measured against it.
  """
  reason = f'{name} cannot run here: {str(error).strip().splitlines()[0]}'
  if name not in check:
    raise errors.ReportedError(
        f'{reason}; others are measured against it'
    ) from error
  print(f'left out: {reason}', flush=True)


def compile_all(
    programs: Mapping[str, Mapping[str, Any]], check: Mapping[str, str]
) -> dict[str, Ready]:
  """Compiles what can be compiled, and says what cannot.

  Args:
    programs: arguments of `compile_jax` by name.
    check: as in `leave_out`.
  """
  ready = {}
  for name, program in programs.items():
    try:
      ready[name] = compile_jax(**program)
    except jax.errors.JaxRuntimeError as error:
      leave_out(name, check, error)
  return ready


def _first_calls(ready, check):
  """Calls everything once; returns the times in seconds and the errors."""
  times, results = {}, {}
  for name, function in ready.items():
    start = time.perf_counter()
    try:
      result = function.run(0)
    except jax.errors.JaxRuntimeError as error:
      leave_out(name, check, error)
      continue
    times[name] = time.perf_counter() - start
    result = function.fetch(result)
    _refuse_meaningless(name, result)
    if name in check or name in check.values():
      results[name] = result
  return times, {
      name: relative_error(results[name], results[reference])
      for name, reference in check.items()
      if name in results
  }


def _calls_together(seconds):
  """Returns how many calls are timed as one, where one takes so long.

  A call of another device includes the way there; one after the other without
  waiting they are as dense as in a network.
  """
  if jax.default_backend() == 'cpu':
    return 1
  return max(1, min(_MOST_TOGETHER, math.ceil(_LEAST_SECONDS / seconds)))


def _time_in_turn(ready, first, seconds):
  """Returns how many calls took how long, in seconds, as pairs by name.

  Args:
    ready: functions by name.
    first: seconds of a call of each.
    seconds: time for each function.
  """
  times = {name: [] for name in ready}

  def enough(name):
    spent = sum(took for _, took in times[name])
    return bool(times[name]) and spent >= seconds

  turn = 0
  while not all(map(enough, ready)):
    turn += 1
    for name, function in ready.items():
      if enough(name):
        continue
      once = first[name]
      if times[name] or once <= seconds:
        start = time.perf_counter()
        function.run(turn)
        once = time.perf_counter() - start
      calls = _calls_together(once)
      options = dict(calls=calls) if calls > 1 else {}
      start = time.perf_counter()
      function.run(turn, **options)
      times[name].append((calls, time.perf_counter() - start))
  return times


def measure(
    ready: Mapping[str, Ready],
    *,
    seconds: float,
    check: Mapping[str, str],
    refuse: Callable[[Mapping[str, float]], object] = lambda differences: None,
    untimed: Mapping[str, Ready] | None = None,
) -> dict[str, Measurement]:
  """Times functions in turn, so that all meet the same state of the machine.

  Everything is called once to check the results, on the first inputs. If that
  is in order, every timed call follows one that is not timed, since what ran
  before may have left the caches to itself, until `seconds` of each are timed;
  the inputs change from turn to turn. A function whose checking call took
  longer than `seconds` is not called again before its first timed call, which
  then mostly is the only one: the checking call has warmed it, on other inputs.

  Args:
    ready: functions by name.
    seconds: time for each function; 0 for one timed call of each.
    check: by name of a function, which one its results are compared with;
      names that are not in `ready` mean nothing.
    refuse: called with the differences found, as `Measurement.error`, by name,
      before anything is timed; raises what keeps it from being timed.
    untimed: functions that others are compared with, and that is all.

  Returns:
    Measurements by name, of what can run of `ready`.

  Raises:
    ReportedError: a result is zero or not finite, or what others are measured
      against cannot run.
  """
  first, differences = _first_calls({**(untimed or {}), **ready}, check)
  refuse(differences)
  running = {name: own for name, own in ready.items() if name in first}
  return {
      name: Measurement(
          milliseconds=1e3 * float(np.median([took / n for n, took in times])),
          calls=sum(n for n, _ in times),
          error=differences.get(name, 0.0),
      )
      for name, times in _time_in_turn(running, first, seconds).items()
  }
