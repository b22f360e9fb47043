"""Operations on images, as Pillow's functions define them.

Those that AutoAugment and RandAugment choose from by name,
https://arxiv.org/abs/1805.09501, table 6, without those that need a second
image or erase a part; and a turn of the hue. An image is uint8 [H, W, C] with
C = 1 or 3, and so is the result; the image is not changed. An operation
changes intensities, or it takes each pixel from where a matrix M points to:

  O[y, x] = f(I[y, x])    or    O[y, x] = I[M (x, y, 1)]

`brightness`, `contrast`, `saturation` and `sharpness` blend with a degenerate
image D by a factor f, of which 1 is no change:

  O = f * I + (1 - f) * D

They round to the nearest intensity, where Pillow cuts off the fraction.
OpenCV and numpy take a fraction of Pillow's time.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

# Shares of red, green and blue in grey (ITU-R BT.601).
_GREY = np.array([0.299, 0.587, 0.114])
# Pillow's ImageFilter.SMOOTH.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_ALL = np.arange(256)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with black."""
  if factor == 1:
    return image
  return cv2.convertScaleAbs(image, alpha=factor).reshape(image.shape)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with the mean grey of the whole image."""
  if factor == 1:
    return image
  means = cv2.mean(image)
  grey = means[0] if image.shape[2] == 1 else np.dot(_GREY, means[:3])
  blended = cv2.addWeighted(image, factor, image, 0, (1 - factor) * grey)
  return blended.reshape(image.shape)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with the grey version of the image; a grey one stays as it is."""
  if factor == 1 or image.shape[2] == 1:
    return image
  # One matrix over the channels: those of O from those of I.
  return cv2.transform(image, factor * np.eye(3) + (1 - factor) * _GREY)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with the smoothed image, but for the outermost pixels."""
  kernel = (1 - factor) * _SMOOTH
  kernel[1, 1] += factor
  sharp = cv2.filter2D(image, -1, kernel).reshape(image.shape)
  # As Pillow, which smooths only where all nine pixels are there.
  for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
    sharp[edge] = image[edge]
  return sharp


def hue(image: np.ndarray, shift: float) -> np.ndarray:
  """Turns the hue by a share of the circle in [-1, 1]; grey has none."""
  if shift == 0 or image.shape[2] == 1:
    return image
  # In float32: OpenCV's HSV in bytes is off by up to 8 there and back.
  # In place: new memory for each step takes longer than the steps.
  pixels = image.astype(np.float32)
  pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV, dst=pixels)
  # Not below 0, where the way back mistakes some; beyond a turn it wraps.
  pixels[..., 0] += 360 * (shift % 1)
  pixels = cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB, dst=pixels)
  return cv2.convertScaleAbs(pixels)  # Rounds.


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
  """Keeps the highest bits, 0 to 8: with 8 nothing changes, 0 is black."""
  return image & np.uint8(256 - 2 ** (8 - bits))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
  """Inverts the intensities from a threshold, 0 to 256, on."""
  return image ^ (np.uint8(255) * (image >= threshold))


def solarize_add(image: np.ndarray, amount: int) -> np.ndarray:
  """Adds 0 to 128 to the intensities below 128; at 255 they stop."""
  _, low = cv2.threshold(image, 127, 0, cv2.THRESH_TOZERO_INV)
  # The others became 0, and then no more than 128.
  more = cv2.add(low, (amount,) * 4)  # pyrefly: ignore[no-matching-overload]
  return np.maximum(image, more.reshape(image.shape))


def _stretching(plane: np.ndarray) -> np.ndarray:
  """Returns the table that stretches a channel to the range 0..255."""
  low, high, _, _ = cv2.minMaxLoc(plane)
  if low == high:
    return _ALL
  # In Pillow's order, for the same rounding.
  scale = 255.0 / (high - low)
  return np.clip(_ALL * scale + -low * scale, 0, 255)


def _equalizing(plane: np.ndarray) -> np.ndarray:
  """Returns the table that makes all intensities equally frequent."""
  counts = cv2.calcHist([plane], [0], None, [256], [0, 256])
  counts = counts.ravel().astype(int)
  highest = counts[np.flatnonzero(counts)[-1]]
  step = (counts.sum() - highest) // 255
  if step == 0:
    return _ALL
  below = np.cumsum(counts) - counts
  return np.minimum((below + step // 2) // step, 255)


def _looked_up(image: np.ndarray, table: Callable[..., Any]) -> np.ndarray:
  """Replaces the intensities of each channel by the table made of it."""
  # One by one: OpenCV takes twice as long for all channels at once.
  planes = [
      cv2.LUT(plane, table(plane).astype(np.uint8))
      for plane in cv2.split(image)
  ]
  return cv2.merge(planes).reshape(image.shape)


# `(image, value) -> image`.
_INTENSITIES = {
    'auto_contrast': lambda image, value: _looked_up(image, _stretching),
    'equalize': lambda image, value: _looked_up(image, _equalizing),
    'invert': lambda image, value: 255 - image,
    'posterize': posterize,
    'solarize': solarize,
    'solarize_add': solarize_add,
    'color': saturation,
    'contrast': contrast,
    'brightness': brightness,
    'sharpness': sharpness,
}


def _rotation(value, width, height):
  """By an angle in degrees, anticlockwise about the image's centre."""
  cos, sin = np.cos(np.deg2rad(value)), np.sin(np.deg2rad(value))
  x, y = width / 2, height / 2
  return [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]


# `(value, width, height) -> M`, from a place in the result to one in the
# image. Both are measured from the upper left corner of the upper left pixel,
# as Pillow does, whose centre is (0.5, 0.5). Shears take x per y (y per x),
# translations a share of the side, to the left and up.
_MATRICES = {
    'rotate': _rotation,
    'shear_x': lambda value, width, height: [[1, value, 0], [0, 1, 0]],
    'shear_y': lambda value, width, height: [[1, 0, 0], [value, 1, 0]],
    'translate_x': lambda value, width, _: [[1, 0, value * width], [0, 1, 0]],
    'translate_y': lambda value, _, height: [[1, 0, 0], [0, 1, value * height]],
}
OPERATIONS = (*_INTENSITIES, *_MATRICES)
_INTERPOLATIONS = {'nearest': cv2.INTER_NEAREST, 'linear': cv2.INTER_LINEAR}


def apply(
    image: np.ndarray,
    name: str,
    value: float | None,
    *,
    fill: tuple[int, int, int],
    interpolation: str,
) -> np.ndarray:
  """Returns the image after one of `OPERATIONS`.

  Args:
    name: of the operation.
    value: in the units given above; None for those without.
    fill: red, green and blue of what comes from outside, or the grey of them.
    interpolation: between pixels, 'nearest' or 'linear'.
  """
  if name in _INTENSITIES:
    return _INTENSITIES[name](image, value)
  height, width, channels = image.shape
  matrix = np.array(_MATRICES[name](value, width, height), np.float64)
  # OpenCV measures from the centre of the upper left pixel.
  matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
  moved = cv2.warpAffine(
      image,
      matrix,
      (width, height),
      flags=_INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP,
      borderValue=fill if channels == 3 else (round(np.dot(_GREY, fill)),),
  )
  # OpenCV drops the channel axis of grey images.
  return moved.reshape(image.shape)
