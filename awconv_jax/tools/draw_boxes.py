"""Pictures of images with boxes, names and scores drawn on them."""

from collections.abc import Mapping, Sequence
import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from awconv_jax.errors import one_line

# Small images are enlarged to this, or the names could not be read.
LEAST_SIDE = 480
TRUTH_COLOR = (255, 255, 255)


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

  Args:
    image: uint8 [H, W, 3], on its canvas.
    one: what a task predicts for it, as of `CocoEvaluator.update`; the boxes of
      the ground truth, if there, are thin and white.
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
  font = ImageFont.load_default(size=max(12, side // 45))
  for box in one['gt_boxes'][one['gt_valid']] if 'gt_boxes' in one else ():
    x1, y1, x2, y2 = corners = _corners(box, factor)
    pen.rectangle(corners, outline=TRUTH_COLOR)
    if min(x2 - x1, y2 - y1) >= 2:  # Inside of it black, to be seen on white.
      pen.rectangle([x1 + 1, y1 + 1, x2 - 1, y2 - 1], outline=(0, 0, 0))
  shown = one['valid'] & (one['scores'] >= least_score)
  for n in np.flatnonzero(shown)[::-1]:
    label, corners = int(one['labels'][n]), _corners(one['boxes'][n], factor)
    color, name = color_of(label), one_line(names[label])
    caption = f'{name}: {one["scores"][n]:.0%}'
    pen.rectangle(corners, outline=color, width=max(2, side // 300))
    _write(picture, corners, caption, color, font)
  return np.asarray(picture)


def _corners(box: np.ndarray, factor: int) -> list[int]:
  """Returns the first and last pixels that a box holds, once enlarged."""
  x1, y1, x2, y2 = (int(round(float(c) * factor)) for c in box)
  return [x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)]


def _write(picture, corners, text, color, font) -> None:
  """Writes on a patch of colour above the box, or inside where that is out."""
  pen = ImageDraw.Draw(picture)
  width = round(pen.textlength(text, font=font)) + 4
  height = sum(font.getmetrics())
  x = max(min(corners[0], picture.width - width), 0)
  y = corners[1] - height if corners[1] >= height else max(corners[1], 0)
  pen.rectangle([x, y, x + width - 1, y + height - 1], fill=color)
  ink = (0, 0, 0) if sum(color) > 380 else (255, 255, 255)
  pen.text((x + 2, y), text, fill=ink, font=font)
