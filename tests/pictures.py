"""Images to test with, as pixels and as files."""

import io

import cv2
import numpy as np
from PIL import Image


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
  """Returns a smooth random image, uint8 [height, width, 3]."""
  coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3))
  return cv2.resize(
      coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
  )


def encode(pixels: np.ndarray, kind: str = 'PNG', mode=None, **options):
  """Returns the bytes of a file, made by Pillow.

  Args:
    pixels: uint8 [H, W, 1 or 3].
    kind: Pillow's name of the format.
    mode: Pillow's name of the colour mode to convert to first.
    **options: of the format.
  """
  image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
  file = io.BytesIO()
  (image if mode is None else image.convert(mode)).save(file, kind, **options)
  return file.getvalue()
