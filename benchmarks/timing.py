"""Timing that can be trusted: checked, warm, in turn, on changing inputs."""

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

# Off CPU, where one includes the way to the device, so many are timed together.
_LEAST_SECONDS, _MOST_TOGETHER = 0.2, 100


@dataclasses.dataclass
class Program:
  """What is compiled, with its inputs where it wants them, and what it takes.

  `run(turn, calls=1)` returns the results of the last of so many calls, with
  inputs from number `turn` on, and `fetch` makes them arrays on the host.
  """

  run: Callable[..., Any]
  fetch: Callable[[Any], Any]
  temporary_mib: float | None = None  # Of a device, beside inputs and results.
  text: str = ''  # Of the compiled program.
  error: float = 0.0  # See `relative_error`.
  first: float = 0.0  # Seconds of the call that was compared.
  # Of the others, how many took how many seconds together.
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
  """Returns the largest |a - b| / |b| of the arrays in two trees.

  It is NaN if the reference holds an array of zeros, or anything not finite.
  """

  def one(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)

  with np.errstate(invalid='ignore', divide='ignore'):
    return float(np.max(jax.tree.leaves(jax.tree.map(one, result, reference))))


def _time_in_turn(programs, seconds):
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
  """Returns programs, timed in turn after their results were compared.

  So all meet the same state of the machine. Every timed call follows one that
  is not timed, since what ran before may have filled the caches; inputs change
  from turn to turn. What took longer than `seconds` is warm by being compared.

  Args:
    programs: what compiles each, by name; 'plain' among them. What cannot be
      compiled or run here is named and left out.
    reference: by name of a program, which one its results are compared with.
    tolerance: relative difference that is rounding.
    seconds: time for each program; 0 for one timed call of each.
    untimed: names of what others are compared with, and that is all.

  Raises:
    ReportedError: a result is wrong or says nothing, or no reference can run.
  """
  ready, results = {}, {}
  for name in sorted(programs, key=lambda name: name in reference):
    try:
      program = programs[name]()
      result, program.first = program.time(0)
    except jax.errors.JaxRuntimeError as error:
      reason = f'{name} cannot run here: {str(error).strip().splitlines()[0]}'
      if name in ('plain', *reference.values()):
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
  return {m.__name__: m.__version__ for m in (jax, jaxlib, flax)} | dict(
      device=device.device_kind,
      devices=jax.device_count(),
      backend=jax.default_backend(),
      platform=device.client.platform_version,
      cores=os.cpu_count(),
      python=platform.python_version(),
  )
