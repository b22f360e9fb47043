"""Lets the builders of TFDS run without TensorFlow.

They read and write files through `tf.io.gfile`, and some code pixels through
`tf.image`: CIFAR's are encoded, and 23 images of ImageNet are no RGB JPEGs.
COCO's names a type of it.
Most need no more of it, and that much is here, by Python, OpenCV and Pillow.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import glob
import io
import os
import shutil
import sys
import types
from typing import Any
from unittest import mock

import cv2
import numpy as np

from awconv_jax.errors import InputError


class _Names(types.SimpleNamespace):
  """Names of TensorFlow; one that is not there is said to be missing."""

  def __getattr__(self, name: str) -> Any:
    raise InputError(
        f'its builder calls {name!r} of TensorFlow, which is not installed and '
        'has no replacement here; build it by `tfds build` where it is '
        'installed, with --file_format=array_record'
    )


def _open(path: os.PathLike | str, mode: str = 'r') -> Any:
  return open(path, mode)


def decode(encoded: bytes, channels: int = 0) -> np.ndarray:
  """Returns the pixels of a PNG or JPEG, uint8 [H, W, C].

  Args:
    encoded: the file's bytes.
    channels: 1 or 3 of them; 0 is 1 for grey images and 3 for all others, so
      that CMYK becomes RGB.
  """
  from PIL import Image

  image = Image.open(io.BytesIO(encoded))
  grey = channels == 1 or (channels == 0 and image.mode in ('1', 'L'))
  pixels = np.asarray(image.convert('L' if grey else 'RGB'))
  return pixels[..., None] if grey else pixels


def encode_png(image: np.ndarray) -> bytes:
  """Returns the PNG of pixels uint8 or uint16 [H, W, C], C of 1, 3 or 4."""
  return _encode('.png', image)


def encode_jpeg(
    image: np.ndarray, format: str = '', quality: int = 95
) -> bytes:
  """Returns the JPEG of pixels uint8 [H, W, C], C of 1 or 3.

  Args:
    image: the pixels; they say by themselves whether they are grey.
    format: unused, TensorFlow's name for the colours.
    quality: up to 100.
  """
  del format
  return _encode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(suffix, image, options=()):
  to_opencv = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
  if image.shape[-1] in to_opencv:
    image = cv2.cvtColor(image, to_opencv[image.shape[-1]])
  _, encoded = cv2.imencode(suffix, image, options)
  return encoded.tobytes()


class _Never(Exception):
  """Stands for TensorFlow's own errors, which nothing raises here."""


def _stand_in() -> _Names:
  """Returns what takes the place of the module `tensorflow`."""
  gfile = _Names(
      GFile=_open,
      copy=shutil.copyfile,
      exists=os.path.exists,
      glob=glob.glob,
      isdir=os.path.isdir,
      listdir=os.listdir,
      makedirs=functools.partial(os.makedirs, exist_ok=True),
      remove=os.remove,
      walk=os.walk,
  )
  image = _Names(
      decode_image=decode,
      decode_jpeg=decode,
      decode_png=decode,
      encode_jpeg=encode_jpeg,
      encode_png=encode_png,
  )
  return _Names(
      compat=_Names(as_text=str),
      errors=_Names(ResourceExhaustedError=_Never, UnimplementedError=_Never),
      int64=np.int64,
      image=image,
      io=_Names(gfile=gfile, encode_jpeg=encode_jpeg),
  )


def _run(self, function: Callable, value: Any) -> Any:
  """In place of TFDS's, which would start a session or ask for a tensor."""
  del self
  return function(value)


@contextlib.contextmanager
def installed() -> Iterator[None]:
  """Puts it into the modules of TFDS that are loaded, and takes it out again.

  Not into `sys.modules`, where other libraries look to see whether there is a
  TensorFlow.
  """
  from tensorflow_datasets.core.utils import lazy_imports_utils, tf_utils

  lazy, stand_in = lazy_imports_utils.tensorflow, _stand_in()
  with contextlib.ExitStack() as stack:
    for module in list(sys.modules.values()):
      if getattr(module, '__dict__', {}).get('tf') is lazy:
        stack.enter_context(mock.patch.object(module, 'tf', stand_in))
    stack.enter_context(mock.patch.object(tf_utils.TFGraphRunner, 'run', _run))
    yield
