"""Augmentations that move pixels: affine maps, shifted crops, mirroring."""

import cv2
import numpy as np

from awconv_jax.options import Interval, NonNegativeFloat, NonNegativeInt

Rng = np.random.Generator


def random_affine(
    image: np.ndarray,
    rng: Rng,
    *,
    rotation: NonNegativeFloat,
    translation: NonNegativeFloat,
    scale: Interval,
    shear: NonNegativeFloat,
) -> np.ndarray:
  """Rotates, shears, scales and shifts about the image's centre.

  Args:
    image: uint8 [H, W, C].
    rng: source of the five random numbers, each uniform in its range.
    rotation: largest angle in degrees, to either side.
    translation: largest shift as a fraction of width and height.
    scale: smallest and largest factor of size; 1 keeps it.
    shear: largest angle in degrees by which vertical lines are slanted.

  Returns:
    The image, uint8 [H, W, C]; bilinear, and 0 where nothing was.
  """
  height, width = image.shape[:2]
  angle = np.deg2rad(rng.uniform(-rotation, rotation))
  factor = rng.uniform(*scale)
  slant = np.tan(np.deg2rad(rng.uniform(-shear, shear)))
  shift = rng.uniform(-translation, translation, 2) * (width, height)
  matrix = factor * _turn(angle) @ np.array([[1, slant], [0, 1]])
  centre = np.array([width - 1, height - 1]) / 2
  # x -> matrix (x - centre) + centre + shift
  offset = centre + shift - matrix @ centre
  moved = cv2.warpAffine(
      image,
      np.column_stack([matrix, offset]),
      (width, height),
      flags=cv2.INTER_LINEAR,
      borderMode=cv2.BORDER_CONSTANT,
      borderValue=(0, 0, 0, 0),
  )
  # OpenCV drops the channel axis of grey images.
  return moved[..., None] if moved.ndim == 2 else moved


def _turn(angle: float) -> np.ndarray:
  """Returns the matrix that turns (x, y) by `angle`, in radians."""
  cos, sin = np.cos(angle), np.sin(angle)
  return np.array([[cos, -sin], [sin, cos]])


def pad_crop(
    image: np.ndarray, rng: Rng, *, padding: NonNegativeInt
) -> np.ndarray:
  """Pads all sides by `padding` zeros and cuts the old size at random."""
  height, width = image.shape[:2]
  sides = ((padding, padding), (padding, padding), (0, 0))
  padded = np.pad(image, sides)
  top, left = rng.integers(0, 2 * padding + 1, 2)
  return padded[top : top + height, left : left + width]


def flip(image: np.ndarray, rng: Rng) -> np.ndarray:
  """Mirrors left and right, one time in two."""
  if rng.random() >= 0.5:
    return image
  # Not a view: batching would copy it pixel by pixel, in 30 times the time.
  flipped = cv2.flip(image, 1)
  return flipped[..., None] if flipped.ndim == 2 else flipped
