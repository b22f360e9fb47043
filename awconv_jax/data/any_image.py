"""The pixels of one image as users have it: a file, Pillow's, or an array."""

import os
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from awconv_jax.data.decode import EncodedImage, read_file
from awconv_jax.errors import InputError, one_line
from awconv_jax.options import local_path

AnyImage = str | os.PathLike | Image.Image | np.ndarray
_MODES = {1: 'L', 3: 'RGB'}  # Of Pillow, by the number of channels.


def pixels_of(image: AnyImage, channels: int) -> np.ndarray:
  """Returns an image, upright, as uint8 [H, W, channels].

  Grey and colour become what is wanted, alpha is dropped, and of 16 bits the
  upper 8 are kept, all as where a data set is read.

  Args:
    image: path of a file of `decode.FORMATS`; a PIL image, turned as
      its EXIF data say; or an array uint8 [H, W] or [H, W, 1, 3 or 4], grey,
      RGB or RGBA.
    channels: 1 or 3.

  Raises:
    InputError: it is no image; the message does not name the file.
  """
  if isinstance(image, (str, os.PathLike)):
    return EncodedImage(read_file(local_path(image)), channels).pixels()
  if isinstance(image, Image.Image):
    image = _eight_bits(ImageOps.exif_transpose(image), channels)
  pixels = np.asarray(image)
  if pixels.ndim == 2:
    pixels = pixels[..., None]
  if (
      pixels.dtype != np.uint8
      or pixels.ndim != 3
      or pixels.shape[2] not in (1, 3, 4)
      or not pixels.size
  ):
    raise InputError(
        f'an image is {pixels.dtype} {list(np.shape(image))}, want uint8 '
        '[H, W] or [H, W, 1, 3 or 4] in 0..255: grey, RGB or RGBA'
    )
  pixels = pixels[..., :3]
  if channels == 1 < pixels.shape[2]:
    pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    pixels = pixels[..., None]
  # OpenCV takes no views that run backwards, such as BGR turned to RGB.
  shape = (*pixels.shape[:2], channels)
  return np.ascontiguousarray(np.broadcast_to(pixels, shape))


def _eight_bits(image: Image.Image, channels: int) -> Any:
  """Returns what Pillow has in another depth as OpenCV would read it."""
  if image.mode == 'I' or image.mode.startswith('I;16'):
    pixels = np.asarray(image)
    if pixels.size and not 0 <= pixels.min() <= pixels.max() < 2**16:
      raise InputError('an image has 32 bits, want 8 or 16')
    # Pillow's own conversion would have all that is above 255 white.
    return (pixels >> 8).astype(np.uint8)
  if image.mode == 'F':
    raise InputError('an image is float32, want 8 or 16 bits')
  return image.convert(_MODES[channels])


def name_of(image: AnyImage) -> str:
  """Returns what to call an image in a message."""
  if isinstance(image, (str, os.PathLike)):
    return one_line(os.fspath(image))
  return 'the image'
