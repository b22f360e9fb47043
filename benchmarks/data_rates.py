"""Measures pipelines and their consumers in turn, so that all drift alike."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
import time
from typing import Any

import jax
import numpy as np

from benchmarks import data_memory, data_readers

ROUNDS = 5
# Calls of a consumer alone, of which the median is taken.
_CALLS = 5


@dataclasses.dataclass
class Case:
  """A pipeline and what takes its batches.

  Attributes:
    pipeline: where batches come from.
    consumer_name: what takes them.
    consumer: `batch -> what can be waited for`; see `data_consumers`.
    batch: one to call the consumer with.
  """

  pipeline: data_readers.Pipeline
  consumer_name: str
  consumer: Callable[[Any], Any]
  batch: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Seen:
  """What was seen of a case in one round.

  Attributes:
    batches_per_second: taken and computed.
    waited: share of the time in which there was no batch to go on with, as
      'train/data_wait' of the train loop.
    grown_mib: growth of this process since before the pipeline was opened,
      and the workers; None where it cannot be told.
    worker_mib: mean memory of the workers; None without any.
  """

  batches_per_second: float
  waited: float
  grown_mib: float | None
  worker_mib: float | None


def _consume(
    batches: Iterator[Any],
    consumer: Callable[[Any], Any],
    *,
    seconds: float,
    least: int,
) -> tuple[int, float, float]:
  """Takes batches for a time, and at least some; two are under way at most.

  Returns:
    How many, the seconds it took, and those in which none was there.
  """
  number, waited, newest = 0, 0.0, None
  start = time.monotonic()
  while number < least or time.monotonic() - start < seconds:
    before = time.monotonic()
    batch = next(batches)
    waited += time.monotonic() - before
    under_way = consumer(batch)
    # As in the train loop: one computing, one about to.
    jax.block_until_ready(newest)
    newest = under_way
    number += 1
  jax.block_until_ready(newest)
  return number, time.monotonic() - start, waited


def _round(case: Case, seconds: float) -> Seen:
  data_memory.give_back()
  before = data_memory.total_mib()
  batches = case.pipeline.open()
  try:
    # What was made while nobody took it is not counted, and tf.data adjusts
    # its threads meanwhile.
    warm_up = dict(seconds=seconds / 2, least=2 * case.pipeline.ahead)
    _consume(batches, case.consumer, **warm_up)
    number, took, waited = _consume(
        batches, case.consumer, seconds=seconds, least=2
    )
    workers = data_memory.workers_mib()
    after = data_memory.total_mib()
  finally:
    batches.close()
  return Seen(
      batches_per_second=number / took,
      waited=waited / took,
      grown_mib=None if None in (before, after) else after - before,
      worker_mib=float(np.mean(workers)) if workers else None,
  )


def measure(cases: Sequence[Case], seconds: float) -> list[list[Seen]]:
  """Returns what was seen of every case, in each of the rounds.

  Args:
    cases: measured in turn, in every round from the start.
    seconds: time for each case in all rounds; half as much goes before, for
      warming up.
  """
  seen = [[] for _ in cases]
  for _, (case, found) in itertools.product(
      range(ROUNDS), list(zip(cases, seen, strict=True))
  ):
    found.append(_round(case, seconds / ROUNDS))
  return seen


def milliseconds(case: Case) -> float:
  """Returns the median time of the consumer alone, with a batch at hand."""
  times = []
  for _ in range(_CALLS):
    start = time.monotonic()
    jax.block_until_ready(case.consumer(case.batch))
    times.append(time.monotonic() - start)
  return 1e3 * float(np.median(times))
