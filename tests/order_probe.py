"""What a worker process must be able to load, to tell what it was given."""

import numpy as np


class Numbers:
  """A source of N examples without pictures: each image is its number."""

  channels, num_classes, category_ids = 1, 10, None
  class_names = tuple('0123456789')

  def __init__(self, length):
    self._length = length

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    return {'image': index, 'label': index % 10}


class Probe:
  """In the place of pictures and augmentations: an 'image' of two numbers.

  The first is the example's number, the second the first that its random
  generator gives, which stands for all that follow from its seed.
  """

  def __call__(self, picture, rng):
    return np.array([picture, rng.integers(2**62)], np.int64)


def no_picture(data, channels):
  """Stands in for `decode.Picture`: there is nothing to decode."""
  del channels
  return data
