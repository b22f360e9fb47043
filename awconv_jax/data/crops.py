"""Crops that bring images to size: at random in training, central in tests.

The random one is that of C. Szegedy et al., https://arxiv.org/abs/1409.4842,
with the ranges and the fallback that all ImageNet recipes share.
"""

from collections.abc import Sequence
import math

import numpy as np

from awconv_jax.data import decode
from awconv_jax.errors import unknown_name

_TRIES = 10


def random_resized_crop(
    encoded: decode.EncodedImage,
    rng: np.random.Generator,
    *,
    size: int,
    area: Sequence[float],
    ratio: Sequence[float],
    interpolation: str,
) -> np.ndarray:
  """Cuts a box of random area and aspect ratio, and resizes it.

  Args:
    encoded: the image, not decoded yet.
    rng: source of the random numbers.
    size: height and width of the result, in pixels.
    area: least and greatest share of the image's area, drawn uniformly.
    ratio: least and greatest width / height, drawn uniformly in its logarithm.
    interpolation: a key of `decode.INTERPOLATIONS`.

  Returns:
    uint8 [size, size, C].
  """
  _check_interpolation(interpolation)
  _check_range('area', area, 1)
  _check_range('ratio', ratio, math.inf)
  box = _random_box(encoded.height, encoded.width, rng, area, ratio)
  return encoded.crop(box, size, interpolation)


def _check_range(name: str, pair: Sequence[float], most: float) -> None:
  """Raises ValueError unless the pair is (least, greatest) in (0, most]."""
  numbers = isinstance(pair, Sequence) and len(pair) == 2
  if not numbers or not 0 < pair[0] <= pair[1] <= most:
    raise ValueError(
        f'{name}={pair!r} must be two numbers, above 0 and in order'
        + (', and at most 1' if most == 1 else '')
    )


def _random_box(height, width, rng, area, ratio) -> decode.Box:
  logarithms = math.log(ratio[0]), math.log(ratio[1])
  for _ in range(_TRIES):
    pixels = rng.uniform(*area) * height * width
    aspect = math.exp(rng.uniform(*logarithms))
    wide = round(math.sqrt(pixels * aspect))
    high = round(math.sqrt(pixels / aspect))
    if 0 < wide <= width and 0 < high <= height:
      top = int(rng.integers(0, height - high + 1))
      left = int(rng.integers(0, width - wide + 1))
      return top, left, high, wide
  # The largest central box whose aspect ratio is in the range.
  aspect = min(max(width / height, ratio[0]), ratio[1])
  wide = max(min(width, round(height * aspect)), 1)
  high = max(min(height, round(width / aspect)), 1)
  return (height - high) // 2, (width - wide) // 2, high, wide


def center_crop(
    encoded: decode.EncodedImage, *, size: int, share: float, interpolation: str
) -> np.ndarray:
  """Cuts the central square, and resizes it.

  Args:
    encoded: the image, not decoded yet.
    size: height and width of the result, in pixels.
    share: side of the square over the image's shorter side. 0.875 is the
      usual 'resize the shorter side to 256, cut 224', at once.
    interpolation: a key of `decode.INTERPOLATIONS`.

  Returns:
    uint8 [size, size, C].
  """
  side = max(round(min(encoded.height, encoded.width) * share), 1)
  top, left = (encoded.height - side) // 2, (encoded.width - side) // 2
  # By way of all pixels: evaluation takes no short cuts.
  cut = encoded.pixels()[top : top + side, left : left + side]
  return decode.resize(cut, size, interpolation)


def _check_interpolation(name: str) -> None:
  if name not in decode.INTERPOLATIONS:
    raise unknown_name('interpolation', name, decode.INTERPOLATIONS)
