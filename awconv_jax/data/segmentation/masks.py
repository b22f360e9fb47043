"""The mask of one image, and what a source of images with masks offers."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import functools
import io
from typing import Any, BinaryIO

import cv2
import numpy as np

from awconv_jax.data import decode
from awconv_jax.data.decode import Size, UnreadableError
from awconv_jax.errors import InputError

IGNORE = 255  # The class of pixels that do not count.
_REMEDY = 'save it as a PNG with one number a pixel, grey or of a palette'
# The kind of a PNG's pixels and their bits, https://www.w3.org/TR/png-3/#11IHDR
_GREY, _PALETTE, _KIND, _BITS = 0, 3, 25, 24
_KINDS = {_GREY: 'grey', 2: 'RGB', 4: 'grey with alpha', 6: 'RGBA'}


@dataclasses.dataclass(frozen=True)
class Mask:
  """The class of every pixel, uint8 [H, W], or IGNORE."""

  classes: np.ndarray

  def resized(self, before: Size, after: Size) -> 'Mask':
    """Returns that of the image of another size, by the nearest pixel."""
    return self if before == after else Mask(nearest(self.classes, after))

  def flipped(self, width: int) -> 'Mask':
    """Returns that of the mirrored image."""
    del width
    return Mask(self.classes[:, ::-1])

  def cropped(self, corner: Size, size: Size) -> 'Mask':
    """Returns that of the part from that top and left on, of that size."""
    (top, left), (height, width) = corner, size
    return Mask(self.classes[top : top + height, left : left + width])

  def on(self, canvas: Size) -> np.ndarray:
    """Returns the classes at the upper left of a canvas of IGNORE."""
    out = np.full(canvas, IGNORE, np.uint8)
    out[: self.classes.shape[0], : self.classes.shape[1]] = self.classes
    return out


def nearest(classes: np.ndarray, size: Size) -> np.ndarray:
  """Resizes uint8 [H, W]: each pixel is the one its centre lies in."""
  return cv2.resize(classes, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def check(file: BinaryIO, size: Size) -> None:
  """Raises UnreadableError unless it is a mask of that height and width.

  By its header alone.
  """
  height, width, _ = decode.header(file)
  file.seek(0)
  start = file.read(_KIND + 1)
  if not start.startswith(b'\x89PNG'):
    raise UnreadableError(f'it is no PNG; {_REMEDY}')
  kind, bits = start[_KIND], start[_BITS]
  # Of 2 or 4 bits grey is stretched to 0..255 by whoever decodes it.
  if kind != _PALETTE and (kind, bits) not in ((_GREY, 8), (_GREY, 1)):
    raise UnreadableError(f'it is {_KINDS[kind]} of {bits} bits; {_REMEDY}')
  if (height, width) != size:
    raise UnreadableError(
        f'it has {width} x {height} pixels, and its image {size[1]} x {size[0]}'
        '; make them of one size'
    )


def read(data: bytes, size: Size, values: Sequence[int]) -> Mask:
  """Returns the mask of an encoded image of that height and width.

  Args:
    data: of a PNG, its numbers as they are.
    size: of the image.
    values: that stand for the classes 0, 1, ...; IGNORE stands for itself.

  Raises:
    UnreadableError: it is no such mask, or has another value.
  """
  check(io.BytesIO(data), size)
  numbers = decode.numbers(data)
  table = np.full(256, -1, np.int16)
  table[IGNORE] = IGNORE
  table[list(values)] = range(len(values))
  classes = table[numbers]
  if classes.min() < 0:
    wrong = numbers[classes < 0].min()
    raise UnreadableError(
        f'it has the number {wrong}, and classes are {values[0]} to '
        f'{values[-1]}, or {IGNORE} where none counts; mend it, or name more '
        'classes'
    )
  return Mask(classes.astype(np.uint8))


class Source:
  """What sources of images with masks have beyond what `data.sources` says.

  A record is `{'image': bytes, 'classes': bytes}`, each an encoded image, the
  second with a number for every pixel.

  Attributes:
    values: the numbers that stand for the classes 0, 1, ...
  """

  channels, faults = 3, ()
  category_ids: Sequence[int] | None = None
  class_names: Sequence[str]
  __len__: Any
  __getitem__: Any
  place: Any

  @property
  def values(self) -> Sequence[int]:
    return range(len(self.class_names))

  def place_of_mask(self, index: int) -> str:
    """Returns where the mask is."""
    return f'the mask of {self.place(index)}'

  def mask_of(self, index: int, record: dict[str, bytes], size: Size) -> Mask:
    """Returns the mask of a record whose image has that size.

    Raises:
      UnreadableError: it is none; the message names the mask.
    """
    try:
      return read(record['classes'], size, self.values)
    except UnreadableError as error:
      raise self._named(index, error) from error

  def _named(self, index: int, error: UnreadableError) -> UnreadableError:
    return UnreadableError(f'{self.place_of_mask(index)}: {error}')

  def files(
      self, index: int
  ) -> Mapping[str, contextlib.AbstractContextManager[BinaryIO]]:
    """Returns what opens each part of a record, of which headers are read."""
    return {name: io.BytesIO(data) for name, data in self[index].items()}

  @property
  def faulty(self) -> dict[int, str]:
    """What is wrong with images and masks, by their headers; see `sizes`."""
    return self._looked_at[1]

  @property
  def sizes(self) -> np.ndarray:
    """Height and width of all images, int32 [N, 2]; 0 of what is faulty.

    For it, the headers of all images and masks have to be read.
    """
    return self._looked_at[0]

  @functools.cached_property
  def _looked_at(self) -> tuple[np.ndarray, dict[int, str]]:
    sizes, faulty = np.zeros((len(self), 2), np.int32), {}
    for index, line in enumerate(sizes):
      try:
        files = self.files(index)
        with files['image'] as file:
          size = decode.header(file)[:2]
        try:
          with files['classes'] as file:
            check(file, size)
        except UnreadableError as error:
          raise self._named(index, error) from error
        line[:] = size
      except UnreadableError as error:
        faulty[index] = str(error)
    return sizes, faulty


def check_number(class_names: Sequence[str], place: str) -> None:
  """Raises InputError unless so many classes can be told from IGNORE."""
  if not 2 <= len(class_names) <= IGNORE:
    raise InputError(
        f'{place} has {len(class_names)} classes, want 2 to {IGNORE}'
    )
