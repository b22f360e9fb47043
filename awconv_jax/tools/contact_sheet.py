"""Many small pictures on one, each with its caption below."""

import collections
from collections.abc import Sequence
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from awconv_jax.errors import one_line

_GAP, _FONT = 12, 15
_PAPER = 'white'
# Of captions, by whether what they say is right, if that is known.
INK = {None: 'black', True: 'darkgreen', False: 'firebrick'}
Tile = tuple[np.ndarray, Sequence[tuple[str, str]]]


def make(tiles: Sequence[Tile], side: int) -> Image.Image:
  """Returns a grid of pictures, as wide as it is high or a little wider.

  Args:
    tiles: at least one; the picture, uint8 [h, w, 1 or 3], and its caption's
      lines, each a text and its colour. A line that is too long is cut.
    side: pixels of a tile's; larger pictures are shrunk to it, and small ones
      enlarged by a whole factor.
  """
  font: Any = ImageFont.load_default(size=_FONT)
  line = sum(font.getmetrics())
  columns = math.ceil(math.sqrt(len(tiles)))
  pictures = [_fitted(pixels, side) for pixels, _ in tiles]
  tallest = max(picture.height for picture in pictures)
  captions = max(len(caption) for _, caption in tiles) * line
  width, height = side + _GAP, tallest + captions + 2 * _GAP
  rows = -(-len(tiles) // columns)
  size = columns * width + _GAP, rows * height + _GAP
  sheet = Image.new('RGB', size, _PAPER)
  pen = ImageDraw.Draw(sheet)
  for number, (picture, (_, caption)) in enumerate(
      zip(pictures, tiles, strict=True)
  ):
    row, column = divmod(number, columns)
    left, top = _GAP + column * width, _GAP + row * height
    # At the foot of its place, where the caption is.
    sheet.paste(picture, (left, top + tallest - picture.height))
    for place, (text, color) in enumerate(caption):
      at = left, top + tallest + _GAP // 2 + place * line
      pen.text(at, _shortened(one_line(text), font, side), color, font)
  return sheet


def fitted(pixels: np.ndarray, side: int) -> np.ndarray:
  """Returns a picture of the size that `make` gives it, to keep no more."""
  return np.asarray(_fitted(pixels, side))


def _fitted(pixels: np.ndarray, side: int) -> Image.Image:
  grey = pixels.shape[2] == 1
  picture = Image.fromarray(pixels[..., 0] if grey else pixels).convert('RGB')
  longer = max(picture.size)
  if 2 * longer <= side:
    size = [n * (side // longer) for n in picture.size]
    return picture.resize(size, Image.Resampling.NEAREST)
  picture.thumbnail((side, side))
  return picture


def _shortened(text: str, font: Any, width: int) -> str:
  """Returns as much of the end of a text as there is room for."""
  if font.getlength(text) <= width:
    return text
  ends = (f'...{text[start:]}' for start in range(1, len(text) + 1))
  return next((e for e in ends if font.getlength(e) <= width), '')


class Spread:
  """Says which of many images are shown, by their numbers from 1 on.

  They are the last of each of so many parts of equal length, or what comes
  after it where that is not asked for.
  """

  def __init__(self, number: int, most: int):
    parts = min(most, number)
    ends = (-(-number * part // parts) for part in range(1, parts + 1))
    self._due = collections.deque(ends)

  def __call__(self, number: int) -> bool:
    due = bool(self._due) and number >= self._due[0]
    if due:
      self._due.popleft()
    return due
