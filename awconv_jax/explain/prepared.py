"""Images as a model takes them, and where on them lies what it sees."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from awconv_jax import inference
from awconv_jax.data import any_image


def prepare(
    model: inference.Model, image: any_image.AnyImage
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns the pixels of an image, and the row of a batch that they become.

  Raises:
    InputError: it is no image.
  """
  pixels = any_image.pixels_of(image, model.channels)
  return pixels, model.row(pixels)


def in_pixels(
    model: inference.Model,
    values: np.ndarray,
    row: Mapping[str, Any],
    shape: tuple[int, int],
) -> np.ndarray:
  """Spreads a map of features over the image that they are of, bilinearly.

  Args:
    model: which the features are of.
    values: float [h, w], one for every cell.
    row: of `prepare`.
    shape: H and W of the image.

  Returns:
    float32 [H, W]; NaN where the model does not look, beyond its crop.
  """
  canvas = row['image'].shape[:2]
  # Strides are rounded up, so that the last cell may reach beyond the canvas.
  cells = [-(-n // k) * k for n, k in zip(canvas, values.shape, strict=True)]
  spread = cv2.resize(np.asarray(values, np.float32), cells[::-1])
  seen = row.get('image_size', canvas)
  spread = spread[: seen[0], : seen[1]]
  if not isinstance(model, inference.Classifier):
    return cv2.resize(spread, shape[::-1])
  crop: Any = model.preparation
  side = min(shape) * crop['share']
  if crop.get('how') == 'torchvision':
    side = crop['size'] * min(shape) / round(crop['size'] / crop['share'])
  side = min(max(round(side), 1), *shape)
  top, left = ((n - side) // 2 for n in shape)
  out = np.full(shape, np.nan, np.float32)
  out[top : top + side, left : left + side] = cv2.resize(spread, (side, side))
  return out
