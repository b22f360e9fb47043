"""Pixels from encoded images, of the formats in `FORMATS`.

Headers are looked at first. JPEGs, nearly all of every large data set, are then
decoded by libjpeg-turbo through simplejpeg, the others by OpenCV; Pillow is
asked where these two refuse. A file that ends too early is refused by all
three: half an image is no image.

Images are upright, as their EXIF data say, whatever their format is: so they
are shown where people draw boxes on them.
"""

from collections.abc import Iterator
import contextlib
import functools
import io
import math
import os
import stat
import threading
from typing import BinaryIO
import warnings

import cv2
import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin
import simplejpeg

from awconv_jax.errors import InputError, of_the_system, one_line

Size = tuple[int, int]  # Height and width, in pixels.
# More pixels than this is a mistake or an attack: 0.4 GB decoded.
MAX_PIXELS = 2**27
# By Pillow's names; of others it would run programs, such as Ghostscript.
FORMATS = tuple('JPEG PNG WEBP BMP GIF TIFF PPM'.split())
_JPEG, _JPEG_END, _EXIF = b'\xff\xd8\xff', b'\xff\xd9', b'Exif\0\0'
# Markers in JPEGs, of frames that can be shortened, of a scan and of what may
# be EXIF data (ITU-T T.81, annex B, https://www.w3.org/Graphics/JPEG/).
_BASELINE, _SCAN, _APP1 = (0xC0, 0xC1), 0xDA, 0xE1
# Of a JPEG, where a block of 8 x 8 takes a bit at least.
_PIXELS_PER_BYTE = 2**10
# Colours of lower resolution are smoothed over the next row of blocks.
_MARGIN = 2
# By the number of channels, for simplejpeg, OpenCV and Pillow.
_COLORS = {1: 'GRAY', 3: 'RGB'}
_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
_MODES = {1: 'L', 3: 'RGB'}
_ORIENTATION = ExifTags.Base.Orientation

Box = tuple[int, int, int, int]


class UnreadableError(InputError):
  """An example that cannot be made an image of."""


def below(folder: bytes, name: str) -> bytes:
  """Returns the path of what a data set names, in UTF-8 whatever the locale is.

  Raises:
    InputError: it leads out of the folder, other than by links that lie in it.
  """
  try:
    raw = name.encode('utf-8', 'surrogateescape')
  except UnicodeEncodeError as error:
    raise InputError(f'{name!r} is no name of a file') from error
  path = os.path.normpath(os.path.join(folder, raw))
  if not path.startswith(os.path.join(folder, b'')) or path == folder:
    raise InputError(f'{name!r} leads out of {one_line(folder)}')
  return path


def read_file(path: str | bytes) -> bytes:
  """Returns a file's content; UnreadableError if that cannot be had.

  Not where the system is at fault, which any other file might have met.
  """
  with opened(path) as file:
    return file.read()


@contextlib.contextmanager
def opened(path: str | bytes) -> Iterator[BinaryIO]:
  """Opens a file to read from; errors are as of `read_file`."""
  try:
    # Opening a pipe would wait for somebody who writes.
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
      raise UnreadableError('it is no file, but a pipe, a socket or a device')
    with open(path, 'rb') as file:
      yield file
  except OSError as error:
    if of_the_system(error):
      error.filename = path  # Also of one that was opened.
      raise
    raise UnreadableError(error.strerror) from error


def _opencv(pixels: np.ndarray, size: int, method: int) -> np.ndarray:
  return cv2.resize(pixels, (size, size), interpolation=method)


def _pillow(
    pixels: np.ndarray, size: int | tuple[int, int], method: int
) -> np.ndarray:
  size = (size, size) if isinstance(size, int) else size
  image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
  return np.array(image.resize(size, method))


