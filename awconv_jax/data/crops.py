"""Random boxes, to be cut out or to be overwritten, and the central square.

The random crop is that of C. Szegedy et al., https://arxiv.org/abs/1409.4842,
as in all ImageNet recipes; random erasing that of Z. Zhong et al.,
https://arxiv.org/abs/1708.04896, algorithm 1.
"""

import math
from typing import Annotated, Literal

import numpy as np

from awconv_jax.data import decode
from awconv_jax.options import Interval, OneOf, ShareInterval, UnitFloat

# How most networks for ImageNet are evaluated, by `center_crop`: 'resize the
# shorter side to 256, cut 224', at once.
IMAGENET = dict(share=0.875, interpolation='bicubic')
_TRIES = 10


def random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: ShareInterval,
    ratio: Interval,
    *,
    tall: bool = False,
) -> decode.Box | None:
  """Returns a box in an image, or None where none of 10 has fitted.

  Its sides are sqrt(S * r) and sqrt(S / r).

  Args:
    height, width: of the image, in pixels.
    rng: source of the random numbers.
    area: least and greatest S, a share of the image's area, drawn uniformly.
    ratio: least and greatest r, drawn uniformly in its logarithm.
    tall: whether r is height / width, not width / height.
  """
  logarithms = math.log(ratio[0]), math.log(ratio[1])
  for _ in range(_TRIES):
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
    rng: np.random.Generator,
    *,
    size: int,
    area: ShareInterval,
    ratio: Interval,
    interpolation: Annotated[str, OneOf(decode.INTERPOLATIONS)],
) -> np.ndarray:
  """Cuts a `random_box` and resizes it to uint8 [size, size, C].

  The ratio is width / height, and `decode.INTERPOLATIONS` has the
  interpolations.
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


def center_crop(
    pixels: np.ndarray, *, size: int, share: float, interpolation: str
) -> np.ndarray:
  """Cuts the central square and resizes it to uint8 [size, size, C].

  Args:
    pixels: uint8 [H, W, C]. All of them: evaluation takes no short cuts.
    size: in pixels.
    share: side of the square over the image's shorter side.
    interpolation: a key of `decode.INTERPOLATIONS`.
  """
  height, width = pixels.shape[:2]
  side = max(round(min(height, width) * share), 1)
  top, left = (height - side) // 2, (width - side) // 2
  cut = pixels[top : top + side, left : left + side]
  return decode.resize(cut, size, interpolation)


def random_erasing(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    probability: UnitFloat,
    area: ShareInterval,
    ratio: Interval,
    fill: Literal['noise', 'zero'],
) -> np.ndarray:
  """Overwrites a random box; where none has fitted the image stays as it is.

  Args:
    image: uint8 [H, W, C].
    rng: source of the random numbers.
    probability: chance that it happens at all.
    area, ratio: of `random_box`, tall.
    fill: 'noise', bytes drawn uniformly for each pixel and channel, or 'zero'.
  """
  box = None
  if rng.random() < probability:
    box = random_box(*image.shape[:2], rng, area, ratio, tall=True)
  if box is None:
    return np.ascontiguousarray(image)
  top, left, high, wide = box
  erased = np.array(image, order='C')
  part = erased[top : top + high, left : left + wide]
  if fill == 'noise':
    # A third faster than rng.integers, and the same numbers.
    noise = np.frombuffer(rng.bytes(part.size), np.uint8)
    part[...] = noise.reshape(part.shape)
  else:
    part[...] = 0
  return erased
