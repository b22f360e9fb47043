"""Brings images and what is on them to the canvas: resizing, flipping, cutting.

Images are uint8 [H, W, 3]; what is on them, `Objects` or a `Mask`, follows by
its methods `resized`, `flipped` and `cropped`. Scales keep the aspect ratio up
to the rounding to whole pixels.
"""

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Any

import cv2
import numpy as np

from awconv_jax.data.decode import Size
from awconv_jax.data.order import PORTRAIT
from awconv_jax.errors import InputError
from awconv_jax.options import Bound, Interval, Side, UnitFloat

Rng = np.random.Generator
Pair = tuple[np.ndarray, Any]  # An image, and what is on it.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
  """What is done to images, and how large the results are.

  Attributes:
    canvas: height and width of the canvas for landscape images; portraits lie
      on its transpose.
    short_side, long_side: of images in evaluation; see `fitted`.
    train_short_sides: one is drawn for every image in training.
    flip: probability of mirroring, in training.
    scale_jitter: the smallest and the largest factor of large-scale jitter,
      which takes the place of `train_short_sides`; () is off.

  Raises:
    InputError: the canvas cannot hold the sides.
  """

  canvas: tuple[Side, Side]
  short_side: Side
  long_side: Side
  train_short_sides: Annotated[tuple[Side, ...], Bound(min_length=1)]
  flip: UnitFloat = 0.5
  scale_jitter: Interval | tuple[()] = ()

  def __post_init__(self):
    height, width = self.canvas
    short = max(self.short_side, *self.train_short_sides)
    limit = min(height, self.long_side)
    if not short <= limit <= max(height, self.long_side) <= width:
      raise InputError(
          f'config.data.canvas={self.canvas} must be (height, width) of a '
          f'landscape that holds long_side={self.long_side}; short_side='
          f'{self.short_side} and train_short_sides={self.train_short_sides} '
          f'must be at most {limit}'
      )

  @classmethod
  def of(cls, options: Mapping[str, Any]) -> 'Geometry':
    """Returns that of `config.data`."""
    return cls(**{f.name: options[f.name] for f in dataclasses.fields(cls)})

  def canvas_of(self, group: int) -> Size:
    """Returns the canvas of a group of `data.order`."""
    return self.canvas[::-1] if group == PORTRAIT else self.canvas

  def augmented(
      self, pixels: np.ndarray, truth: Any, group: int, rng: Rng
  ) -> Pair:
    """Returns the image and what is on it as they are trained on."""
    if self.scale_jitter:
      canvas, scales = self.canvas_of(group), self.scale_jitter
      pixels, truth = jitter(pixels, truth, canvas, scales, rng)
    else:
      short = self.train_short_sides[rng.integers(len(self.train_short_sides))]
      size = fitted(*pixels.shape[:2], short, self.long_side)
      pixels, truth = resize(pixels, truth, size)
    # Drawn in any case, so that nothing else depends on the probability.
    if rng.random() < self.flip:
      return flip(pixels, truth)
    return pixels, truth

  def plain(self, pixels: np.ndarray, truth: Any) -> Pair:
    """Returns the image and what is on it as they are evaluated."""
    size = fitted(*pixels.shape[:2], self.short_side, self.long_side)
    return resize(pixels, truth, size)


def fitted(height: int, width: int, short_side: int, long_side: int) -> Size:
  """Scales to a short side in pixels, unless the long side would exceed its."""
  scale = min(short_side / min(height, width), long_side / max(height, width))
  return _scaled(height, width, scale)


def _scaled(height: int, width: int, scale: float) -> Size:
  """Returns a size times a factor, rounded, each side at least 1."""
  return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize(pixels: np.ndarray, truth: Any, size: Size) -> Pair:
  """Resizes by the 4 nearest pixels, as mmdetection does."""
  before = pixels.shape[:2]
  if before != size:
    pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
  return pixels, truth.resized(before, size)


def flip(pixels: np.ndarray, truth: Any) -> Pair:
  """Mirrors left and right."""
  return pixels[:, ::-1], truth.flipped(pixels.shape[1])


def crop(pixels: np.ndarray, truth: Any, corner: Size, size: Size) -> Pair:
  """Cuts what lies in a rectangle, from its top and left on."""
  top, left = corner
  pixels = pixels[top : top + size[0], left : left + size[1]]
  return pixels, truth.cropped(corner, pixels.shape[:2])


def jitter(
    pixels: np.ndarray, truth: Any, canvas: Size, scales: Any, rng: Rng
) -> Pair:
  """Large-scale jitter, https://arxiv.org/abs/2012.07177.

  Resizes by a factor drawn uniformly from `scales`, where 1 is the largest size
  that fits on the canvas, and cuts what it cannot hold.
  """
  height, width = pixels.shape[:2]
  scale = rng.uniform(*scales) * min(canvas[0] / height, canvas[1] / width)
  pixels, truth = resize(pixels, truth, _scaled(height, width, scale))
  room = np.maximum(np.subtract(pixels.shape[:2], canvas), 0)
  top, left = (int(rng.integers(r + 1)) for r in room)
  return crop(pixels, truth, (top, left), canvas)


def paste(pixels: np.ndarray, canvas: Size) -> np.ndarray:
  """Returns the image at the upper left of a canvas of zeros."""
  out = np.zeros((*canvas, 3), np.uint8)
  out[: pixels.shape[0], : pixels.shape[1]] = pixels
  return out
