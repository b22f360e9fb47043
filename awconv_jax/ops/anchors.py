"""Anchors over the levels of a feature pyramid.

"Feature Pyramid Networks for Object Detection",
https://arxiv.org/abs/1612.03144, section 4.1: one size for each level and
several ratios r = h / w of the same area,

  w = size / sqrt(r)    h = size * sqrt(r)

centred on column * stride and row * stride, the top left of the cell.
"""

from collections.abc import Sequence
import math

import numpy as np


def cell(
    size: float, ratios: Sequence[float], *, rounded: bool = False
) -> np.ndarray:
  """Returns the anchors of one cell, around 0.

  Args:
    size: square root of the area, in pixels.
    ratios: height over width of each.
    rounded: whether the corners are rounded to whole pixels (halves to even
      ones), as in torchvision.

  Returns:
    float32 [len(ratios), 4].
  """
  roots = np.sqrt(np.asarray(ratios, np.float32))
  half = np.stack([1 / roots, roots], -1) * np.float32(size) / 2
  corners = np.concatenate([-half, half], -1)
  return np.round(corners) if rounded else corners


def pyramid(
    canvas: tuple[int, int],
    *,
    strides: Sequence[int] = (4, 8, 16, 32, 64),
    scale: float = 8,
    sizes: Sequence[float] | None = None,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    rounded: bool = False,
) -> tuple[np.ndarray, ...]:
  """Returns the anchors of every level, none left out at the border.

  A level has ceil(H / stride) x ceil(W / stride) cells: what padded
  convolutions, and every second row and column for the last level, come to.

  Args:
    canvas: H and W, in pixels.
    strides: of each level, in pixels.
    scale: size of a level's anchors over its stride.
    sizes: of each level, in pixels, in place of scale.
    ratios: height over width.
    rounded: whether the corners of a cell's anchors are whole pixels.

  Returns:
    For each level float32 [h * w * len(ratios), 4], rows of cells first, then
    columns, then ratios: the order of a head's output [h, w, ratios].

  Raises:
    ValueError: there is not one size for each stride, or a number of pixels is
      not positive.
  """
  sizes = [scale * s for s in strides] if sizes is None else sizes
  if len(sizes) != len(strides):
    raise ValueError(
        f'sizes {tuple(sizes)} do not fit strides {tuple(strides)}: want one'
        ' for each level'
    )
  if min(*canvas, *strides, *sizes, *ratios) <= 0:
    raise ValueError(
        f'anchors of canvas {tuple(canvas)}, strides {tuple(strides)}, sizes'
        f' {tuple(sizes)}, ratios {tuple(ratios)}: want positive numbers'
    )
  levels = []
  for stride, size in zip(strides, sizes, strict=True):
    rows, columns = (
        np.arange(math.ceil(n / stride), dtype=np.float32) * stride
        for n in canvas
    )
    y, x = np.meshgrid(rows, columns, indexing='ij')
    centres = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    level = centres + cell(size, ratios, rounded=rounded)
    levels.append(level.reshape(-1, 4).astype(np.float32))
  return tuple(levels)
