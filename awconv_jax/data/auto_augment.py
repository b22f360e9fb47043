"""AutoAugment and RandAugment: operations drawn at random, by their strengths.

AutoAugment, E. Cubuk et al., https://arxiv.org/abs/1805.09501, is one of 25
pairs of operations, each with a probability and a magnitude of its own. The
policy for CIFAR-10 is the paper's table 7 (its appendix); magnitudes 0 to 9
divide the ranges of its table 6 evenly. What it leaves open is as in the
authors' code (tensorflow/models, research/autoaugment): posterize and solarize
are the stronger the higher the magnitude, translations reach 10 pixels of
CIFAR's 32, nothing is interpolated, and what comes from outside of the image is
of CIFAR-10's mean colour.

RandAugment, E. Cubuk et al., https://arxiv.org/abs/1909.13719, is `num_ops`
operations out of 15 of about the same strength, here in the form with which
the recipes of https://arxiv.org/abs/2110.00476 were made (timm's, whose
'rand-m7-mstd0.5-inc1' is num_ops 2, magnitude 7, magnitude_std 0.5, probability
0.5, increasing). Where timm draws the interpolation, too, this one is always
linear; what comes from outside of the image is of ImageNet's mean colour.
"""

from typing import Annotated

import numpy as np

from awconv_jax.data import operations
from awconv_jax.options import Bound, OneOf, PositiveInt, UnitFloat

_CIFAR_MEAN, _IMAGENET_MEAN = (125, 123, 114), (124, 116, 104)
# Greatest magnitudes of the two.
_AUTO_MOST, _RAND_MOST = 9, 10
_ENHANCED = ('color', 'contrast', 'brightness', 'sharpness')


def _times(most):
  return lambda share, sign: sign * most * share


# `(share, sign) -> value` of each operation: the magnitude's share of the
# greatest one, and +1 or -1. Names as in `operations.OPERATIONS`, and in the
# order in which they are numbered where they are drawn.
RAND_VALUES = {
    'auto_contrast': lambda share, sign: None,
    'equalize': lambda share, sign: None,
    'invert': lambda share, sign: None,
    'rotate': _times(30),
    'posterize': lambda share, sign: int(4 * share),
    'solarize': lambda share, sign: int(256 * share),
    'solarize_add': lambda share, sign: int(110 * share),
    **dict.fromkeys(_ENHANCED, lambda share, sign: 0.1 + 1.8 * share),
    'shear_x': _times(0.3),
    'shear_y': _times(0.3),
    'translate_x': _times(0.45),
    'translate_y': _times(0.45),
}
# Those above that are strongest elsewhere than at 10, so that they are so.
INCREASING_VALUES = RAND_VALUES | {
    'posterize': lambda share, sign: 4 - int(4 * share),
    'solarize': lambda share, sign: 256 - int(256 * share),
    **dict.fromkeys(_ENHANCED, lambda share, sign: 1 + sign * 0.9 * share),
}
AUTO_VALUES = RAND_VALUES | {
    'posterize': lambda share, sign: 8 - round(4 * share),
    'solarize': lambda share, sign: 256 - round(256 * share),
    'translate_x': _times(10 / 32),
    'translate_y': _times(10 / 32),
}
# Pairs of (operation, probability, magnitude); that of some has no effect.
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
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    policy: Annotated[str, OneOf(POLICIES)],
) -> np.ndarray:
  """Applies one pair of operations of a policy, drawn evenly."""
  pairs = POLICIES[policy]
  pair = pairs[rng.integers(len(pairs))]
  applied = rng.random(2)
  signs = 2 * rng.integers(0, 2, 2) - 1
  how = dict(fill=_CIFAR_MEAN, interpolation='nearest')
  for i, (name, probability, magnitude) in enumerate(pair):
    if applied[i] < probability:
      value = AUTO_VALUES[name](magnitude / _AUTO_MOST, signs[i])
      image = operations.apply(image, name, value, **how)
  return np.ascontiguousarray(image)


def rand_augment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    num_ops: PositiveInt,
    magnitude: Annotated[float, Bound(ge=0, le=_RAND_MOST)],
    magnitude_std: Annotated[float, Bound(ge=0, le=_RAND_MOST)],
    probability: UnitFloat,
    increasing: bool,
) -> np.ndarray:
  """Applies random operations.

  Args:
    num_ops: how many operations are drawn, with replacement.
    magnitude, magnitude_std: mean and standard deviation of the normal
      distribution of each one's magnitude, which ends at 0 and 10.
    probability: chance that one drawn is applied.
    increasing: whether all operations that have a magnitude grow with it; if
      not, posterize and solarize are the stronger the lower it is, and color,
      contrast, brightness and sharpness the farther it is from 5.
  """
  values = INCREASING_VALUES if increasing else RAND_VALUES
  names = tuple(values)
  chosen = rng.integers(0, len(names), num_ops)
  applied = rng.random(num_ops) < probability
  drawn = rng.normal(magnitude, magnitude_std, num_ops)
  shares = np.clip(drawn, 0, _RAND_MOST) / _RAND_MOST
  signs = 2 * rng.integers(0, 2, num_ops) - 1
  how = dict(fill=_IMAGENET_MEAN, interpolation='linear')
  for i in np.flatnonzero(applied):
    name = names[chosen[i]]
    value = values[name](shares[i], signs[i])
    image = operations.apply(image, name, value, **how)
  return np.ascontiguousarray(image)
