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
import math
from typing import Annotated, Any, Literal

import cv2
import numpy as np

from awconv_jax import options
from awconv_jax.data import auto_augment, decode, operations

Rng = np.random.Generator


def random_affine(
    image: np.ndarray,
    rng: Rng,
    *,
    rotation: options.NonNegativeFloat,
    translation: options.NonNegativeFloat,
    scale: options.Interval,
    shear: options.NonNegativeFloat,
) -> np.ndarray:
  """Rotates, shears, scales and shifts about the centre, bilinearly onto 0.

  Each number is drawn uniformly from its range.

  Args:
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
    image: np.ndarray, rng: Rng, *, padding: options.NonNegativeInt
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
    brightness: options.NonNegativeFloat,
    contrast: options.NonNegativeFloat,
    saturation: options.NonNegativeFloat,
    hue: Annotated[float, options.Bound(ge=0, le=0.5)],
) -> np.ndarray:
  """Changes the colours in four ways in a random order, as torchvision does.

  The idea is that of A. Howard, https://arxiv.org/abs/1312.5402.

  A grey image has no saturation or hue to change.

  Args:
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


def random_box(
    height, width, rng, area, ratio, *, tall=False
) -> decode.Box | None:
  """Returns a box in an image, or None where none of 10 has fitted.

  Its sides are sqrt(S * r) and sqrt(S / r).

  Args:
    height, width: of the image, in pixels.
    area: least and greatest S, a share of the image's area, drawn uniformly.
    ratio: least and greatest r, drawn uniformly in its logarithm.
    tall: whether r is height / width, not width / height.
  """
  logarithms = math.log(ratio[0]), math.log(ratio[1])
  for _ in range(10):
    pixels = rng.uniform(*area) * height * width
    aspect = math.exp(rng.uniform(*logarithms))
    sides = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
    high, wide = sides if tall else sides[::-1]
    if 0 < wide <= width and 0 < high <= height:
      top = int(rng.integers(0, height - high + 1))
      left = int(rng.integers(0, width - wide + 1))
      return top, left, high, wide
  return None


def random_resized_crop(
    encoded: decode.EncodedImage,
    rng: Rng,
    *,
    size: int,
    area: options.ShareInterval,
    ratio: options.Interval,
    interpolation: Annotated[str, options.OneOf(decode.INTERPOLATIONS)],
) -> np.ndarray:
  """Cuts a `random_box` and resizes it to uint8 [size, size, C].

  As in all ImageNet recipes, after C. Szegedy et al.,
  https://arxiv.org/abs/1409.4842. The ratio is width / height.
  """
  box = crop_box(encoded.height, encoded.width, rng, area, ratio)
  return encoded.crop(box, size, interpolation)


def crop_box(height, width, rng, area, ratio) -> decode.Box:
  """Returns a `random_box`; where none fits, the largest central one."""
  box = random_box(height, width, rng, area, ratio)
  if box is None:
    aspect = min(max(width / height, ratio[0]), ratio[1])
    wide = max(min(width, round(height * aspect)), 1)
    high = max(min(height, round(width / aspect)), 1)
    box = (height - high) // 2, (width - wide) // 2, high, wide
  return box


def random_erasing(
    image: np.ndarray,
    rng: Rng,
    *,
    probability: options.UnitFloat,
    area: options.ShareInterval,
    ratio: options.Interval,
    fill: Literal['noise', 'zero'],
) -> np.ndarray:
  """Overwrites a random box; where none has fitted the image stays as it is.

  Z. Zhong et al., https://arxiv.org/abs/1708.04896, algorithm 1.

  Args:
    probability: chance that it happens at all.
    area, ratio: of `random_box`, tall.
    fill: 'noise', bytes drawn uniformly for each pixel and channel, or 'zero'.
  """
  erased = np.array(image, order='C')
  box = None
  if rng.random() < probability:
    box = random_box(*image.shape[:2], rng, area, ratio, tall=True)
  if box is not None:
    top, left, high, wide = box
    part = erased[top : top + high, left : left + wide]
    # A third faster than rng.integers, and the same numbers.
    noise = rng.bytes(part.size) if fill == 'noise' else bytes(part.size)
    part[...] = np.frombuffer(noise, np.uint8).reshape(part.shape)
  return erased


AUGMENTATIONS = {
    'random_affine': random_affine,
    'pad_crop': pad_crop,
    'flip': flip,
    'color_jitter': color_jitter,
    'rand_augment': auto_augment.rand_augment,
    'auto_augment': auto_augment.auto_augment,
    'random_erasing': random_erasing,
}
CROPS = {'random_resized_crop': random_resized_crop}
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
  for name, given in steps:
    if name in CROPS:
      image = CROPS[name](encoded, rng, size=size, **given)
    else:
      image = encoded.pixels() if image is None else image
      image = AUGMENTATIONS[name](image, rng, **given)
  # Last, so that augmentations see all pixels and shapes always agree.
  image = encoded.pixels() if image is None else image
  return decode.resize(image, size, 'area')
