"""Pictures of images with boxes, names and scores drawn on them."""

from collections.abc import Mapping, Sequence
import colorsys
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from awconv_jax.errors import one_line

# Small images are enlarged to this, or the names could not be read.
LEAST_SIDE = 480
TRUTH_COLOR = (255, 255, 255)
_BLACK = (0, 0, 0)
Patch = tuple[int, int, int, int]  # x1, y1, x2, y2, the last two outside.


def color_of(label: int) -> tuple[int, int, int]:
  """Returns the colour of a class, the same in every picture."""
  # By the golden ratio, so that those of neighbours are far apart.
  hue = (label * 0.6180339887) % 1
  return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.75, 0.95))


def draw(
    image: np.ndarray,
    one: Mapping[str, np.ndarray],
    names: Sequence[str],
    least_score: float,
) -> np.ndarray:
  """Draws what was found on an image, such as 'bird: 97%'; the best lie on top.

  No caption lies on another; where there is no room near its box, it is left
  out, that of the lower score first.

  Args:
    image: uint8 [H, W, 3], on its canvas.
    one: what a task predicts for it, as of `CocoEvaluator.update`; the boxes of
      the ground truth, if there, are thin and white, with their classes.
    names: of the classes.
    least_score: boxes below it are left out.

  Returns:
    uint8 [height * k, width * k, 3], the image without the rest of the canvas,
    enlarged by a whole k where the longer side is below `LEAST_SIDE`.
  """
  height, width = one['image_size'].astype(int)
  side = max(height, width)
  factor = -(-LEAST_SIDE // side)
  image = image[:height, :width].repeat(factor, axis=0).repeat(factor, axis=1)
  picture, side = Image.fromarray(image), side * factor
  pen = ImageDraw.Draw(picture)
  font = ImageFont.load_default(size=max(14, side // 36))
  # Captions in the order of their importance, and drawn after all boxes.
  captions = []
  there = one['gt_valid'] if 'gt_boxes' in one else np.zeros(0, bool)
  for n in np.flatnonzero(there):
    x1, y1, x2, y2 = corners = _corners(one['gt_boxes'][n], factor)
    pen.rectangle(corners, outline=TRUTH_COLOR)
    if min(x2 - x1, y2 - y1) >= 2:  # Inside of it black, to be seen on white.
      pen.rectangle([x1 + 1, y1 + 1, x2 - 1, y2 - 1], outline=_BLACK)
    if 'gt_labels' in one:
      name = one_line(names[int(one['gt_labels'][n])])
      captions.append((corners, name, TRUTH_COLOR, _BELOW))
  shown = np.flatnonzero(one['valid'] & (one['scores'] >= least_score))
  for n in shown[::-1]:
    label, corners = int(one['labels'][n]), _corners(one['boxes'][n], factor)
    color, name = color_of(label), one_line(names[label])
    pen.rectangle(corners, outline=color, width=max(2, side // 300))
    text = f'{name}: {one["scores"][n]:.0%}'
    captions.append((corners, text, color, _ABOVE))
  taken: list[Patch] = []
  for corners, text, color, places in captions[::-1]:
    patch = _free(picture, corners, text, font, places, taken)
    if patch is not None:
      taken.append(patch)
      _write(picture, patch, text, color, font)
  return np.asarray(picture)


def _corners(box: np.ndarray, factor: int) -> list[int]:
  """Returns the first and last pixels that a box holds, once enlarged."""
  x1, y1, x2, y2 = (int(round(float(c) * factor)) for c in box)
  return [x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)]


# Where a caption may stand, the best place first: its left and top, for the
# first and last pixels of a box, and the width and height of the caption.
_INSIDE = (
    lambda x1, y1, x2, y2, w, h: (x1, y1),
    lambda x1, y1, x2, y2, w, h: (x2 + 1 - w, y1),
    lambda x1, y1, x2, y2, w, h: (x1, y2 + 1 - h),
    lambda x1, y1, x2, y2, w, h: (x2 + 1 - w, y2 + 1 - h),
)
_OVER = (
    lambda x1, y1, x2, y2, w, h: (x1, y1 - h),
    lambda x1, y1, x2, y2, w, h: (x2 + 1 - w, y1 - h),
)
_UNDER = (
    lambda x1, y1, x2, y2, w, h: (x2 + 1 - w, y2 + 1),
    lambda x1, y1, x2, y2, w, h: (x1, y2 + 1),
)
_BESIDE = (
    lambda x1, y1, x2, y2, w, h: (x2 + 1, y1),
    lambda x1, y1, x2, y2, w, h: (x1 - w, y1),
    lambda x1, y1, x2, y2, w, h: (x2 + 1, y2 + 1 - h),
    lambda x1, y1, x2, y2, w, h: (x1 - w, y2 + 1 - h),
)
# Off the box, where boxes are crowded: the colour still says which it is of.
_OFF = tuple(
    lambda x1, y1, x2, y2, w, h, row=row: (
        x1,
        y1 - row * h if row > 0 else y2 + 1 - (row + 1) * h,
    )
    for row in (2, -2, 3, -3)
)
_ABOVE = _OVER + _INSIDE + _UNDER + _BESIDE + _OFF
_BELOW = _UNDER + _BESIDE + _INSIDE + _OVER + _OFF


def _free(
    picture: Image.Image,
    corners: Sequence[int],
    text: str,
    font: Any,
    places: Sequence[Any],
    taken: Sequence[Patch],
) -> Patch | None:
  """Returns the best patch on the picture that lies on no other, if any."""
  pen = ImageDraw.Draw(picture)
  width = math.ceil(pen.textlength(text, font=font)) + 4
  height = sum(font.getmetrics())
  # Of what is to be seen of the box.
  corners = np.clip(corners, 0, [n - 1 for n in picture.size * 2]).tolist()
  for place in places:
    x, y = place(*corners, width, height)
    x = max(min(x, picture.width - width), 0)
    patch = x, y, x + width, y + height
    on = 0 <= y <= picture.height - height
    if on and not any(_overlap(patch, other) for other in taken):
      return patch
  return None


def _overlap(a: Patch, b: Patch) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _write(picture, patch: Patch, text, color, font) -> None:
  """Writes on a patch of colour."""
  pen = ImageDraw.Draw(picture)
  x1, y1, x2, y2 = patch
  # White on white would have no edge.
  edge = _BLACK if color == TRUTH_COLOR else color
  pen.rectangle([x1, y1, x2 - 1, y2 - 1], fill=color, outline=edge)
  ink = _BLACK if sum(color) > 380 else (255, 255, 255)
  pen.text((x1 + 2, y1), text, fill=ink, font=font)
