"""Timing that can be trusted: warm, in turn, on changing inputs, medians."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass
class Measurement:
  """One compiled function on one kind of input.

  Attributes:
    milliseconds: median time of a call.
    temporary_mib: memory the compiled function asks for besides its arguments
      and results, in MiB.
    error: norm of the difference to the reference over its norm, the largest
      of all results; 0 for the reference itself.
    repeats: calls that were timed.
  """

  milliseconds: float
  temporary_mib: float
  error: float
  repeats: int


def relative_error(result: Any, reference: Any) -> float:
  """Returns the largest relative difference of two trees of arrays."""

  def one(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)

  return max(jax.tree.leaves(jax.tree.map(one, result, reference)))


def measure(
    functions: Mapping[str, Callable[..., Any]],
    inputs: Mapping[str, Sequence[tuple[Any, ...]]],
    *,
    seconds: float,
    check: Mapping[str, str],
) -> dict[str, Measurement]:
  """Times functions in turn, so that all meet the same state of the machine.

  Args:
    functions: by name.
    inputs: for each function several sets of arguments, of the same shapes;
      they are used in turn.
    seconds: time for each function; each is timed at least once. Every timed
      call follows one that is not timed; 0 for one call without that.
    check: by name of a function, which one its results are compared with.

  Returns:
    Measurements by name.
  """
  compiled = {
      name: jax.jit(function).lower(*inputs[name][0]).compile()
      for name, function in functions.items()
  }
  results = {}
  for name, function in compiled.items():
    result = jax.block_until_ready(function(*inputs[name][0]))
    if name in check or name in check.values():
      results[name] = jax.device_get(result)
  errors = {
      name: relative_error(results[name], results[reference])
      for name, reference in check.items()
  }
  del results
  times = {name: [] for name in compiled}
  turn = 0
  while any(not t or sum(t) < seconds for t in times.values()):
    for name, function in compiled.items():
      if times[name] and sum(times[name]) >= seconds:
        continue
      arguments = inputs[name][turn % len(inputs[name])]
      if seconds:  # What ran before may have left the caches to itself.
        jax.block_until_ready(function(*arguments))
      start = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      times[name].append(time.perf_counter() - start)
    turn += 1
  return {
      name: Measurement(
          milliseconds=1e3 * float(np.median(times[name])),
          temporary_mib=_temporary_mib(function),
          error=errors.get(name, 0.0),
          repeats=len(times[name]),
      )
      for name, function in compiled.items()
  }


def _temporary_mib(compiled) -> float:
  analysis = compiled.memory_analysis()
  return analysis.temp_size_in_bytes / 2**20 if analysis else float('nan')
