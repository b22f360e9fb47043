"""Draws scanned digits on photographs, with boxes around their ink.

Everything is a function of the random numbers: `scene(scans, labels, photos,
rng)` is one image of the data set digit_scenes.
"""

import dataclasses

import cv2
import numpy as np

# Height and width in pixels, all of which fit into 96 x 128 or its transpose.
SIZES = ((96, 128), (128, 96), (96, 112), (112, 96), (80, 128), (96, 96))
MOST_DIGITS = 5
# Height of a digit's ink in pixels, alone and in a crowd.
ALONE, CROWDED = (22, 60), (9, 14)
CROWDS = 0.08  # Share of images with a crowd.
# Opacity from which on a pixel belongs to a digit.
_INK = 0.35
_TRIES = 30


@dataclasses.dataclass(frozen=True)
class Drawn:
  """One object of a scene.

  Attributes:
    box: y0, x0, y1, x1 in pixels, tight around the ink.
    area: pixels of ink.
    label: of the digit.
    is_crowd: whether the box is around many of them.
  """

  box: tuple[int, int, int, int]
  area: int
  label: int
  is_crowd: bool = False


def scene(
    scans: np.ndarray,
    labels: np.ndarray,
    photos: list[np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[Drawn]]:
  """Draws one scene.

  Args:
    scans: ink per pixel, [n, 8, 8], values 0..16.
    labels: the digits, [n].
    photos: uint8 [H, W, 3] each, to cut the background from.
    rng: source of all random numbers.

  Returns:
    The image, uint8 [h, w, 3], and what is drawn on it.
  """
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
    alpha = opacity(scans[index], _height(ALONE, rng), rng)
    corner = _free_corner(alpha.shape, size, [d.box for d in drawn], rng)
    if corner is not None:
      box = _paint(image, alpha, corner, rng)
      drawn.append(Drawn(box, int((alpha >= _INK).sum()), int(labels[index])))
  return image.astype(np.uint8), drawn


def background(
    photo: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
  """Cuts a rectangle at random, up to 1.5 times as large as the result.

  Args:
    photo: uint8 [H, W, 3].
    size: height and width of the result.
    rng: source of all random numbers.

  Returns:
    float32 [height, width, 3], with less contrast than the photograph, in
    0..255.
  """
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


def opacity(
    scan: np.ndarray, height: int, rng: np.random.Generator
) -> np.ndarray:
  """Returns how much of the ink covers each pixel, cut tight around it.

  Args:
    scan: ink per pixel, [8, 8], values 0..16.
    height: of the ink, in pixels.
    rng: source of all random numbers; it stretches the digit a little.

  Returns:
    float32 [height, width] in 0..1.
  """
  # Enlarged twice as much as needed, so that cutting it loses no sharpness.
  large = cv2.resize(
      scan.astype(np.float32) / 16,
      (16 * 8, 16 * 8),
      interpolation=cv2.INTER_CUBIC,
  )
  large = large[_extent(large.max(1)), _extent(large.max(0))]
  width = large.shape[1] / large.shape[0] * height * rng.uniform(0.85, 1.2)
  shape = (max(round(width), 4), height)
  small = cv2.resize(large, shape, interpolation=cv2.INTER_AREA)
  return np.clip((small - 0.2) / 0.5, 0, 1)


def _extent(profile: np.ndarray) -> slice:
  inked = np.flatnonzero(profile >= 0.2 + 0.5 * _INK)
  return slice(inked[0], inked[-1] + 1)


def _height(limits: tuple[int, int], rng: np.random.Generator) -> int:
  """Draws a height, the logarithm of which is uniform."""
  low, high = np.log(limits)
  return round(float(np.exp(rng.uniform(low, high))))


def _free_corner(shape, size, taken, rng) -> tuple[int, int] | None:
  """Draws where a rectangle of `shape` overlaps with nothing, if it can."""
  room = [side - length for side, length in zip(size, shape, strict=True)]
  if min(room) < 0:
    return None
  for _ in range(_TRIES):
    top, left = (int(rng.integers(r + 1)) for r in room)
    if not any(
        top < y1 and y0 < top + shape[0] and left < x1 and x0 < left + shape[1]
        for y0, x0, y1, x1 in taken
    ):
      return top, left
  return None


def _paint(image, alpha, corner, rng) -> tuple[int, int, int, int]:
  """Paints a digit in a colour that stands out; returns the ink's box."""
  (top, left), (height, width) = corner, alpha.shape
  place = image[top : top + height, left : left + width]
  middle = place.mean()
  contrast = rng.uniform(90, 160) * (1 if middle < 128 else -1)
  color = np.clip(middle + contrast + rng.uniform(-40, 40, 3), 0, 255)
  place += alpha[..., None] * (color - place)
  inked = alpha >= _INK
  rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
  return (
      top + int(rows[0]),
      left + int(columns[0]),
      top + int(rows[-1]) + 1,
      left + int(columns[-1]) + 1,
  )


def _draw_crowd(image, scans, labels, rng) -> list[Drawn]:
  """Draws a cluster of small scans of one digit, under one box."""
  label = int(labels[rng.integers(len(labels))])
  shape = tuple(int(rng.integers(30, 46)) for _ in range(2))
  corner = _free_corner(shape, image.shape[:2], [], rng)
  boxes, area = [], 0
  for _ in range(int(rng.integers(6, 13))):
    index = rng.choice(np.flatnonzero(labels == label))
    alpha = opacity(scans[index], _height(CROWDED, rng), rng)
    inside = _free_corner(alpha.shape, shape, boxes, rng)
    if inside is not None:
      place = (corner[0] + inside[0], corner[1] + inside[1])
      _paint(image, alpha, place, rng)
      boxes.append((*inside, *np.add(inside, alpha.shape)))
      area += int((alpha >= _INK).sum())
  ends = np.array(boxes)
  low, high = ends[:, :2].min(0) + corner, ends[:, 2:].max(0) + corner
  return [Drawn((*map(int, low), *map(int, high)), area, label, True)]
