"""Brings images and their boxes to the canvas: resizing, flipping, cutting.

Scales keep the aspect ratio up to the rounding to whole pixels; boxes are
scaled by what the rounded sizes make of height and width each.
"""

import cv2
import numpy as np

from awconv_jax.data.detection.objects import Objects

# Pixels; less of a box than this inside of a crop is nothing to learn from.
_LEAST_SIDE = 1e-2


def fitted(
    height: int, width: int, short_side: int, long_side: int
) -> tuple[int, int]:
  """Returns the size whose short side is as wanted, or whose long side is.

  Args:
    height, width: of the image, in pixels.
    short_side: wanted.
    long_side: not to be exceeded.

  Returns:
    Height and width, each at least 1.
  """
  scale = min(short_side / min(height, width), long_side / max(height, width))
  return scaled(height, width, scale)


def scaled(height: int, width: int, scale: float) -> tuple[int, int]:
  """Returns a size times a factor, rounded, each side at least 1."""
  return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize(
    pixels: np.ndarray, objects: Objects, size: tuple[int, int]
) -> tuple[np.ndarray, Objects]:
  """Resizes an image and its boxes.

  Args:
    pixels: uint8 [H, W, 3].
    objects: of the image.
    size: height and width wanted.

  Returns:
    uint8 [height, width, 3], by the 4 nearest pixels as mmdetection does, and
    the objects.
  """
  height, width = pixels.shape[:2]
  factors = np.array([size[1] / width, size[0] / height] * 2, np.float32)
  if (height, width) != tuple(size):
    pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
  return pixels, objects.to(objects.boxes * factors)


def flip(pixels: np.ndarray, objects: Objects) -> tuple[np.ndarray, Objects]:
  """Mirrors an image, left to right, and its boxes."""
  x0, y0, x1, y1 = objects.boxes.T
  width = np.float32(pixels.shape[1])
  boxes = np.stack([width - x1, y0, width - x0, y1], 1)
  return pixels[:, ::-1], objects.to(boxes)


def crop(
    pixels: np.ndarray,
    objects: Objects,
    corner: tuple[int, int],
    size: tuple[int, int],
) -> tuple[np.ndarray, Objects]:
  """Cuts a rectangle, and drops the objects that lie outside of it.

  Args:
    pixels: uint8 [H, W, 3].
    objects: of the image.
    corner: the uppermost row and the leftmost column.
    size: height and width wanted; less at the image's border.

  Returns:
    The part of the image, and the objects that reach into it, cut off.
  """
  top, left = corner
  pixels = pixels[top : top + size[0], left : left + size[1]]
  height, width = pixels.shape[:2]
  boxes = objects.boxes - np.float32([left, top, left, top])
  boxes = boxes.clip(0, np.float32([width, height, width, height]))
  kept = (boxes[:, 2:] - boxes[:, :2] >= _LEAST_SIDE).all(1)
  return pixels, objects.to(boxes).take(kept)


def jitter(
    pixels: np.ndarray,
    objects: Objects,
    canvas: tuple[int, int],
    scales: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, Objects]:
  """Resizes by a factor at random, and cuts what the canvas cannot hold.

  Large-scale jitter, https://arxiv.org/abs/2012.07177: factor 1 is the largest
  size at which the whole image fits on the canvas.

  Args:
    pixels: uint8 [H, W, 3].
    objects: of the image.
    canvas: height and width.
    scales: the smallest and the largest factor, such as (0.1, 2).
    rng: source of all random numbers.

  Returns:
    An image of at most the canvas's size, and the objects on it.
  """
  height, width = pixels.shape[:2]
  scale = rng.uniform(*scales) * min(canvas[0] / height, canvas[1] / width)
  pixels, objects = resize(pixels, objects, scaled(height, width, scale))
  room = [
      max(side - c, 0) for side, c in zip(pixels.shape, canvas, strict=False)
  ]
  corner = tuple(int(rng.integers(r + 1)) for r in room)
  return crop(pixels, objects, corner, canvas)


def paste(pixels: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
  """Returns the image at the upper left of a canvas of zeros.

  Args:
    pixels: uint8 [H, W, 3], no larger than the canvas.
    canvas: height and width.

  Returns:
    uint8 [*canvas, 3].
  """
  out = np.zeros((*canvas, 3), np.uint8)
  out[: pixels.shape[0], : pixels.shape[1]] = pixels
  return out
