"""Anchors over the levels of a feature pyramid.

"Feature Pyramid Networks for Object Detection",
https://arxiv.org/abs/1612.03144, section 4.1: one size for each level and
several ratios r = h / w of the same area,

  w = size / sqrt(r)    h = size * sqrt(r)

centred on column * stride and row * stride, the top left of the cell.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from awconv_jax.options import PositiveFloat, PositiveInt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anchors:
  """Anchors of every level, none left out at the border.

  A level has ceil(H / stride) x ceil(W / stride) cells: what padded
  convolutions, and every second row and column for the last level, come to.

  Attributes:
    strides: of each level, in pixels.
    scale: size of a level's anchors over its stride.
    ratios: height over width.
    rounded: whether the corners of a cell's anchors are whole pixels (halves
      become even ones), as in torchvision.
  """

  strides: tuple[PositiveInt, ...] = (4, 8, 16, 32, 64)
  scale: PositiveFloat = 8.0
  ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
  rounded: bool = False

  def pyramid(self, canvas: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Returns the anchors over a canvas of H and W pixels.

    For each level float32 [h * w * len(ratios), 4], rows of cells first, then
    columns, then ratios: the order of a head's output [h, w, ratios].
    """
    roots = np.sqrt(np.asarray(self.ratios, np.float32))
    levels, shapes = [], np.stack([1 / roots, roots], -1)
    for stride in self.strides:
      rows, columns = (np.float32(np.arange(0, n, stride)) for n in canvas)
      y, x = np.meshgrid(rows, columns, indexing='ij')
      centres = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
      half = shapes * np.float32(self.scale * stride) / 2
      corners = np.concatenate([-half, half], -1)
      level = centres + (np.round(corners) if self.rounded else corners)
      levels.append(level.reshape(-1, 4).astype(np.float32))
    return tuple(levels)
