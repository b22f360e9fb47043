"""A scanned digit among fragments of others, on crops of photographs.

After 'Cluttered Translated MNIST' (V. Mnih et al., 'Recurrent Models of Visual
Attention', https://arxiv.org/abs/1406.6247, section 4.1), of the materials of
detection/digit_scenes.py, which scikit-learn brings along. The label is that of
the one whole digit. It lies anywhere, in any colour, painted over fragments
that are cut from random scans.

An image is a function of its number alone. Classes are equally frequent in a
split, and within a class so are the scans, to within one. Nothing leaks from
train to test: scans, also those of the fragments, are others, mostly of other
writers, and backgrounds are of another part of the photographs.
"""

import functools
from typing import Any

import cv2
import numpy as np

from awconv_jax.data import splits
from awconv_jax.data.detection import digit_scenes

NUM_TRAIN, NUM_TEST = 6000, 2000
SIZE = 48
# Height of the digit's ink in pixels.
HEIGHTS = (28, 36)
# Of the ink's grey to that of what it covers.
CONTRAST = (80, 160)
FRAGMENTS = (3, 6)
# Height and width of a fragment, as shares of its digit's: a half of a 1 or a 0
# is no digit any more.
PART = (0.3, 0.5)
# Standard deviation of the pixels' noise.
NOISE = 6.0
_SEED = 1406_6247


@functools.cache
def record(number: int) -> dict[str, Any]:
  """Draws image `number`, as a record of `sources`; the test's are the last."""
  image, label = draw(number)
  # Without compression, in a fifth of the time of a PNG.
  _, encoded = cv2.imencode('.ppm', image[..., ::-1])
  return {'image': encoded.tobytes(), 'label': label, 'id': number}


class ClutteredDigits:
  """One whole digit on an image of 48 x 48 pixels, 10 classes."""

  channels, label_shape, category_ids, faults = 3, (), None, ()
  class_names = tuple('0123456789')

  def __init__(self, split: str):
    """Takes a split, 'train' or 'test', or a slice of one."""
    numbers = range(NUM_TRAIN + NUM_TEST)
    known = dict(train=numbers[:NUM_TRAIN], test=numbers[NUM_TRAIN:])
    self._numbers = splits.choose(split, known, 'cluttered_digits')

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return record(self._numbers[index])

  def place(self, index: int) -> str:
    """Returns which image it is."""
    return f'image {self._numbers[index]}'


def draw(number: int) -> tuple[np.ndarray, int]:
  """Returns an image, uint8 [48, 48, 3], and the label of its whole digit."""
  train = number < NUM_TRAIN
  scans, labels, photos = digit_scenes.materials(train)
  rng = np.random.default_rng((_SEED, number))
  photo = photos[rng.integers(len(photos))]
  image = digit_scenes.background(photo, (SIZE, SIZE), rng)
  height = rng.uniform(*HEIGHTS)  # Of the digit, and of those in fragments.
  ink = functools.partial(
      digit_scenes.opacity, heights=(height, height), rng=rng, most=HEIGHTS[1]
  )
  for _ in range(rng.integers(FRAGMENTS[0], FRAGMENTS[1] + 1)):
    other = scans[rng.integers(len(scans))]
    _paint(image, _fragment(ink(other), rng), rng)
  index = whole(number, labels)
  _paint(image, ink(scans[index]), rng)
  image += rng.normal(0, NOISE, image.shape)
  return np.clip(np.rint(image), 0, 255).astype(np.uint8), int(labels[index])


def whole(number: int, labels: np.ndarray) -> int:
  """Returns which scan of the split is the whole digit, given their labels."""
  turn, label = divmod(number if number < NUM_TRAIN else number - NUM_TRAIN, 10)
  of_class = np.flatnonzero(labels == label)
  return int(of_class[turn % len(of_class)])


def _fragment(alpha, rng) -> np.ndarray:
  """Cuts a part of a digit's opacity, around some of its ink."""
  inked = np.argwhere(alpha > 0.5)
  middle = inked[rng.integers(len(inked))]
  window = []
  for side, at in zip(alpha.shape, middle, strict=True):
    length = max(round(side * rng.uniform(*PART)), 2)
    start = min(max(at - length // 2, 0), side - length)
    window.append(slice(start, start + length))
  return alpha[*window]


def _paint(image, alpha, rng) -> None:
  """Paints ink anywhere."""
  top, left = (int(rng.integers(SIZE - side + 1)) for side in alpha.shape)
  place = image[top : top + alpha.shape[0], left : left + alpha.shape[1]]
  digit_scenes.paint(place, alpha, CONTRAST, rng)
