"""Timing that can be trusted: checked, warm, in turn, on changing inputs.

What is measured beside each other is called in turn in one process, so that all
meet the same state of the machine, and only after results were compared.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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

# Off CPU, calls are timed together until they take so long, or are so many: one
# alone includes the way to the device; together they are as dense as in a
# network.
_LEAST_SECONDS, _MOST_TOGETHER = 0.02, 100


@dataclasses.dataclass
class Program:
  """What is compiled, with its inputs where it wants them, and what it takes.

  Attributes:
    run: `(turn, calls=1) -> results`; computes that often, with the sets of
      inputs from number `turn` on, and returns the last results once all of it
      is done.
    fetch: returns results as a tree of arrays on the host, the same tree for
      all that is compared.
    temporary_mib: memory besides arguments and results, MiB of each device;
      None where it is not known.
    text: of the compiled program; '' where there is none.
    error: norm of the difference to the reference over the reference's norm,
      the largest of all results; 0 for what is compared with nothing.
    first: seconds of the call that was compared.
    times: of the others, pairs of how many calls took how many seconds.
  """

  run: Callable[..., Any]
  fetch: Callable[[Any], Any]
  temporary_mib: float | None = None
  text: str = ''
  error: float = 0.0
  first: float = 0.0
  times: list[tuple[int, float]] = dataclasses.field(default_factory=list)

  @property
  def milliseconds(self) -> float:
    """Median time of a call."""
    return 1e3 * float(np.median([took / n for n, took in self.times]))

  def columns(self, base: 'Program') -> dict[str, Any]:
    """Returns what all tables have of it, with the ratio of time to base's."""
    return dict(
        milliseconds=self.milliseconds,
        calls=sum(n for n, _ in self.times),
        ratio=self.milliseconds / base.milliseconds,
        temporary_mib=self.temporary_mib,
        error=self.error,
    )

  def time(self, turn: int, calls: int = 1) -> tuple[Any, float]:
    """Returns the results of `run`, and the seconds that it took."""
    start = time.perf_counter()
    results = self.run(turn, calls)
    return results, time.perf_counter() - start


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

  memory = analysis.temp_size_in_bytes / 2**20 if analysis else None
  return Program(run, fetch, memory, compiled.as_text())


def relative_error(result: Any, reference: Any) -> float:
  """Returns the largest relative difference of two trees of arrays.

  It is NaN if the reference holds an array of zeros, or anything not finite.
  """

  def one(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)

  with np.errstate(invalid='ignore', divide='ignore'):
    return float(np.max(jax.tree.leaves(jax.tree.map(one, result, reference))))


def _time_in_turn(programs: Iterable[Program], seconds: float) -> None:
  """Fills `times` until each program was timed for so many seconds."""
  turn, waiting = 0, list(programs)
  while waiting:
    turn += 1
    for program in waiting:
      once = program.first
      if program.times or once <= seconds:
        _, once = program.time(turn)
      calls = 1
      if jax.default_backend() != 'cpu':
        calls = min(_MOST_TOGETHER, max(1, math.ceil(_LEAST_SECONDS / once)))
      program.times.append((calls, program.time(turn, calls)[1]))
    waiting = [p for p in waiting if sum(t for _, t in p.times) < seconds]


def measure(
    programs: Mapping[str, Callable[[], Program]],
    *,
    reference: Mapping[str, str],
    tolerance: float,
    seconds: float,
    untimed: Collection[str] = (),
) -> dict[str, Program]:
  """Times programs in turn, after comparing their results.

  Every timed call follows one that is not timed, since what ran before may have
  left the caches to itself; inputs change from turn to turn. What took longer
  than `seconds` when it was compared was warmed by that, on other inputs.

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
  ready, results = {}, {}
  for name in sorted(programs, key=lambda name: name in reference):
    try:
      program = programs[name]()
      result, program.first = program.time(0)
    except jax.errors.JaxRuntimeError as error:
      reason = f'{name} cannot run here: {str(error).strip().splitlines()[0]}'
      if name == 'plain' or name in reference.values():
        reason += '; others are measured against it'
        raise errors.ReportedError(reason) from error
      print(f'left out: {reason}', flush=True)
      continue
    result = program.fetch(result)
    if name in reference.values():
      results[name] = result
    # What has no reference is one to itself: NaN if it says nothing.
    other = reference.get(name, name)
    program.error = relative_error(result, results.get(other, result))
    if not program.error <= tolerance:
      raise errors.ReportedError(
          f'{name} differs from {other} by {program.error:.1e} (relative; nan: '
          f'zero, or not finite), rounding by {tolerance:g}: not timed'
      )
    ready[name] = program
  timed = {n: ready[n] for n in programs if n in ready and n not in untimed}
  _time_in_turn(timed.values(), seconds)
  return timed


def environment() -> dict[str, Any]:
  """Returns what all numbers depend on: device, processor and versions."""
  device = jax.devices()[0]
  modules = {m.__name__: m.__version__ for m in (jax, jaxlib, flax)}
  return modules | {
      'device': device.device_kind,
      'devices': jax.device_count(),
      'backend': jax.default_backend(),
      'platform': device.client.platform_version,
      'cores': os.cpu_count(),
      'python': platform.python_version(),
  }