def _area(pixels: np.ndarray, size: int) -> np.ndarray:
  # Averaging over areas keeps a smaller image free of aliasing.
  shrinks = size < min(pixels.shape[:2])
  return _opencv(pixels, size, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


# 'linear' and 'cubic' look at the 4 and 16 nearest pixels, as tf.image.resize
# does; 'bilinear' and 'bicubic' at all pixels that a smaller one covers, as
# torchvision and timm do, and take several times as long.
INTERPOLATIONS = {
    'area': _area,
    'linear': functools.partial(_opencv, method=cv2.INTER_LINEAR),
    'cubic': functools.partial(_opencv, method=cv2.INTER_CUBIC),
    'bilinear': functools.partial(_pillow, method=Image.Resampling.BILINEAR),
    'bicubic': functools.partial(_pillow, method=Image.Resampling.BICUBIC),
}


def resize(pixels: np.ndarray, size: int, interpolation: str) -> np.ndarray:
  """Resizes uint8 [H, W, C] to a square, [size, size, C], by any aspect ratio.

  `interpolation` is a key of `INTERPOLATIONS`. Pixels of that size are returned
  as they are.
  """
  if pixels.shape[:2] == (size, size):
    return pixels
  # Both libraries drop the channel axis of grey images.
  return np.atleast_3d(INTERPOLATIONS[interpolation](pixels, size))


# How the central square comes to its size; see `center_crop`.
CENTRES = 'crop', 'torchvision'


def center_crop(
    pixels: np.ndarray,
    *,
    size: int,
    share: float,
    interpolation: str,
    how: str = 'crop',
) -> np.ndarray:
  """Returns the central square as uint8 [size, size, C].

  Of all pixels, [H, W, C], as evaluation takes no short cuts.

  Args:
    pixels: of the image.
    size: pixels of the result's side.
    share: the square's side over the image's shorter side.
    interpolation: of 'crop', see `resize`.
    how: 'crop' cuts the square and resizes it; 'torchvision' resizes the whole
      image and cuts, which is torchvision's Resize(round(size / share)),
      bilinear, and CenterCrop(size), pixel by pixel.

  Raises:
    UnreadableError: the whole image would be too large, as a line is.
  """
  height, width = pixels.shape[:2]
  if how == 'torchvision':
    short = round(size / share)
    # Rounded down; what is left over, to the even neighbour.
    rows, columns = (short * n // min(height, width) for n in (height, width))
    _check_size(rows, columns)
    whole = _pillow(pixels, (columns, rows), Image.Resampling.BILINEAR)
    top, left = (round((n - size) / 2) for n in (rows, columns))
    return np.atleast_3d(whole)[top : top + size, left : left + size]
  side = max(round(min(height, width) * share), 1)
  top, left = (height - side) // 2, (width - side) // 2
  cut = pixels[top : top + side, left : left + side]
  return resize(cut, size, interpolation)


@functools.cache
def _silence_pillow() -> None:
  # What it says of large or odd images is told with their names, or is nothing.
  warnings.filterwarnings('ignore', module=r'PIL\.')


def _open(file: BinaryIO) -> Image.Image:
  _silence_pillow()
  return Image.open(file, formats=FORMATS)


def header(file: BinaryIO) -> tuple[int, int, int]:
  """Returns height and width of an image, upright, and how it has to be turned.

  That is 1..8, the orientation of EXIF; 1 also where decoders turn it
  themselves, as they do with TIFF, or where the EXIF data are damaged.

  Raises:
    UnreadableError: it is no image of `FORMATS`, or has too many pixels.
  """
  try:
    with _open(file) as image:
      width, height = image.size
      _check_size(height, width)
      if image.mode == 'F':
        raise UnreadableError('it is float32, want 8 or 16 bits')
      if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = dict(image.tag_v2)
        if 32 in tags.get(ExifTags.Base.BitsPerSample, ()):
          raise UnreadableError('it has 32 bits, want 8 or 16')
        # OpenCV turns each tile, and then all of them.
        if ExifTags.Base.TileWidth in tags and tags.get(_ORIENTATION, 1) != 1:
          raise UnreadableError('a TIFF in tiles is not turned; save it so')
        return height, width, 1
      if image.format == 'PNG' and 'exif' not in image.info:
        # The EXIF data may come after the pixels; Pillow has to decode these.
        file.seek(max(file.seek(0, 2) - 2**16, 0))
        if b'eXIf' in file.read():
          image.load()
      turn = _turn(image.info.get('exif', b''))
  except Exception as error:  # Every decoder of Pillow has its own.
    raise _unreadable(error, file) from error
  return (height, width, turn) if turn < 5 else (width, height, turn)


def _header_of(data: bytes) -> tuple[int, int, int]:
  """As `header`; of JPEGs in a tenth of the time, or it would be felt."""
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return header(io.BytesIO(data))
  _check_size(height, width)
  if height * width > _PIXELS_PER_BYTE * len(data):
    raise UnreadableError(
        f'its {len(data)} bytes cannot hold {height} x {width} pixels'
    )
  turn = 1
  for marker, start, end in _segments(data):
    if marker == _APP1 and data.startswith(_EXIF, start):
      turn = _turn(data[start:end])
      break
  return (height, width, turn) if turn < 5 else (width, height, turn)


def _turn(exif: bytes) -> int:
  """Returns the orientation that EXIF data say, 1..8.

  By hand (TIFF 6.0, section 2), since Pillow takes a tenth of the time that
  decoding a small JPEG does.
  """
  tiff = exif.removeprefix(_EXIF)
  order = 'little' if tiff.startswith(b'II') else 'big'

  def number(at, size=2):
    return int.from_bytes(tiff[at : at + size], order)

  start = number(4, 4) + 2
  end = min(start + 12 * number(start - 2), len(tiff))
  for entry in range(start, end, 12):
    if number(entry) == _ORIENTATION:
      # Short, as it should be, or long.
      turn = number(entry + 8, 4 if number(entry + 2) == 4 else 2)
      return turn if 1 <= turn <= 8 else 1
  return 1


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
  """Returns pixels as they are shown: mirrored, turned or both."""
  if turn == 1:
    return pixels
  if turn >= 5:
    pixels = pixels.swapaxes(0, 1)
  rows = -1 if turn in (3, 4, 7, 8) else 1
  columns = -1 if turn in (2, 3, 6, 7) else 1
  return np.ascontiguousarray(pixels[::rows, ::columns])


class EncodedImage:
  """An encoded image, of which no more is decoded than is asked for.

  Args:
    data: the file's bytes.
    channels: 1 or 3; what the file has is converted, and alpha is dropped.

  Attributes:
    height, width: in pixels, once it is upright.

  Raises:
    UnreadableError: it is no image, or not a whole one.
  """

  def __init__(self, data: bytes, channels: int):
    self._data, self._channels, self._pixels = data, channels, None
    self.height, self.width, self._turn = _header_of(data)
    if data.startswith(_JPEG):
      return
    try:
      # Without the flag, it would turn some formats itself.
      flags = _FLAGS[channels] | cv2.IMREAD_IGNORE_ORIENTATION
      pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
      pixels = None
    # Of what it refuses, Pillow reads some, and says what is wrong with it.
    if pixels is None:
      pixels = _decode_by_pillow(data, channels)
    self._pixels = _upright(np.atleast_3d(pixels), self._turn)
    self.height, self.width = self._pixels.shape[:2]

  def pixels(self) -> np.ndarray:
    """Returns all pixels, uint8 [height, width, channels]."""
    if self._pixels is None:
      try:
        color = _COLORS[self._channels]
        pixels = simplejpeg.decode_jpeg(self._data, color)
      except ValueError:
        # It refuses what any warning is said of; some of it is sound.
        pixels = _decode_by_pillow(self._data, self._channels)
      self._pixels = _upright(pixels, self._turn)
    return self._pixels

  def crop(self, box: Box, size: int, interpolation: str) -> np.ndarray:
    """Cuts a box and resizes it, which is faster than by way of `pixels`.

    A box at least twice as large as the result is decoded at half its size
    (a quarter, an eighth), which averages as `area` does.

    Args:
      box: top, left, height and width in pixels, inside of the image.
      size: height and width of the result.
      interpolation: a key of `INTERPOLATIONS`.

    Returns:
      uint8 [size, size, channels], which shares nothing with the encoded image.
    """
    top, left, height, width = box
    # What has to be turned is rare: no short cuts for it.
    pixels, factor = self._pixels if self._turn == 1 else self.pixels(), 1
    if pixels is None:
      # The power of two up to 8 by which decoding may shrink.
      halvings = math.floor(math.log2(min(height, width) / size))
      factor = 2 ** min(max(halvings, 0), 3)
      pixels = _decode_upper(self._data, self._channels, top + height, factor)
    rows = _scaled(top, height, factor, pixels.shape[0])
    columns = _scaled(left, width, factor, pixels.shape[1])
    resized = resize(pixels[rows, columns], size, interpolation)
    return resized.copy() if np.may_share_memory(resized, pixels) else resized


def numbers(data: bytes) -> np.ndarray:
  """Returns the numbers of a palette's or a grey image, upright, uint8 [H, W].

  Those in the file: of a palette the places in it, and not the colours there.

  Raises:
    UnreadableError: it is no image, or not a whole one.
  """
  _, _, turn = header(io.BytesIO(data))
  try:
    with _open(io.BytesIO(data)) as image:
      pixels = np.array(image).astype(np.uint8)
  except Exception as error:  # Every decoder of Pillow has its own.
    raise _unreadable(error, io.BytesIO(data)) from error
  return _upright(pixels, turn)


def _scaled(start: int, length: int, factor: int, limit: int) -> slice:
  """Returns the interval in pixels that are `factor` times as large."""
  first = min(round(start / factor), limit - 1)
  return slice(first, max(round((start + length) / factor), first + 1))


def _check_size(height: int, width: int) -> None:
  if height * width > MAX_PIXELS:
    limit = f'{math.log2(MAX_PIXELS):.4g}'
    raise UnreadableError(
        f'{height} x {width} pixels are more than 2^{limit}; make it smaller'
    )


_local = threading.local()


def _scratch(size: int) -> bytearray:
  """Returns memory of this thread, to be overwritten by the next call.

  Asking the system for the memory of every image anew takes a quarter of the
  time that decoding does [2 cores, 500 x 375 pixels].
  """
  if len(getattr(_local, 'buffer', b'')) < size:
    _local.buffer = bytearray(size)
  return _local.buffer


def _decode_upper(
    data: bytes, channels: int, rows: int, factor: int
) -> np.ndarray:
  """Decodes at least the upper `rows` of a JPEG, in the quickest way.

  The result is smaller by `factor`, a power of two up to 8, and the next call
  of the thread overwrites it. The quickest transforms are off by one, mostly.
  """
  upper = shorten_jpeg(data, rows)
  options = dict(fastdct=True, fastupsample=True, strict=upper is None)
  try:
    height, width, _, _ = simplejpeg.decode_jpeg_header(upper or data)
    if factor > 1:
      # The factors between powers of two take longer than none.
      height, width = height // factor, width // factor
      options |= dict(min_height=height, min_width=width, min_factor=factor)
    # A row and a column more: the decoder rounds up.
    options['buffer'] = _scratch((height + 1) * (width + 1) * channels)
    return simplejpeg.decode_jpeg(upper or data, _COLORS[channels], **options)
  except ValueError:
    pixels = _decode_by_pillow(data, channels)
  if factor == 1:
    return pixels
  height, width = (-(-side // factor) for side in pixels.shape[:2])
  small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
  return np.atleast_3d(small)


def shorten_jpeg(data: bytes, rows: int) -> bytes | None:
  """Returns a JPEG with a header that claims fewer rows than there are.

  The decoder stops after them, which saves 15 % of decoding for the crops of
  ImageNet's training. (What lies left, right and above costs less, and the data
  have to be read through in any case.)

  Args:
    data: of the file.
    rows: that are to be as in the whole image.

  Returns:
    The data, to be decoded without heed of the warning that something is left
    over; None if it cannot be done: the image has no more rows, comes in
    several scans (as progressive ones do) or ends too early.
  """
  if not data.endswith(_JPEG_END):
    return None
  frame = None
  for marker, start, _ in _segments(data):
    if marker in _BASELINE:
      frame = start
    if marker == _SCAN:
      # All components in one scan, or there are more to come.
      if frame is None or data[start] != data[frame + 5]:
        return None
      height = slice(frame + 1, frame + 3)
      if rows + _MARGIN >= int.from_bytes(data[height]):
        return None
      changed = bytearray(data)
      changed[height] = (rows + _MARGIN).to_bytes(2)
      return bytes(changed)
  return None


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
  """Yields the markers of a JPEG up to its scan, and where their data lie."""
  position = 2
  while position + 4 <= len(data) and data[position] == 0xFF:
    marker, start = data[position + 1], position + 4
    if marker == 0xFF:  # As many as one likes.
      position += 1
      continue
    position += 2 + int.from_bytes(data[position + 2 : start])
    yield marker, start, position
    if marker == _SCAN:
      return


def _decode_by_pillow(data: bytes, channels: int) -> np.ndarray:
  try:
    with _open(io.BytesIO(data)) as image:
      return np.atleast_3d(np.array(image.convert(_MODES[channels])))
  except Exception as error:  # Every decoder of Pillow has its own.
    raise _unreadable(error, io.BytesIO(data)) from error


def _unreadable(error: Exception, file: BinaryIO) -> Exception:
  """Returns what is said of an image that Pillow cannot open or decode."""
  if isinstance(error, UnreadableError) or of_the_system(error):
    return error
  reason = ' '.join(str(error).split()) or type(error).__name__
  if 'cannot identify image file' in reason:
    reason = 'it is no image' if file.seek(0, 2) else 'it is empty'
  return UnreadableError(reason)
