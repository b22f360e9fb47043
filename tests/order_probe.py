"""What a worker process must be able to load, to tell what it was given."""

import numpy as np


class Numbers:
  """A source whose records are their own numbers."""

  channels, num_classes, category_ids = 1, 10, None
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
