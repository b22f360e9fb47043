"""Scanned digits on photographs, made of what scikit-learn brings along.

The scans are those of data/digits.py (E. Alpaydin and C. Kaynak, UCI 1998,
https://doi.org/10.24432/C50P49), the photographs 'china.jpg' and 'flower.jpg'.
There are 0 to 5 digits on an image of either orientation, some under the box
of a crowd, some images without any, and categories whose ids have gaps.

Nothing leaks from train to test: the test's scans are the last 360, mostly of
other writers, and its backgrounds are of another part of the photographs.
"""

import functools
from typing import Any

import cv2
import numpy as np

from awconv_jax.data import digits, splits
from awconv_jax.data.detection import objects, scenes

NUM_TRAIN, NUM_TEST = 1000, 200
# Of the photographs' 640 columns; the rest of them is for the test.
TRAIN_COLUMNS = 440
# With gaps, as COCO's; label 0 is the digit 0.
CATEGORY_IDS = (1, 2, 4, 7, 11, 16, 22, 29, 37, 46)


@functools.cache
def materials(train: bool) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
  """Returns the scans, their labels and the backgrounds of a split."""
  from sklearn import datasets

  scans, labels = digits.load()
  photos = datasets.load_sample_images().images
  if train:
    chosen, columns = slice(digits.NUM_TRAIN), slice(TRAIN_COLUMNS)
  else:
    chosen, columns = slice(digits.NUM_TRAIN, None), slice(TRAIN_COLUMNS, None)
  return scans[chosen], labels[chosen], [photo[:, columns] for photo in photos]


@functools.cache
def record(number: int) -> dict[str, Any]:
  """Draws scene `number`, as a record of `objects`; the test's are the last."""
  rng = np.random.default_rng(number)
  image, drawn = scenes.scene(*materials(number < NUM_TRAIN), rng)
  quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
  _, jpeg = cv2.imencode('.jpg', image[..., ::-1], quality)
  # By way of shares of the sides, as TFDS keeps boxes.
  sides = np.float32([image.shape[1], image.shape[0]] * 2)
  boxes = np.reshape([d.box for d in drawn], (-1, 4))[:, [1, 0, 3, 2]]
  return {
      'image': jpeg.tobytes(),
      # Other than the number, so that none passes for the other.
      'image_id': 100 + 3 * number,
      'objects': objects.create(
          (boxes / sides.astype(float)).astype(np.float32) * sides,
          [d.label for d in drawn],
          [d.is_crowd for d in drawn],
          [d.area for d in drawn],
      ),
  }


class DigitScenes:
  """Digits on photographs of about 96 x 128 pixels, 10 classes."""

  channels, faults = 3, ()
  num_classes, class_names = 10, tuple('0123456789')
  category_ids = CATEGORY_IDS

  def __init__(self, split: str):
    """Takes a split, 'train' or 'test', or a slice of one."""
    known = dict(
        train=range(NUM_TRAIN), test=range(NUM_TRAIN, NUM_TRAIN + NUM_TEST)
    )
    self._numbers = splits.choose(split, known, 'digit_scenes')

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return record(self._numbers[index])

  @functools.cached_property
  def index(self) -> objects.Index:
    """Sizes and counts of objects, for which all scenes are drawn."""
    return objects.Index.of(self)

  def describe(self, index: int, reason: str) -> str:
    """Returns which scene cannot be used, and why."""
    return f'scene {self._numbers[index]} cannot be read: {reason}'
