"""The objects of one image, and what a source of such images offers."""

import dataclasses
import functools
from typing import Any

import numpy as np

from awconv_jax.data.decode import EncodedImage, Size, UnreadableError

# Pixels of the original; narrower boxes are not trained on, as in mmdetection.
# COCO has some of no width at all.
_LEAST_SIDE = 1.0
# Pixels; less of a box than this inside of a crop is nothing to learn from.
_LEAST_CUT = 1e-2


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
    return Objects(*(values[chosen] for values in vars(self).values()))

  def trainable(self) -> np.ndarray:
    """Returns which are trained on, bool [n]: no crowds, nothing too narrow."""
    sides = self.boxes[:, 2:] - self.boxes[:, :2]
    return ~self.crowd & (sides >= _LEAST_SIDE).all(1)

  def resized(self, before: Size, after: Size) -> 'Objects':
    """Returns them on the image of another height and width.

    Boxes are scaled by what the rounded sizes make of height and width each.
    """
    factors = np.divide(after, before)[::-1]
    factors = np.tile(factors, 2).astype(np.float32)
    return dataclasses.replace(self, boxes=self.boxes * factors)

  def flipped(self, width: int) -> 'Objects':
    """Returns them on the mirrored image of that width."""
    x0, y0, x1, y1 = self.boxes.T
    width = np.float32(width)
    boxes = np.stack([width - x1, y0, width - x0, y1], 1)
    return dataclasses.replace(self, boxes=boxes)

  def cropped(self, corner: Size, size: Size) -> 'Objects':
    """Returns what is on the part from that top and left on, of that size."""
    boxes = self.boxes - np.float32([corner[1], corner[0]] * 2)
    boxes = boxes.clip(0, np.float32([size[1], size[0]] * 2))
    kept = (boxes[:, 2:] - boxes[:, :2] >= _LEAST_CUT).all(1)
    return dataclasses.replace(self, boxes=boxes).take(kept)


def create(boxes, labels, crowd, area) -> Objects:
  """Returns `Objects` of sequences, which may be empty."""
  return Objects(
      np.asarray(boxes, np.float32).reshape(-1, 4),
      np.asarray(labels, np.int32),
      np.asarray(crowd, bool),
      np.asarray(area, np.float32),
  )


NOTHING = create([], [], [], [])


class Source:
  """What sources of images with boxes have beyond what `data.sources` says.

  A record is `{'image': bytes, 'image_id': int, 'objects': Objects}`.
  """

  channels, faults = 3, ()
  __len__: Any
  __getitem__: Any

  @functools.cached_property
  def index(self) -> np.ndarray:
    """What must be known of all images before the first is read.

    int32 [N, 4]: height and width (0 for what cannot be read), how many objects
    are on each, and on how many of them is trained; by the files' headers.
    """
    lines = np.zeros((len(self), 4), np.int32)
    for i, line in enumerate(lines):
      try:
        record = self[i]
        image = EncodedImage(record['image'], self.channels)
      except UnreadableError:
        continue
      objects = record['objects']
      counts = len(objects), objects.trainable().sum()
      line[:] = image.height, image.width, *counts
    return lines
