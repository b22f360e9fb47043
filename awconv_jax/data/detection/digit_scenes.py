"""Scanned digits on photographs, made of what scikit-learn brings along.

The scans are those of data/digits.py (E. Alpaydin and C. Kaynak, UCI 1998,
https://doi.org/10.24432/C50P49), the photographs 'china.jpg' and 'flower.jpg'.
There are 0 to 5 digits on an image of either orientation, some under the box
of a crowd, some images without any, and categories whose ids have gaps. Boxes
lie around the ink. A scene is a function of its number alone.

Nothing leaks from train to test: the test's scans are the last 360, mostly of
other writers, and its backgrounds are of another part of the photographs.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import cv2
import numpy as np

from awconv_jax.data import digits, splits
from awconv_jax.data.detection import objects

NUM_TRAIN, NUM_TEST = 1000, 200
# Of the photographs' 640 columns; the rest of them is for the test.
TRAIN_COLUMNS = 440
# Height and width in pixels, all of which fit into 96 x 128 or its transpose.
SIZES = ((96, 128), (128, 96), (96, 112), (112, 96), (80, 128), (96, 96))
MOST_DIGITS = 5
# Height of a digit's ink in pixels, alone and in a crowd.
ALONE, CROWDED, MOST_HEIGHT = (22, 60), (9, 14), 64
CROWDS = 0.08  # Share of images with a crowd.
# Opacity from which on a pixel belongs to a digit.
_INK = 0.35


@functools.cache
def materials(train: bool) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
  """Returns the scans, their labels and the photographs of a split.

  They are ink per pixel, [n, 8, 8] in 0..16; [n]; uint8 [H, W, 3] each.
  """
  from sklearn import datasets

  scans, labels = digits.load()
  photos = datasets.load_sample_images().images
  numbers = (digits.NUM_TRAIN, TRAIN_COLUMNS)
  chosen, columns = (slice(n) if train else slice(n, None) for n in numbers)
  return scans[chosen], labels[chosen], [photo[:, columns] for photo in photos]


@functools.lru_cache(maxsize=1)  # Its record and its mask are made in turn.
def draw(number: int) -> tuple[np.ndarray, list['Drawn']]:
  """Draws scene `number`, of which the test's are the last; see `scene`."""
  rng = np.random.default_rng(number)
  return scene(*materials(number < NUM_TRAIN), rng)


@functools.cache
def record(number: int) -> dict[str, Any]:
  """Returns scene `number` as a record of `objects`."""
  image, drawn = draw(number)
  _, jpeg = cv2.imencode('.jpg', image[..., ::-1])
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


class DigitScenes(objects.Source):
  """Digits on photographs of about 96 x 128 pixels, 10 classes."""

  class_names: Sequence[str] = tuple('0123456789')
  # As COCO's, with gaps.
  category_ids: Sequence[int] | None = (1, 2, 4, 7, 11, 16, 22, 29, 37, 46)

  def __init__(self, split: str):
    """Takes a split, 'train' or 'test', or a slice of one."""
    numbers = range(NUM_TRAIN + NUM_TEST)
    known = dict(train=numbers[:NUM_TRAIN], test=numbers[NUM_TRAIN:])
    self._numbers = splits.choose(split, known, 'digit_scenes')

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return record(self._numbers[index])

  def place(self, index: int) -> str:
    """Returns which scene it is."""
    return f'scene {self._numbers[index]}'


class Drawn(NamedTuple):
  """One object of a scene."""

  box: tuple[int, int, int, int]  # y0, x0, y1, x1, tight around the ink.
  ink: np.ndarray  # Which pixels of the box are ink, bool [y1 - y0, x1 - x0].
  label: int
  is_crowd: bool = False

  @property
  def area(self) -> int:
    """Pixels of ink."""
    return int(self.ink.sum())


def scene(scans, labels, photos, rng) -> tuple[np.ndarray, list[Drawn]]:
  """Draws a scene of `materials`, uint8 [h, w, 3]; also says what is on it."""
  size = SIZES[rng.integers(len(SIZES))]
  image = background(photos[rng.integers(len(photos))], size, rng)
  drawn = []
  number = int(rng.integers(MOST_DIGITS + 1))
  # A crowd takes the place of two digits.
  if number >= 2 and rng.random() < CROWDS * (MOST_DIGITS + 1) / 4:
    number -= 2
    drawn += _draw_crowd(image, scans, labels, rng)
  for _ in range(number):
    index = rng.integers(len(scans))
    alpha = opacity(scans[index], ALONE, rng)
    corner = _free_corner(alpha.shape, size, [d.box for d in drawn], rng)
    if corner is not None:
      box = _paint(image, alpha, corner, rng)
      top, left, bottom, right = _extent(alpha >= _INK)
      ink = (alpha >= _INK)[top:bottom, left:right]
      drawn.append(Drawn(box, ink, int(labels[index])))
  return image.astype(np.uint8), drawn


