"""Augmentations on the host: uint8 images in, uint8 images out.

Each is `(image, rng, **options) -> image` with images uint8 [H, W, C], takes
its random numbers from `rng` alone, and has no hidden defaults: what a config
does not say, does not happen. A config lists `(name, options)` pairs, applied
in that order. (A mapping will not do: ConfigDict sorts its keys.)
"""

from collections.abc import Callable, Iterable, Mapping
import inspect

import cv2
import numpy as np

from awconv_jax.errors import InputError, unknown_name

Rng = np.random.Generator
Augmentation = Callable[[np.ndarray, Rng], np.ndarray]


def random_affine(
    image: np.ndarray,
    rng: Rng,
    *,
    rotation: float,
    translation: float,
    scale: tuple[float, float],
    shear: float,
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
  return _with_channels(moved)


def _turn(angle: float) -> np.ndarray:
  """Returns the matrix that turns (x, y) by `angle`, in radians."""
  cos, sin = np.cos(angle), np.sin(angle)
  return np.array([[cos, -sin], [sin, cos]])


def pad_crop(image: np.ndarray, rng: Rng, *, padding: int) -> np.ndarray:
  """Pads all sides by `padding` zeros and cuts the old size at random."""
  height, width = image.shape[:2]
  sides = ((padding, padding), (padding, padding), (0, 0))
  padded = np.pad(image, sides)
  top, left = rng.integers(0, 2 * padding + 1, 2)
  return padded[top : top + height, left : left + width]


def flip(image: np.ndarray, rng: Rng) -> np.ndarray:
  """Mirrors left and right, one time in two."""
  return image[:, ::-1] if rng.random() < 0.5 else image


def resize(image: np.ndarray, rng: Rng | None, *, size: int) -> np.ndarray:
  """Resizes to `size` x `size`; the aspect ratio is not kept.

  Args:
    image: uint8 [H, W, C].
    rng: not used; evaluation has none.
    size: height and width wanted, in pixels.

  Returns:
    The image, uint8 [size, size, C].
  """
  del rng
  height, width = image.shape[:2]
  if (height, width) == (size, size):
    return image
  # Averaging over areas keeps a smaller image free of aliasing.
  shrinks = size < min(height, width)
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  resized = cv2.resize(image, (size, size), interpolation=method)
  return _with_channels(resized)


def _with_channels(image: np.ndarray) -> np.ndarray:
  # OpenCV drops the channel axis of grey images.
  return image[..., None] if image.ndim == 2 else image


AUGMENTATIONS = {
    'random_affine': random_affine,
    'pad_crop': pad_crop,
    'flip': flip,
    'resize': resize,
}


class Chain:
  """Augmentations one after the other; a class so that workers can load it."""

  def __init__(self, steps: Iterable[tuple[str, Mapping[str, object]]]):
    """Checks the names and the options.

    Args:
      steps: `(name, options)` pairs in order.

    Raises:
      InputError: for unknown names and for options that cannot be used.
    """
    if isinstance(steps, Mapping):
      raise InputError(
          'augment must be a tuple of (name, options) pairs, not a mapping:'
          ' ConfigDict sorts the keys of mappings, so the order would be lost'
      )
    self._steps = [(name, dict(options)) for name, options in steps]
    for name, options in self._steps:
      _check(name, options)

  def __call__(self, image: np.ndarray, rng: Rng) -> np.ndarray:
    for name, options in self._steps:
      image = AUGMENTATIONS[name](image, rng, **options)
    return image


def _check(name: str, options: Mapping[str, object]) -> None:
  """Raises InputError unless `name` exists and can run with `options`."""
  if name not in AUGMENTATIONS:
    raise unknown_name('augmentation', name, AUGMENTATIONS)
  kinds = inspect.signature(AUGMENTATIONS[name]).parameters.values()
  known = [kind.name for kind in kinds if kind.kind is kind.KEYWORD_ONLY]
  for option in options:
    if option not in known:
      raise unknown_name(f'option of augmentation {name!r}', option, known)
  for option in known:
    if option not in options:
      raise InputError(
          f'augmentation {name!r} lacks option {option!r};'
          f' it needs: {", ".join(known)}'
      )
  try:
    # A wrong value shows on any image: better now than inside a worker.
    blank = np.zeros((32, 32, 1), np.uint8)
    AUGMENTATIONS[name](blank, np.random.default_rng(0), **options)
  except (TypeError, ValueError, cv2.error) as error:
    reason = ' '.join(str(error).split())
    raise InputError(
        f'augmentation {name!r} cannot use {dict(options)}: {reason}'
    ) from error
