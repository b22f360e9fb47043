"""Which images get a picture, and what is drawn on it."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import cv2
import numpy as np

from awconv_jax import errors
from awconv_jax.tools import draw_boxes


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Writes pictures of some of the images, evenly spread over all.

  Attributes:
    folder: where they go; it is there.
    names: of the classes.
    score: boxes below it are left out.
    number: how many pictures at most.
    total: how many images there are.
    files: paths by image id, from 1 on, for the names of the pictures; empty
      where there are none.
  """

  folder: pathlib.Path
  names: Sequence[str]
  score: float
  number: int
  total: int
  files: Sequence[str] = ()

  def write(
      self, place: int, image: np.ndarray, one: Mapping[str, Any]
  ) -> None:
    """Draws image number `place` of all, if it is one of the chosen.

    Args:
      place: 0 ... total - 1.
      image: uint8 [H, W, 3] on its canvas.
      one: what the task predicts for it, as of `CocoEvaluator.update`.
    """
    wanted = min(self.number, self.total)
    # The last image of each of so many parts of equal length.
    if (place + 1) * wanted // self.total == place * wanted // self.total:
      return
    height, width = (int(side) for side in one['image_size'])
    shown = one['valid'] & (one['scores'] >= self.score)
    labels = one['labels'][shown]
    captions = [
        draw_boxes.caption(self.names[label], score)
        for label, score in zip(labels, one['scores'][shown], strict=True)
    ]
    truth = one['gt_boxes'][one['gt_valid']] if 'gt_boxes' in one else None
    image = image[:height, :width]
    boxes = one['boxes'][shown]
    picture = draw_boxes.draw(image, boxes, labels, captions, truth=truth)
    path = self.folder / f'{self._stem(int(one["image_id"]))}.png'
    if not cv2.imwrite(str(path), picture[..., ::-1]):
      raise errors.InputError(f'cannot write {path}')

  def _stem(self, image_id: int) -> str:
    if not self.files:
      return f'{image_id:012}'  # As COCO's files are called.
    # With the number, as files in two folders may have one name.
    return f'{image_id:06}_{pathlib.Path(self.files[image_id - 1]).stem}'
