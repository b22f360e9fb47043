"""AutoAugment: one of 25 pairs of operations that were found by search.

E. Cubuk et al., https://arxiv.org/abs/1805.09501:

  O = op_2(op_1(I)),  each with its own probability and level

The policy for CIFAR-10 is the paper's table 7 (its appendix), and the levels 0
to 9 divide the ranges of its table 6 evenly. Two things it leaves open, as in
the authors' code (tensorflow/models, research/autoaugment): posterize and
solarize are the stronger the higher the level, and translations reach 10
pixels of CIFAR's 32 (the table's 150 are those of a larger image). From that
code, too: nothing is interpolated, and what comes from outside of the image is
of CIFAR-10's mean colour.
"""

import numpy as np

from awconv_jax.data import operations
from awconv_jax.errors import unknown_name

_FILL = (125, 123, 114)
_LAST = 9


def _nothing(share, sign):
  del share, sign


def _enhance(share, sign):
  del sign
  return 0.1 + 1.8 * share


# `(share, sign) -> value` of each operation: the level's share of 9, and +1
# or -1. Names as in `operations.OPERATIONS`.
VALUES = {
    'auto_contrast': _nothing,
    'equalize': _nothing,
    'invert': _nothing,
    'rotate': lambda share, sign: sign * 30 * share,
    'posterize': lambda share, sign: 8 - round(4 * share),
    'solarize': lambda share, sign: 256 - round(256 * share),
    'color': _enhance,
    'contrast': _enhance,
    'brightness': _enhance,
    'sharpness': _enhance,
    'shear_y': lambda share, sign: sign * 0.3 * share,
    'translate_x': lambda share, sign: sign * 10 / 32 * share,
    'translate_y': lambda share, sign: sign * 10 / 32 * share,
}
# Pairs of (operation, probability, level); that of some has no effect.
POLICIES = {
    'cifar10': (
        (('invert', 0.1, 7), ('contrast', 0.2, 6)),
        (('rotate', 0.7, 2), ('translate_x', 0.3, 9)),
        (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)),
        (('shear_y', 0.5, 8), ('translate_y', 0.7, 9)),
        (('auto_contrast', 0.5, 8), ('equalize', 0.9, 2)),
        (('shear_y', 0.2, 7), ('posterize', 0.3, 7)),
        (('color', 0.4, 3), ('brightness', 0.6, 7)),
        (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
        (('equalize', 0.6, 5), ('equalize', 0.5, 1)),
        (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
        (('color', 0.7, 7), ('translate_x', 0.5, 8)),
        (('equalize', 0.3, 7), ('auto_contrast', 0.4, 8)),
        (('translate_y', 0.4, 3), ('sharpness', 0.2, 6)),
        (('brightness', 0.9, 6), ('color', 0.2, 8)),
        (('solarize', 0.5, 2), ('invert', 0.0, 3)),
        (('equalize', 0.2, 0), ('auto_contrast', 0.6, 0)),
        (('equalize', 0.2, 8), ('equalize', 0.6, 4)),
        (('color', 0.9, 9), ('equalize', 0.6, 6)),
        (('auto_contrast', 0.8, 4), ('solarize', 0.2, 8)),
        (('brightness', 0.1, 3), ('color', 0.7, 0)),
        (('solarize', 0.4, 5), ('auto_contrast', 0.9, 3)),
        (('translate_y', 0.9, 9), ('translate_y', 0.7, 9)),
        (('auto_contrast', 0.9, 2), ('solarize', 0.8, 3)),
        (('equalize', 0.8, 8), ('invert', 0.1, 3)),
        (('translate_y', 0.7, 9), ('auto_contrast', 0.9, 1)),
    ),
}


def auto_augment(
    image: np.ndarray, rng: np.random.Generator, *, policy: str
) -> np.ndarray:
  """Applies one pair of operations of a policy, drawn evenly.

  Args:
    image: uint8 [H, W, C], C = 1 or 3.
    rng: source of the random numbers.
    policy: a key of `POLICIES`.

  Returns:
    uint8 [H, W, C].

  Raises:
    ValueError: no policy has this name.
  """
  if policy not in POLICIES:
    raise unknown_name('policy', policy, POLICIES)
  pairs = POLICIES[policy]
  pair = pairs[rng.integers(len(pairs))]
  applied = rng.random(2)
  signs = 2 * rng.integers(0, 2, 2) - 1
  for i, (name, probability, level) in enumerate(pair):
    if applied[i] < probability:
      value = VALUES[name](level / _LAST, signs[i])
      image = operations.apply(
          image, name, value, fill=_FILL, interpolation='nearest'
      )
  return np.ascontiguousarray(image)
