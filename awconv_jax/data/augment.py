"""Augmentations on the host, by name, one after the other.

Each is `(image, rng, **options) -> image` with images uint8 [H, W, C], takes
its random numbers from `rng` alone, and has no hidden defaults: what a config
does not say, does not happen. A config lists `(name, options)` pairs, applied
in that order. (A mapping will not do: ConfigDict sorts its keys.)

A chain may begin with one of `CROPS`, which take the image before it is
decoded, so that no more of it is decoded than is needed.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import inspect
from typing import Any

import cv2
import numpy as np

from awconv_jax.data import (
    auto_augment,
    color,
    crops,
    decode,
    erasing,
    geometry,
    rand_augment,
)
from awconv_jax.errors import InputError, unknown_name

AUGMENTATIONS = {
    'random_affine': geometry.random_affine,
    'pad_crop': geometry.pad_crop,
    'flip': geometry.flip,
    'color_jitter': color.color_jitter,
    'rand_augment': rand_augment.rand_augment,
    'auto_augment': auto_augment.auto_augment,
    'random_erasing': erasing.random_erasing,
}
CROPS = {'random_resized_crop': crops.random_resized_crop}


class Chain:
  """Augmentations one after the other; a class so that workers can load it."""

  def __init__(self, steps: Iterable[tuple[str, Mapping[str, Any]]], size: int):
    """Checks the names and the options.

    Args:
      steps: `(name, options)` pairs in order.
      size: height and width of the result, in pixels.

    Raises:
      InputError: for unknown names and for options that cannot be used.
    """
    if isinstance(steps, Mapping):
      raise InputError(
          'augment must be a tuple of (name, options) pairs, not a mapping:'
          ' ConfigDict sorts the keys of mappings, so the order would be lost'
      )
    steps = [_step(step) for step in steps]
    self._size, self._crop = size, None
    if steps and steps[0][0] in CROPS:
      name, options = steps.pop(0)
      self._crop = (name, options | {'size': size})
      _check(CROPS, name, options, given=('size',))
      _try(name, options, lambda: self._first(_blank_encoded(), _rng()))
    for name, options in steps:
      if name in CROPS:
        raise InputError(f'augmentation {name!r} must come first in augment')
      _check(AUGMENTATIONS, name, options)
      # A wrong value shows on any image: better now than inside a worker.
      _try(
          name,
          options,
          lambda n=name, o=options: AUGMENTATIONS[n](_blank(), _rng(), **o),
      )
    self._steps = steps

  def __call__(
      self, encoded: decode.EncodedImage, rng: np.random.Generator
  ) -> np.ndarray:
    """Returns the augmented image, uint8 [size, size, C].

    Args:
      encoded: the image, encoded.
      rng: source of all random numbers.

    Raises:
      UnreadableError: the image cannot be decoded.
    """
    image = self._first(encoded, rng)
    for name, options in self._steps:
      image = AUGMENTATIONS[name](image, rng, **options)
    # Last, so that augmentations see all pixels and shapes always agree.
    return decode.resize(image, self._size, 'area')

  def _first(self, encoded, rng):
    if self._crop is None:
      return encoded.pixels()
    name, options = self._crop
    return CROPS[name](encoded, rng, **options)


def _step(step: Any) -> tuple[str, dict[str, Any]]:
  """Returns a name and its options, once they are such."""
  if (
      isinstance(step, (tuple, list))
      and len(step) == 2
      and isinstance(step[0], str)
      and isinstance(step[1], Mapping)
  ):
    return step[0], dict(step[1])
  raise InputError(
      f'augment holds {step!r}; want a tuple of pairs such as '
      "(('pad_crop', {'padding': 4}), ('flip', {}))"
  )


def _rng() -> np.random.Generator:
  return np.random.default_rng(0)


def _blank() -> np.ndarray:
  return np.zeros((32, 32, 1), np.uint8)


def _blank_encoded() -> decode.EncodedImage:
  _, png = cv2.imencode('.png', _blank())
  return decode.EncodedImage(png.tobytes(), 1)


def _check(
    registry: Mapping[str, Any],
    name: str,
    options: Mapping[str, Any],
    given: Collection[str] = (),
) -> None:
  """Raises InputError unless `name` exists and has these options.

  Args:
    registry: the functions by name.
    name: the one wanted.
    options: those of the config.
    given: options that are not the config's to give.
  """
  if name not in registry:
    raise unknown_name('augmentation', name, {*registry, *CROPS})
  kinds = inspect.signature(registry[name]).parameters.values()
  known = [
      kind.name
      for kind in kinds
      if kind.kind is kind.KEYWORD_ONLY and kind.name not in given
  ]
  for option in options:
    if option not in known:
      raise unknown_name(f'option of augmentation {name!r}', option, known)
  for option in known:
    if option not in options:
      raise InputError(
          f'augmentation {name!r} lacks option {option!r};'
          f' it needs: {", ".join(known)}'
      )


def _try(name: str, options: Mapping[str, Any], run: Callable) -> None:
  """Raises InputError unless the augmentation runs."""
  try:
    run()
  except (TypeError, ValueError, cv2.error) as error:
    reason = ' '.join(str(error).split())
    raise InputError(
        f'augmentation {name!r} cannot use {dict(options)}: {reason}'
    ) from error
