"""Mean IoU and accuracy of pixels, every pixel of the ground truth once.

IoU of a class = TP / (TP + FP + FN), over all pixels of the split together, as
PASCAL VOC defines it (http://host.robots.ox.ac.uk/pascal/VOC/, M. Everingham et
al.), but of the images as they are evaluated; mIoU is its mean over the classes
that the ground truth has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from awconv_jax.errors import InputError


class Confusion:
  """Counts pixels by class and predicted class, in integers.

  It also measures what needs no learning, predicting the most frequent class of
  the ground truth everywhere: `majority_mIoU` and `majority_accuracy`.

  Args:
    num_classes: 0..num_classes-1; another number in the ground truth does not
      count.
    names: of the classes; if None, their numbers.

  Attributes:
    matrix: int64 [classes, classes], of the ground truth and predicted.
  """

  def __init__(self, num_classes: int, names: Sequence[str] | None = None):
    self._names = [*map(str, range(num_classes) if names is None else names)]
    self.matrix = np.zeros((num_classes, num_classes), np.int64)
    self._images = 0

  def update(self, outputs: Mapping[str, np.ndarray]) -> None:
    """Adds a batch.

    Outputs are classes and gt_classes, int [B, H, W], predicted and right, and
    mask bool [B], False for rows that do not count.
    """
    rows = np.asarray(outputs['mask'], bool)
    right, found = (
        np.asarray(outputs[name])[rows].astype(np.int64)
        for name in ('gt_classes', 'classes')
    )
    number = len(self.matrix)
    counts = (0 <= right) & (right < number)
    cells = right[counts] * number + found[counts]
    self.matrix += np.bincount(cells, minlength=number**2).reshape(
        number, number
    )
    self._images += int(rows.sum())

  def compute(self) -> dict[str, float]:
    """Returns 'mIoU', 'accuracy', those of no learning, and what was counted.

    Raises:
      InputError: no pixel counts.
    """
    of_class, iou = self.matrix.sum(1), self._iou()
    there, total = of_class > 0, int(of_class.sum())
    if not total:
      raise InputError(
          'no pixel of the evaluation counts: all images are unreadable or '
          'without a class'
      )
    majority = int(of_class.max()) / total
    return {
        'mIoU': float(iou[there].mean()),
        'accuracy': int(np.trace(self.matrix)) / total,
        'majority_mIoU': majority / int(there.sum()),
        'majority_accuracy': majority,
        'num_pixels': total,
        'num_images': self._images,
    }

  def per_class(self) -> list[dict[str, Any]]:
    """Returns 'name' and 'IoU' of each class; -1 of one without any pixel."""
    there = self.matrix.sum(1) > 0
    values = np.where(there, self._iou(), -1.0).tolist()
    pairs = zip(self._names, values, strict=True)
    return [dict(name=name, IoU=value) for name, value in pairs]

  def _iou(self) -> np.ndarray:
    """Returns the IoU of each class, float64; 0 of one that is nowhere."""
    both = np.diag(self.matrix)
    union = self.matrix.sum(0) + self.matrix.sum(1) - both
    return both / np.maximum(union, 1)
