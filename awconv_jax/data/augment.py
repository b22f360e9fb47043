"""Augmentations on the host, by name, one after the other.

Each is `(image, rng, **options) -> image` with images uint8 [H, W, C], C = 1
or 3, takes its random numbers from `rng` alone, and has no hidden defaults:
what a config does not say, does not happen. A config lists `(name, options)`
pairs, applied in that order. (A mapping will not do: ConfigDict sorts its
keys.)

The first may be one of `CROPS`, which take the image before it is decoded, so
that no more of it is decoded than is needed.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import cv2
import numpy as np

from awconv_jax.data import auto_augment, crops, decode, operations
from awconv_jax.options import Bound, Interval, NonNegativeFloat, NonNegativeInt

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
  """Rotates, shears, scales and shifts about the centre, bilinearly onto 0.

  Args:
    image: uint8 [H, W, C].
    rng: each number is uniform in its range.
    rotation: largest angle in degrees, to either side.
    translation: largest shift as a fraction of width and height.
    scale: smallest and largest factor of size; 1 keeps it.
    shear: largest angle in degrees by which vertical lines are slanted.
  """
  height, width = image.shape[:2]
  angle = np.deg2rad(rng.uniform(-rotation, rotation))
  factor = rng.uniform(*scale)
  slant = np.tan(np.deg2rad(rng.uniform(-shear, shear)))
  shift = rng.uniform(-translation, translation, 2) * (width, height)
  cos, sin = np.cos(angle), np.sin(angle)
  turn = factor * np.array([[cos, -sin], [sin, cos]])
  matrix = turn @ np.array([[1, slant], [0, 1]])
  centre = np.array([width - 1, height - 1]) / 2
  # x -> matrix (x - centre) + centre + shift
  offset = centre + shift - matrix @ centre
  whole = np.column_stack([matrix, offset])
  return cv2.warpAffine(image, whole, (width, height)).reshape(image.shape)


def pad_crop(
    image: np.ndarray, rng: Rng, *, padding: NonNegativeInt
) -> np.ndarray:
  """Pads all sides by `padding` zeros and cuts the old size at random."""
  height, width = image.shape[:2]
  padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  top, left = rng.integers(0, 2 * padding + 1, 2)
  return padded[top : top + height, left : left + width]


def flip(image: np.ndarray, rng: Rng) -> np.ndarray:
  """Mirrors left and right, one time in two."""
  if rng.random() >= 0.5:
    return image
  # Not a view: batching would copy it pixel by pixel, in 30 times the time.
  return cv2.flip(image, 1).reshape(image.shape)


def color_jitter(
    image: np.ndarray,
    rng: Rng,
    *,
    brightness: NonNegativeFloat,
    contrast: NonNegativeFloat,
    saturation: NonNegativeFloat,
    hue: Annotated[float, Bound(ge=0, le=0.5)],
) -> np.ndarray:
  """Changes the colours in four ways in a random order, as torchvision does.

  The idea is that of A. Howard, https://arxiv.org/abs/1312.5402.

  Args:
    image: uint8 [H, W, C]; a grey one has no saturation or hue to change.
    rng: source of the random numbers.
    brightness, contrast, saturation: x for a factor of the operation of that
      name, drawn uniformly from [max(0, 1 - x), 1 + x].
    hue: h for a shift drawn uniformly from [-h, h] of the circle.
  """
  amounts = (brightness, contrast, saturation)
  values = [rng.uniform(max(0, 1 - x), 1 + x) for x in amounts]
  values.append(rng.uniform(-hue, hue))
  changes = (
      operations.brightness,
      operations.contrast,
      operations.saturation,
      operations.hue,
  )
  for i in rng.permutation(len(changes)):
    image = changes[i](image, values[i])
  return np.ascontiguousarray(image)


AUGMENTATIONS = {
    'random_affine': random_affine,
    'pad_crop': pad_crop,
    'flip': flip,
    'color_jitter': color_jitter,
    'rand_augment': auto_augment.rand_augment,
    'auto_augment': auto_augment.auto_augment,
    'random_erasing': crops.random_erasing,
}
CROPS = {'random_resized_crop': crops.random_resized_crop}
STEPS = AUGMENTATIONS | CROPS


def augmented(
    encoded: decode.EncodedImage,
    rng: Rng,
    *,
    steps: Iterable[tuple[str, Mapping[str, Any]]],
    size: int,
) -> np.ndarray:
  """Returns an image after `(name, options)` pairs, uint8 [size, size, C].

  Raises:
    UnreadableError: the image cannot be decoded.
  """
  image = None
  for name, options in steps:
    if name in CROPS:
      image = CROPS[name](encoded, rng, size=size, **options)
    else:
      image = encoded.pixels() if image is None else image
      image = AUGMENTATIONS[name](image, rng, **options)
  # Last, so that augmentations see all pixels and shapes always agree.
  image = encoded.pixels() if image is None else image
  return decode.resize(image, size, 'area')
