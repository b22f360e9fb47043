"""Augmentations on the host, by name, one after the other.

Each is `(image, rng, **options) -> image` with images uint8 [H, W, C], takes
its random numbers from `rng` alone, and has no hidden defaults: what a config
does not say, does not happen. A config lists `(name, options)` pairs, applied
in that order. (A mapping will not do: ConfigDict sorts its keys.)

A chain may begin with one of `CROPS`, which take the image before it is
decoded, so that no more of it is decoded than is needed.
"""

from collections.abc import Callable, Iterable, Mapping
import inspect
from typing import Any

import numpy as np
import pydantic

from awconv_jax.data import auto_augment, color, crops, decode, geometry
from awconv_jax.errors import InputError, look_up

AUGMENTATIONS = {
    'random_affine': geometry.random_affine,
    'pad_crop': geometry.pad_crop,
    'flip': geometry.flip,
    'color_jitter': color.color_jitter,
    'rand_augment': auto_augment.rand_augment,
    'auto_augment': auto_augment.auto_augment,
    'random_erasing': crops.random_erasing,
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
    try:
      pairs = [(name, dict(options)) for name, options in steps]
    except (TypeError, ValueError) as error:
      raise InputError(
          f'augment holds {steps!r}; want a tuple of pairs such as '
          "(('pad_crop', {'padding': 4}), ('flip', {}))"
      ) from error
    self._size, self._crop, self._steps = size, None, []
    for place, (name, options) in enumerate(pairs):
      function = look_up('augmentation', name, AUGMENTATIONS | CROPS)
      options = _options_of(name, function, options)
      if name not in CROPS:
        self._steps.append((function, options))
      elif place:
        raise InputError(f'augmentation {name!r} must come first in augment')
      else:
        self._crop = (function, options)

  def __call__(
      self, encoded: decode.EncodedImage, rng: np.random.Generator
  ) -> np.ndarray:
    """Returns the augmented image, uint8 [size, size, C].

    Args:
      encoded: the image.
      rng: source of all random numbers.

    Raises:
      UnreadableError: the image cannot be decoded.
    """
    if self._crop is None:
      image = encoded.pixels()
    else:
      crop, options = self._crop
      image = crop(encoded, rng, size=self._size, **options)
    for function, options in self._steps:
      image = function(image, rng, **options)
    # Last, so that augmentations see all pixels and shapes always agree.
    return decode.resize(image, self._size, 'area')


def _options_of(
    name: str, function: Callable[..., Any], options: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the options, if they are those that a function declares."""
  known: dict[str, Any] = {
      option.name: (option.annotation, ...)
      for option in inspect.signature(function).parameters.values()
      # What the chain gives by itself is no option.
      if option.kind is option.KEYWORD_ONLY and option.name != 'size'
  }
  strict = pydantic.ConfigDict(strict=True, extra='forbid')
  model = pydantic.create_model(name, __config__=strict, **known)
  options = {
      k: tuple(v) if isinstance(v, list) else v for k, v in options.items()
  }
  try:
    return dict(model.model_validate(options))
  except pydantic.ValidationError as error:
    faults = '; '.join(
        f'{".".join(map(str, fault["loc"]))}: {fault["msg"]}'
        for fault in error.errors()
    )
    raise InputError(
        f'augmentation {name!r} cannot use {options}: {faults}; its options: '
        + (', '.join(known) or 'none')
    ) from error
