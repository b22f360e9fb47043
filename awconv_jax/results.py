"""What a trained network says of images; `inference` makes these."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from awconv_jax.errors import one_line

SHOWN = 5  # Of a long list, where one is shown.


def listed(shown: Sequence[str], of: Sequence[Any]) -> str:
  """Returns the first of a list, or 'none', and a sign of the others."""
  return ', '.join(shown) + ', ...' * (len(shown) < len(of)) or 'none'


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
  """What one image is: probabilities float32 [classes], and their names."""

  probabilities: np.ndarray
  classes: Sequence[str]

  @property
  def label(self) -> int:
    """The most probable class, from 0 on."""
    return int(self.probabilities.argmax())

  @property
  def name(self) -> str:
    """The name of that class."""
    return self.classes[self.label]

  @property
  def probability(self) -> float:
    """That of this class."""
    return float(self.probabilities[self.label])

  def top(self, k: int = 5) -> list[tuple[str, float]]:
    """Returns the k most probable classes, names and probabilities."""
    return [
        (self.classes[i], float(self.probabilities[i])) for i in self.best(k)
    ]

  def best(self, k: int) -> list[int]:
    """Returns their labels."""
    order = np.argsort(-self.probabilities, kind='stable')
    return order[:k].tolist()

  def __repr__(self) -> str:
    named = (f'{one_line(name)} {p:.1%}' for name, p in self.top(3))
    return f'Prediction({", ".join(named)})'


@dataclasses.dataclass(frozen=True, repr=False)
class Classes:
  """What N images are: probabilities float32 [N, classes].

  The labels int [N], from 0 on, are those of the greatest probability; and
  there are the names of their classes.
  """

  probabilities: np.ndarray
  labels: np.ndarray
  names: list[str]

  def __repr__(self) -> str:
    best = self.probabilities.max(1)
    pairs = zip(self.names[:SHOWN], best, strict=False)
    shown = [f'{one_line(name)} {p:.1%}' for name, p in pairs]
    return f'Classes({len(self.names)} images: {listed(shown, self.names)})'


@dataclasses.dataclass(frozen=True, repr=False)
class Segmented:
  """What every pixel of an image is: classes uint8 [H, W], and their names."""

  classes: np.ndarray
  names: Sequence[str]

  def shares(self) -> dict[str, float]:
    """Returns the share of pixels of each class there is, the largest first."""
    labels, counts = np.unique(self.classes, return_counts=True)
    order = np.argsort(-counts, kind='stable')
    return {
        self.names[labels[i]]: float(counts[i] / self.classes.size)
        for i in order
    }

  def __repr__(self) -> str:
    shares = self.shares()
    shown = [f'{one_line(k)} {v:.1%}' for k, v in [*shares.items()][:SHOWN]]
    height, width = self.classes.shape
    return f'Segmented({width}x{height}: {listed(shown, shares)})'


@dataclasses.dataclass(frozen=True, repr=False)
class Found:
  """What was found on an image, the best first; labels are from 0 on.

  The boxes float32 [D, 4] are x1, y1, x2, y2 in pixels of the image; there are
  as many scores float32 [D], labels int32 [D], and names of their classes. The
  size is the image's height and width.
  """

  boxes: np.ndarray
  scores: np.ndarray
  labels: np.ndarray
  names: list[str]
  size: tuple[int, int]

  def __len__(self) -> int:
    return len(self.names)

  def above(self, score: float) -> 'Found':
    """Returns those of at least such a score."""
    number = int((self.scores >= score).sum())
    arrays = (self.boxes, self.scores, self.labels, self.names)
    return Found(*(array[:number] for array in arrays), self.size)

  def __repr__(self) -> str:
    rows = zip(self.names[:SHOWN], self.scores, self.boxes, strict=False)
    shown = [
        f'{one_line(name)} {score:.0%} {box.round().astype(int).tolist()}'
        for name, score, box in rows
    ]
    return f'Found({len(self)} objects: {listed(shown, self.names)})'
