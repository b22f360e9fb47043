"""Streams of any length, of which a few batches are held at a time."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import os
from typing import Any

import jax
import numpy as np

# Batches after which a few images of another shape need not wait any longer.
_PATIENCE = 8


def ahead(
    function: Callable[[Any], Any], items: Iterable[Any], number: int
) -> Iterator[Any]:
  """Yields function(item) in order, computed in threads, so many ahead."""
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    waiting = collections.deque()
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > number:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


def batches(rows: Iterable[tuple[int, Any]], size: int) -> Iterator[list[Any]]:
  """Yields lists of up to `size` rows whose images have one shape.

  Less than that for the rest, and where a few would wait for long.
  """
  waiting = {}
  for count, row in enumerate(rows, 1):
    part = waiting.setdefault(row[1]['image'].shape, [])
    part.append(row)
    if len(part) == size:
      yield waiting.pop(row[1]['image'].shape)
    elif count % (_PATIENCE * size) == 0:
      yield from waiting.values()
      waiting = {}
  yield from waiting.values()


def one_behind(
    batches: Iterable[list[Any]], run: Callable[[Any], Any]
) -> Iterator[tuple[list[Any], Any]]:
  """Yields batches, without their images, and what is computed of them.

  Meanwhile the next one is computed.
  """
  waiting = collections.deque()
  for part in batches:
    rows = [row for _, row in part]
    stacked = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
    for row in rows:
      del row['image']
    waiting.append((part, run(stacked)))
    if len(waiting) > 1:
      yield jax.device_get(waiting.popleft())
  yield from jax.device_get(list(waiting))
