"""Operations on the intensities of pixels, as Pillow's functions define them.

They are those of https://arxiv.org/abs/1805.09501, table 6, that
`awconv_jax.data.color` does not have:

  O[y, x, c] = table[c][I[y, x, c]]

but for `sharpen`, which looks at the pixels around. OpenCV and numpy take a
fraction of Pillow's time.
"""

from collections.abc import Callable

import cv2
import numpy as np

# Pillow's ImageFilter.SMOOTH.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_ALL = np.arange(256)


def auto_contrast(image: np.ndarray) -> np.ndarray:
  """Stretches each channel, uint8 [H, W, C], to the range 0..255."""
  return _look_up(image, _contrast_table)


def equalize(image: np.ndarray) -> np.ndarray:
  """Makes all intensities of a channel of uint8 [H, W, C] equally frequent."""
  return _look_up(image, _equal_table)


def invert(image: np.ndarray) -> np.ndarray:
  """Returns the negative, uint8 [H, W, C]."""
  return 255 - image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
  """Keeps the highest bits, 0 to 8; with 8 nothing changes, with 0 it is black.

  Args:
    image: uint8 [H, W, C].
    bits: number of bits to keep.
  """
  return image & np.uint8(256 - 2 ** (8 - bits))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
  """Inverts the intensities from a threshold on; with 256 nothing changes.

  Args:
    image: uint8 [H, W, C].
    threshold: lowest intensity that is inverted.
  """
  return image ^ (np.uint8(255) * (image >= threshold))


def solarize_add(image: np.ndarray, amount: int) -> np.ndarray:
  """Adds to the intensities below 128; at 255 they stop.

  Args:
    image: uint8 [H, W, C].
    amount: what is added, 0 to 128.
  """
  _, low = cv2.threshold(image, 127, 0, cv2.THRESH_TOZERO_INV)
  # The others became 0, and then no more than 128.
  more = cv2.add(low, (amount,) * 4)  # pyrefly: ignore[no-matching-overload]
  return np.maximum(image, more.reshape(image.shape))


def sharpen(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with the smoothed image; 1 is no change, 0 the smoothed one.

  Args:
    image: uint8 [H, W, C].
    factor: share of the image itself; beyond 1 it is sharpened.
  """
  kernel = (1 - factor) * _SMOOTH
  kernel[1, 1] += factor
  sharp = cv2.filter2D(image, -1, kernel).reshape(image.shape)
  # As Pillow, which smooths only where all nine pixels are there.
  for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
    sharp[edge] = image[edge]
  return sharp


def _look_up(
    image: np.ndarray, make_table: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """Replaces the intensities of each channel by the table made of it."""
  # One by one: OpenCV takes twice as long for all channels at once.
  planes = [
      cv2.LUT(plane, make_table(plane).astype(np.uint8))
      for plane in cv2.split(image)
  ]
  return cv2.merge(planes).reshape(image.shape)


def _contrast_table(plane: np.ndarray) -> np.ndarray:
  low, high, _, _ = cv2.minMaxLoc(plane)
  if low == high:
    return _ALL
  # In Pillow's order, for the same rounding.
  scale = 255.0 / (high - low)
  return np.clip(_ALL * scale + -low * scale, 0, 255)


def _equal_table(plane: np.ndarray) -> np.ndarray:
  counts = cv2.calcHist([plane], [0], None, [256], [0, 256])
  counts = counts.ravel().astype(int)
  highest = counts[np.flatnonzero(counts)[-1]]
  step = (counts.sum() - highest) // 255
  if step == 0:
    return _ALL
  below = np.cumsum(counts) - counts
  return np.minimum((below + step // 2) // step, 255)
