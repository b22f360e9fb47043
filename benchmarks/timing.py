"""Timing that can be trusted: checked, warm, in turn, on changing inputs.

What is measured beside each other is called in turn in one process, so that all
meet the same state of the machine, and only after results were compared.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import math
import os
import platform
import time
from typing import Any

import flax
import jax
import jaxlib
import numpy as np

from awconv_jax import errors

# Off CPU, calls are timed together until they take so long, or are so many.
_LEAST_SECONDS, _MOST_TOGETHER = 0.02, 100


@dataclasses.dataclass
class Program:
  """What is compiled, with its inputs where it wants them.

  Attributes:
    run: `(turn, calls=1) -> results`; computes that often, with the sets of
      inputs from number `turn` on, and returns the last results once all of it
      is done.
    fetch: returns results as a tree of arrays on the host, the same tree for
      all that is compared.
    temporary_mib: memory besides arguments and results, MiB of each device;
      None where it is not known.
    text: of the compiled program; '' where there is none.
  """

  run: Callable[..., Any]
  fetch: Callable[[Any], Any]
  temporary_mib: float | None = None
  text: str = ''


@dataclasses.dataclass
class Measurement:
  """What was seen of a program.

  Attributes:
    program: that was measured.
    milliseconds: median time of a call.
    calls: how many were timed.
    error: norm of the difference to the reference over the reference's norm,
      the largest of all results; 0 for what is compared with nothing.
  """

  program: Program
  milliseconds: float
  calls: int
  error: float

  def columns(self, base: 'Measurement') -> dict[str, Any]:
    """Returns what all tables have of it, with the ratio of time to base's."""
    return dict(
        milliseconds=self.milliseconds,
        calls=self.calls,
        ratio=self.milliseconds / base.milliseconds,
        temporary_mib=self.program.temporary_mib,
        error=self.error,
    )


def compile_jax(
    function: Any,
    inputs: Sequence[tuple[Any, ...]],
    fetch: Callable[[Any], Any] = jax.device_get,
) -> Program:
  """Compiles a function under `jax.jit` for some sets of equal shapes."""
  compiled = function.lower(*inputs[0]).compile()
  analysis = compiled.memory_analysis()

  def run(turn, calls=1):
    result = None
    for number in range(turn, turn + calls):
      result = compiled(*inputs[number % len(inputs)])
    return jax.block_until_ready(result)

  return Program(
      run=run,
      fetch=fetch,
      temporary_mib=analysis.temp_size_in_bytes / 2**20 if analysis else None,
      text=compiled.as_text(),
  )


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


def _first_calls(programs, reference, tolerance):
  """Compiles, calls and compares everything once, references first.

  Returns:
    By name, of what can run here: the program, seconds of its call and the
    difference to its reference.
  """
  ready, results = {}, {}
  for name in sorted(programs, key=lambda name: name in reference):
    try:
      program = programs[name]()
      start = time.perf_counter()
      result = program.run(0)
      seconds = time.perf_counter() - start
    except jax.errors.JaxRuntimeError as error:
      reason = f'{name} cannot run here: {str(error).strip().splitlines()[0]}'
      if name == 'plain' or name in reference.values():
        raise errors.ReportedError(
            f'{reason}; others are measured against it'
        ) from error
      print(f'left out: {reason}', flush=True)
      continue
    result = program.fetch(result)
    _refuse_meaningless(name, result)
    difference = 0.0
    if name in reference:
      difference = relative_error(result, results[reference[name]])
      if not difference <= tolerance:
        raise errors.ReportedError(
            f'{name} differs from {reference[name]} by {difference:.1e} '
            f'(relative), more than the {tolerance:g} of rounding: not timed'
        )
    if name in reference.values():
      results[name] = result
    ready[name] = program, seconds, difference
  return ready


def _calls_together(seconds):
  """Returns how many calls are timed as one, where one takes so long.

  A call of another device includes the way there; one after the other without
  waiting they are as dense as in a network.
  """
  if jax.default_backend() == 'cpu':
    return 1
  return max(1, min(_MOST_TOGETHER, math.ceil(_LEAST_SECONDS / seconds)))


def _time_in_turn(programs, first, seconds):
  """Returns pairs of how many calls took how long, in seconds, by name."""
  times = {name: [] for name in programs}

  def enough(name):
    spent = sum(took for _, took in times[name])
    return bool(times[name]) and spent >= seconds

  turn = 0
  while not all(map(enough, programs)):
    turn += 1
    for name, program in programs.items():
      if enough(name):
        continue
      once = first[name]
      if times[name] or once <= seconds:
        start = time.perf_counter()
        program.run(turn)
        once = time.perf_counter() - start
      calls = _calls_together(once)
      start = time.perf_counter()
      program.run(turn, calls)
      times[name].append((calls, time.perf_counter() - start))
  return times


def measure(
    programs: Mapping[str, Callable[[], Program]],
    *,
    reference: Mapping[str, str],
    tolerance: float,
    seconds: float,
    untimed: Collection[str] = (),
) -> dict[str, Measurement]:
  """Times programs in turn, after comparing their results.

  Every timed call follows one that is not timed, since what ran before may have
  left the caches to itself, until `seconds` of each are timed; inputs change
  from turn to turn. What took longer than `seconds` when it was compared is
  not called again before its first timed call, which then mostly is the only
  one: the first has warmed it, on other inputs.

  Args:
    programs: what compiles each, by name; 'plain' among them. What cannot be
      compiled or run here is named and left out.
    reference: by name of a program, which one its results are compared with.
    tolerance: relative difference that is rounding.
    seconds: time for each program; 0 for one timed call of each.
    untimed: names of what others are compared with, and that is all.

  Returns:
    By name, in the order given.

  Raises:
    ReportedError: a result is wrong, zero or not finite, or what others are
      measured against cannot run.
  """
  ready = _first_calls(programs, reference, tolerance)
  ready = {n: ready[n] for n in programs if n in ready and n not in untimed}
  times = _time_in_turn(
      {name: program for name, (program, _, _) in ready.items()},
      {name: first for name, (_, first, _) in ready.items()},
      seconds,
  )
  measured = {}
  for name, (program, _, difference) in ready.items():
    median = float(np.median([took / n for n, took in times[name]]))
    calls = sum(n for n, _ in times[name])
    measured[name] = Measurement(program, 1e3 * median, calls, difference)
  return measured


def environment() -> dict[str, Any]:
  """Returns what all numbers depend on: device, processor and versions."""
  device = jax.devices()[0]
  return {
      'device': device.device_kind,
      'devices': jax.device_count(),
      'backend': jax.default_backend(),
      'platform': device.client.platform_version,
      'cores': os.cpu_count(),
      'jax': jax.__version__,
      'jaxlib': jaxlib.__version__,
      'flax': flax.__version__,
      'python': platform.python_version(),
  }
