"""Pictures of images with boxes, names and scores drawn on them."""

from collections.abc import Mapping, Sequence
import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Small images are enlarged to this, or the names could not be read.
LEAST_SIDE = 480
TRUTH_COLOR = (255, 255, 255)
# Hues that are far apart for any two classes in succession.
_GOLDEN_RATIO = 0.6180339887


def color_of(label: int) -> tuple[int, int, int]:
  """Returns the colour of a class, the same in every picture."""
  hue = (label * _GOLDEN_RATIO) % 1
  return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.75, 0.95))


def picture(
    image: np.ndarray,
    one: Mapping[str, np.ndarray],
    names: Sequence[str],
    least_score: float,
) -> np.ndarray:
  """Draws what was found on an image, such as 'bird 97%', and the truth.

  Args:
    image: uint8 [H, W, 3], on its canvas.
    one: what a task predicts for it, as of `CocoEvaluator.update`.
    names: of the classes.
    least_score: boxes below it are left out.

  Returns:
    uint8 [H', W', 3], the image without the rest of the canvas; see `draw`.
  """
  height, width = one['image_size'].astype(int)
  shown = one['valid'] & (one['scores'] >= least_score)
  labels, scores = one['labels'][shown], one['scores'][shown]
  pairs = zip(labels, scores, strict=True)
  captions = [f'{names[label]} {100 * score:.0f}%' for label, score in pairs]
  truth = one['gt_boxes'][one['gt_valid']] if 'gt_boxes' in one else ()
  boxes = one['boxes'][shown]
  return draw(image[:height, :width], boxes, labels, captions, truth=truth)


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    captions: Sequence[str],
    *,
    truth: Sequence[np.ndarray] = (),
) -> np.ndarray:
  """Draws boxes with captions; the first lie on top.

  Args:
    image: uint8 [H, W, 3].
    boxes: float [N, 4], x1, y1, x2, y2 in pixels of the image.
    labels: [N], which give the colours.
    captions: [N].
    truth: float [M, 4], boxes of the ground truth, drawn thin and white.

  Returns:
    uint8 [H * k, W * k, 3], enlarged by a whole k where the longer side is
    below `LEAST_SIDE`.
  """
  factor = -(-LEAST_SIDE // max(image.shape[:2]))
  image = image.repeat(factor, axis=0).repeat(factor, axis=1)
  canvas = Image.fromarray(image)
  pen, side = ImageDraw.Draw(canvas), max(image.shape[:2])
  font = ImageFont.load_default(size=max(12, side // 45))
  for box in truth:
    x1, y1, x2, y2 = corners = _corners(box, factor)
    pen.rectangle(corners, outline=TRUTH_COLOR)
    if min(x2 - x1, y2 - y1) >= 2:  # Inside of it black, to be seen on white.
      pen.rectangle([x1 + 1, y1 + 1, x2 - 1, y2 - 1], outline=(0, 0, 0))
  for n in reversed(range(len(boxes))):
    corners, color = _corners(boxes[n], factor), color_of(int(labels[n]))
    pen.rectangle(corners, outline=color, width=max(2, side // 300))
    _write(canvas, corners, captions[n], color, font)
  return np.asarray(canvas)


def _corners(box: np.ndarray, factor: int) -> list[int]:
  """Returns the first and last pixels that a box holds, once enlarged."""
  x1, y1, x2, y2 = (int(round(float(c) * factor)) for c in box)
  return [x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)]


def _write(canvas, corners, text, color, font) -> None:
  """Writes on a patch of colour above the box, or inside where that is out."""
  pen = ImageDraw.Draw(canvas)
  width = round(pen.textlength(text, font=font)) + 4
  height = sum(font.getmetrics())
  x = max(min(corners[0], canvas.width - width), 0)
  y = corners[1] - height if corners[1] >= height else max(corners[1], 0)
  pen.rectangle([x, y, x + width - 1, y + height - 1], fill=color)
  ink = (0, 0, 0) if sum(color) > 380 else (255, 255, 255)
  pen.text((x + 2, y), text, fill=ink, font=font)
