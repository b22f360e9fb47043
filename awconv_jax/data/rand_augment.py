"""RandAugment: some operations out of 15, all of about the same strength.

E. Cubuk et al., https://arxiv.org/abs/1909.13719, in the form with which the
recipes of https://arxiv.org/abs/2110.00476 were made (timm's, whose
'rand-m7-mstd0.5-inc1' is num_ops 2, magnitude 7, magnitude_std 0.5,
probability 0.5, increasing):

  O = op_n(... op_1(I, level_1) ..., level_n),  level ~ N(magnitude, std)

An operation may be drawn twice, and is left out with a chance of its own.
Where timm draws the interpolation, too, this one is always linear; what comes
from outside of the image is of ImageNet's mean colour.
"""

import numpy as np

from awconv_jax.data import operations

_FILL = (124, 116, 104)
_MOST = 10


def _nothing(share, sign):
  del share, sign


def _enhance(share, sign):
  del sign
  return 0.1 + 1.8 * share


def _enhance_increasing(share, sign):
  return 1 + sign * 0.9 * share


# `(share, sign) -> value` of each operation: the level's share of 10, and +1
# or -1. Names as in `operations.OPERATIONS`.
VALUES = {
    'auto_contrast': _nothing,
    'equalize': _nothing,
    'invert': _nothing,
    'rotate': lambda share, sign: sign * 30 * share,
    'posterize': lambda share, sign: int(4 * share),
    'solarize': lambda share, sign: int(256 * share),
    'solarize_add': lambda share, sign: int(110 * share),
    'color': _enhance,
    'contrast': _enhance,
    'brightness': _enhance,
    'sharpness': _enhance,
    'shear_x': lambda share, sign: sign * 0.3 * share,
    'shear_y': lambda share, sign: sign * 0.3 * share,
    'translate_x': lambda share, sign: sign * 0.45 * share,
    'translate_y': lambda share, sign: sign * 0.45 * share,
}
# Those above that are strongest elsewhere than at 10, so that they are so.
INCREASING_VALUES = VALUES | {
    'posterize': lambda share, sign: 4 - int(4 * share),
    'solarize': lambda share, sign: 256 - int(256 * share),
    'color': _enhance_increasing,
    'contrast': _enhance_increasing,
    'brightness': _enhance_increasing,
    'sharpness': _enhance_increasing,
}


def rand_augment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    num_ops: int,
    magnitude: float,
    magnitude_std: float,
    probability: float,
    increasing: bool,
) -> np.ndarray:
  """Applies random operations.

  Args:
    image: uint8 [H, W, C], C = 1 or 3.
    rng: source of the random numbers.
    num_ops: how many operations are drawn, with replacement.
    magnitude, magnitude_std: mean and standard deviation of the normal
      distribution of their levels, which end at 0 and 10.
    probability: chance that one drawn is applied.
    increasing: whether all operations that have a level grow with it; if not,
      posterize and solarize are the stronger the lower it is, and color,
      contrast, brightness and sharpness the farther it is from 5.

  Returns:
    uint8 [H, W, C].

  Raises:
    ValueError: an option is out of its range.
  """
  _check(num_ops, magnitude, magnitude_std, probability, increasing)
  values = INCREASING_VALUES if increasing else VALUES
  names = tuple(values)
  chosen = rng.integers(0, len(names), num_ops)
  applied = rng.random(num_ops) < probability
  drawn = rng.normal(magnitude, magnitude_std, num_ops)
  shares = np.clip(drawn, 0, _MOST) / _MOST
  signs = 2 * rng.integers(0, 2, num_ops) - 1
  for i in np.flatnonzero(applied):
    name = names[chosen[i]]
    value = values[name](shares[i], signs[i])
    image = operations.apply(
        image, name, value, fill=_FILL, interpolation='linear'
    )
  return np.ascontiguousarray(image)


def _check(num_ops, magnitude, magnitude_std, probability, increasing) -> None:
  if not (isinstance(num_ops, int) and num_ops >= 1):
    raise ValueError(f'num_ops={num_ops!r} must be a whole number, at least 1')
  if not isinstance(increasing, bool):
    raise ValueError(f'increasing={increasing!r} must be True or False')
  for name, value, most in (
      ('magnitude', magnitude, _MOST),
      ('magnitude_std', magnitude_std, _MOST),
      ('probability', probability, 1),
  ):
    if not (isinstance(value, (int, float)) and 0 <= value <= most):
      raise ValueError(f'{name}={value!r} must be a number in [0, {most}]')
