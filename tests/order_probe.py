"""Order and random numbers of a stream, told by rows that are no images."""

import itertools

import numpy as np

from awconv_jax.data import batches as reading
from awconv_jax.data.order import ShuffledOrder


class Numbers:
  """A source whose records are their own numbers."""

  channels, num_classes, category_ids, faults = 1, 10, None, ()
  class_names = tuple('0123456789')

  def __init__(self, length):
    self._length = length

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    return index


def make_row(index, record, group, rng):
  """Returns a row of two numbers, that of the example and a random one.

  The latter is the first that its random generator gives, which stands for all
  that follow from its seed.
  """
  assert record == index and group == 0
  return {'row': np.array([index, rng.integers(2**62)], np.int64)}


def read(
    batch, length, *, num_workers, count, start=0, host=0, hosts=1, repeats=1
):
  """Reads batches of rows; returns (example:random) of each, a batch a line."""
  source = Numbers(length)
  reader = reading.Reader(
      None,
      train=True,
      batch_size=batch,
      seed=5,
      process_index=host,
      process_count=hosts,
      num_workers=num_workers,
      prefetch=2,
  )
  order = ShuffledOrder(length, 5, repeats)
  batches = reading.TrainBatches(reader, source, order, make_row, 7)
  batches.set_state(batches.get_state() | {'batches': start})
  rows = [b['row'].tolist() for b in itertools.islice(batches, count)]
  batches.close()
  return '\n'.join(' '.join(f'{i}:{r}' for i, r in row) for row in rows)
