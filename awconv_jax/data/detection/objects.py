"""The objects of one image, and what a source of such images offers.

A source has `len(source)`, `channels` (3), `num_classes`, `class_names`,
`category_ids`, `faults` (lines about what it left out; those of a
file that the user wrote) and
  source[i]: a record `{'image': bytes, 'image_id': int, 'objects': Objects}`;
    one that cannot be read raises `UnreadableError`.
  source.index: what must be known of all images before the first is read.
  source.describe(i, reason): a line that names the record.
"""

import dataclasses
from typing import Any

import numpy as np

from awconv_jax.data.decode import EncodedImage, UnreadableError

# Pixels of the original; narrower boxes are not trained on, as in mmdetection.
# COCO has some of no width at all.
_LEAST_SIDE = 1.0


@dataclasses.dataclass(frozen=True)
class Objects:
  """Boxes with what belongs to them.

  Attributes:
    boxes: float32 [n, 4], xyxy in pixels.
    labels: int32 [n], 0-based.
    crowd: bool [n], a box around many objects.
    area: float32 [n], in pixels of the original image.
  """

  boxes: np.ndarray
  labels: np.ndarray
  crowd: np.ndarray
  area: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def take(self, chosen: np.ndarray) -> 'Objects':
    """Returns the objects of an index or a mask."""
    return Objects(
        self.boxes[chosen],
        self.labels[chosen],
        self.crowd[chosen],
        self.area[chosen],
    )

  def to(self, boxes: np.ndarray) -> 'Objects':
    """Returns the same objects with other boxes."""
    return dataclasses.replace(self, boxes=boxes)

  def trainable(self) -> np.ndarray:
    """Returns which are trained on, bool [n]: no crowds, nothing too narrow."""
    sides = self.boxes[:, 2:] - self.boxes[:, :2]
    return ~self.crowd & (sides >= _LEAST_SIDE).all(1)


def create(boxes, labels, crowd, area) -> Objects:
  """Returns `Objects` of sequences, which may be empty."""
  return Objects(
      np.asarray(boxes, np.float32).reshape(-1, 4),
      np.asarray(labels, np.int32).reshape(-1),
      np.asarray(crowd, bool).reshape(-1),
      np.asarray(area, np.float32).reshape(-1),
  )


NOTHING = create([], [], [], [])


@dataclasses.dataclass(frozen=True)
class Index:
  """What must be known of all images before the first is read.

  Attributes:
    sizes: int32 [N, 2], height and width; 0 for what cannot be read.
    objects: int32 [N], how many are on each image.
    trainable: int32 [N], on how many of them is trained.
  """

  sizes: np.ndarray
  objects: np.ndarray
  trainable: np.ndarray

  @classmethod
  def of(cls, source: Any) -> 'Index':
    """Returns that of a source, by the headers of all its images."""
    lines = []
    for index in range(len(source)):
      try:
        record = source[index]
        image = EncodedImage(record['image'], source.channels)
      except UnreadableError:
        lines.append((0, 0, 0, 0))
        continue
      objects = record['objects']
      counts = len(objects), int(objects.trainable().sum())
      lines.append((image.height, image.width, *counts))
    return cls.of_table(np.array(lines, np.int32))

  @classmethod
  def of_table(cls, table: np.ndarray) -> 'Index':
    """Returns that of int32 [N, 4], as `table` gives it."""
    return cls(table[:, :2], table[:, 2], table[:, 3])

  def table(self) -> np.ndarray:
    """Returns sizes and counts as int32 [N, 4]."""
    return np.column_stack([self.sizes, self.objects, self.trainable])