def background(photo, size, rng) -> np.ndarray:
  """Cuts up to 1.5 times `size` at random, with less contrast, float32."""
  scale = rng.uniform(1.0, 1.5)
  height, width = (int(side * scale) for side in size)
  top = rng.integers(photo.shape[0] - height + 1)
  left = rng.integers(photo.shape[1] - width + 1)
  cut = photo[top : top + height, left : left + width].astype(np.float32)
  cut = cv2.resize(cut, size[::-1], interpolation=cv2.INTER_AREA)
  if rng.random() < 0.5:
    cut = cut[:, ::-1]
  mean = cut.mean((0, 1))
  return np.ascontiguousarray(mean + (cut - mean) * rng.uniform(0.4, 0.8))


def opacity(scan, heights, rng, most=MOST_HEIGHT) -> np.ndarray:
  """Returns a digit's opacity in 0..1, [height, width], stretched a little.

  The logarithm of its height is uniform, from the least to the greatest, of
  which none is above `most`.
  """
  height = round(float(np.exp(rng.uniform(*np.log(heights)))))
  # Enlarged twice as much as needed, so that cutting it loses no sharpness.
  ink = scan.astype(np.float32) / 16
  large = cv2.resize(ink, (2 * most, 2 * most), interpolation=cv2.INTER_CUBIC)
  top, left, bottom, right = _extent(large >= 0.2 + 0.5 * _INK)
  large = large[top:bottom, left:right]
  width = large.shape[1] / large.shape[0] * height * rng.uniform(0.85, 1.2)
  shape = (max(round(width), 4), height)
  small = cv2.resize(large, shape, interpolation=cv2.INTER_AREA)
  return np.clip((small - 0.2) / 0.5, 0, 1)


def _extent(inked: np.ndarray) -> tuple[int, int, int, int]:
  """Returns top, left, bottom and right of what is inked, bool [h, w]."""
  rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
  return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def _free_corner(shape, size, taken, rng) -> tuple[int, int] | None:
  """Draws where a rectangle of `shape` overlaps with nothing, if it can."""
  room = [side - length for side, length in zip(size, shape, strict=True)]
  if min(room) < 0:
    return None
  for _ in range(30):
    top, left = (int(rng.integers(r + 1)) for r in room)
    if not any(
        top < y1 and y0 < top + shape[0] and left < x1 and x0 < left + shape[1]
        for y0, x0, y1, x1 in taken
    ):
      return top, left
  return None


def paint(place, alpha, contrast, rng) -> None:
  """Covers a part of an image, [h, w, 3], by ink of that opacity, [h, w].

  Its grey is the mean of what it covers, more or less the contrast, which is
  drawn from that range.
  """
  middle = place.mean()
  change = rng.uniform(*contrast) * (1 if middle < 128 else -1)
  color = np.clip(middle + change + rng.uniform(-40, 40, 3), 0, 255)
  place += alpha[..., None] * (color - place)


def _paint(image, alpha, corner, rng) -> tuple[int, int, int, int]:
  """Paints a digit in a colour that stands out; returns the ink's box."""
  (top, left), (height, width) = corner, alpha.shape
  paint(image[top : top + height, left : left + width], alpha, (90, 160), rng)
  ends = np.add(_extent(alpha >= _INK), (top, left) * 2)
  return tuple(int(end) for end in ends)


def _draw_crowd(image, scans, labels, rng) -> list[Drawn]:
  """Draws a cluster of small scans of one digit, under one box."""
  label = int(labels[rng.integers(len(labels))])
  shape = tuple(int(rng.integers(30, 46)) for _ in range(2))
  corner = _free_corner(shape, image.shape[:2], [], rng)
  boxes, ink = [], np.zeros(shape, bool)
  for _ in range(int(rng.integers(6, 13))):
    index = rng.choice(np.flatnonzero(labels == label))
    alpha = opacity(scans[index], CROWDED, rng)
    inside = _free_corner(alpha.shape, shape, boxes, rng)
    if inside is not None:
      place = (corner[0] + inside[0], corner[1] + inside[1])
      _paint(image, alpha, place, rng)
      bottom, right = np.add(inside, alpha.shape)
      boxes.append((*inside, bottom, right))
      ink[inside[0] : bottom, inside[1] : right] = alpha >= _INK
  ends = np.array(boxes).reshape(-1, 2, 2)
  (top, left), (bottom, right) = ends[:, 0].min(0), ends[:, 1].max(0)
  box = np.add((top, left, bottom, right), corner * 2)
  ink = ink[top:bottom, left:right]
  return [Drawn(tuple(box.tolist()), ink, label, True)]
