"""Images to test with, as pixels and as files."""

import io
import pathlib

import cv2
import numpy as np
from PIL import Image


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
  """Returns a smooth random image, uint8 [height, width, 3]."""
  coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3))
  method = cv2.INTER_CUBIC
  return cv2.resize(coarse.astype('u1'), (width, height), interpolation=method)


def encode(pixels: np.ndarray, kind: str = 'PNG', mode=None, **options):
  """Returns the bytes of a file of uint8 [H, W, 1 or 3].

  Format, colour mode to convert to first, and options are as Pillow's.
  """
  image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
  file = io.BytesIO()
  (image if mode is None else image.convert(mode)).save(file, kind, **options)
  return file.getvalue()


def photo(seed: int, kind: str = 'JPEG') -> bytes:
  """Returns an encoded image of 60 x 80 pixels, always the same."""
  return encode(smooth(60, 80, seed), kind)


def write_folder(directory: pathlib.Path, splits: dict[str, int]) -> None:
  """Writes a folder of images, so many per class by split."""
  for number, (split, count) in enumerate(splits.items()):
    for label, name in enumerate(('cat', 'dog')):
      folder = directory / split / name
      folder.mkdir(parents=True, exist_ok=True)
      for i in range(count):
        content = photo(1000 * number + 100 * label + i)
        (folder / f'{i}.jpg').write_bytes(content)
