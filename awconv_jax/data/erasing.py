"""Random erasing: a box of the image is overwritten.

Z. Zhong et al., https://arxiv.org/abs/1708.04896, algorithm 1:

  height, width = sqrt(S * r), sqrt(S / r);  O[box] = noise

S is the area of the box and r its aspect ratio. As torchvision and timm do, r
is drawn uniformly in its logarithm, so that r and 1 / r are equally likely,
and after 10 boxes that do not fit the image stays as it is.
"""

from collections.abc import Sequence
import math

import numpy as np

from awconv_jax.errors import unknown_name

_TRIES = 10


def _noise(rng, shape):
  # A third faster than rng.integers, and the same numbers.
  return np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape)


_FILLS = {'noise': _noise, 'zero': lambda rng, shape: 0}


def random_erasing(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    probability: float,
    area: Sequence[float],
    ratio: Sequence[float],
    fill: str,
) -> np.ndarray:
  """Overwrites a random box.

  Args:
    image: uint8 [H, W, C].
    rng: source of the random numbers.
    probability: chance that it happens at all.
    area: least and greatest share of the image's area, drawn uniformly.
    ratio: least and greatest height / width, drawn uniformly in its logarithm.
    fill: 'noise', bytes drawn uniformly for each pixel and channel, or 'zero'.

  Returns:
    uint8 [H, W, C].

  Raises:
    ValueError: an option is out of its range.
  """
  _check(probability, area, ratio, fill)
  box = None
  if rng.random() < probability:
    box = _random_box(image.shape[:2], rng, area, ratio)
  if box is None:
    return np.ascontiguousarray(image)
  erased = np.array(image, order='C')
  part = erased[box]
  part[...] = _FILLS[fill](rng, part.shape)
  return erased


def _random_box(size, rng, area, ratio) -> tuple[slice, slice] | None:
  """Returns rows and columns of a box, or None where none has fitted."""
  height, width = size
  logarithms = math.log(ratio[0]), math.log(ratio[1])
  for _ in range(_TRIES):
    pixels = rng.uniform(*area) * height * width
    aspect = math.exp(rng.uniform(*logarithms))
    high = round(math.sqrt(pixels * aspect))
    wide = round(math.sqrt(pixels / aspect))
    if 0 < high <= height and 0 < wide <= width:
      top = int(rng.integers(0, height - high + 1))
      left = int(rng.integers(0, width - wide + 1))
      return slice(top, top + high), slice(left, left + wide)
  return None


def _check(probability, area, ratio, fill) -> None:
  if not (isinstance(probability, (int, float)) and 0 <= probability <= 1):
    raise ValueError(f'probability={probability!r} must be a number in [0, 1]')
  _check_pair('area', area, 1, 'above 0 and at most 1')
  _check_pair('ratio', ratio, math.inf, 'above 0 and finite')
  if fill not in _FILLS:
    raise unknown_name('fill', fill, _FILLS)


def _check_pair(name, pair, most, words) -> None:
  # A config gives a tuple or a list.
  pair = tuple(pair) if isinstance(pair, (tuple, list)) else pair
  numbers = isinstance(pair, tuple) and all(
      isinstance(value, (int, float)) and math.isfinite(value) for value in pair
  )
  if not (numbers and len(pair) == 2 and 0 < pair[0] <= pair[1] <= most):
    raise ValueError(f'{name}={pair!r} must be two numbers in order, {words}')
