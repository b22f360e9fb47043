"""The rows of batches of images with boxes; see `data.detection`."""

from collections.abc import Mapping, Sequence
import dataclasses
import sys
from typing import Any

import grain
import numpy as np

from awconv_jax.data import decode
from awconv_jax.data.detection import canvases
from awconv_jax.data.detection.objects import Objects, create
from awconv_jax.data.detection.order import PORTRAIT, EvalOrder, TrainOrder
from awconv_jax.data.rows import NONE
from awconv_jax.errors import InputError

Row = dict[str, Any]
# Neighbours that are tried in the place of an example that cannot be read.
_TRIES = 100


@dataclasses.dataclass(frozen=True)
class Geometry:
  """What is done to images, and how large the results are.

  Attributes:
    canvas: height and width of the canvas for landscape images; portraits lie
      on its transpose.
    short_side, long_side: of images in evaluation; see `canvases.fitted`.
    train_short_sides: one is drawn for every image in training.
    flip: probability of mirroring, in training.
    scale_jitter: the smallest and the largest factor of large-scale jitter,
      which takes the place of `train_short_sides`; () is off.
    max_boxes: M, rows of objects per image.
  """

  canvas: tuple[int, int]
  short_side: int
  long_side: int
  train_short_sides: Sequence[int]
  flip: float
  scale_jitter: Sequence[float]
  max_boxes: int

  def __post_init__(self):
    height, width = self.canvas
    most = min(height, self.long_side)
    sides, jitter = self.train_short_sides, self.scale_jitter
    for key, sound, want in (
        ('canvas', height <= width, '(height, width), landscape'),
        ('long_side', self.long_side <= width, f'at most {width}, the canvas'),
        ('short_side', self.short_side <= most, f'at most {most}'),
        (
            'train_short_sides',
            0 < len(sides) and max(sides) <= most,
            f'one or more, at most {most}',
        ),
        (
            'scale_jitter',
            not jitter or (len(jitter) == 2 and jitter[0] <= jitter[1]),
            '(smallest, largest) factor, or () for none',
        ),
    ):
      if not sound:
        raise InputError(
            f'config.data.{key}={getattr(self, key)} must be {want}'
        )

  @classmethod
  def of(cls, options: Mapping[str, Any]) -> 'Geometry':
    """Returns what `config.data` says of sizes."""
    fields = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: options[name] for name in fields})

  def canvas_of(self, group: int) -> tuple[int, int]:
    """Returns height and width of a group's canvas."""
    return self.canvas[::-1] if group == PORTRAIT else self.canvas

  def augmented(
      self,
      pixels: np.ndarray,
      objects: Objects,
      group: int,
      rng: np.random.Generator,
  ) -> tuple[np.ndarray, Objects]:
    """Returns the image and its objects as they are trained on."""
    if self.scale_jitter:
      canvas = self.canvas_of(group)
      pixels, objects = canvases.jitter(
          pixels, objects, canvas, tuple(self.scale_jitter), rng
      )
    else:
      short = self.train_short_sides[rng.integers(len(self.train_short_sides))]
      size = canvases.fitted(*pixels.shape[:2], short, self.long_side)
      pixels, objects = canvases.resize(pixels, objects, size)
    # Drawn in any case, so that nothing else depends on the probability.
    if rng.random() < self.flip:
      return canvases.flip(pixels, objects)
    return pixels, objects

  def plain(
      self, pixels: np.ndarray, objects: Objects
  ) -> tuple[np.ndarray, Objects]:
    """Returns the image and its objects as they are evaluated."""
    size = canvases.fitted(*pixels.shape[:2], self.short_side, self.long_side)
    return canvases.resize(pixels, objects, size)


def train_stream(
    source: Any, geometry: Geometry, order: TrainOrder, seed: int
) -> grain.MapDataset:
  """Returns the endless stream of augmented rows.

  Args:
    source: of the examples; see `objects`.
    geometry: what is done to them.
    order: which stands where.
    seed: with the position, fixes the random numbers of a row.

  Returns:
    The stream; `stream[position]` is one row.
  """
  # Not a seed that `order` uses.
  augmentation = np.random.SeedSequence((seed, 1)).generate_state(1)[0]
  positions = grain.MapDataset.range(sys.maxsize)
  row = _TrainRow(source, geometry, order)
  return positions.random_map(row, seed=int(augmentation))


@dataclasses.dataclass(frozen=True)
class _TrainRow:
  """Position in the stream -> row; a class so that workers can load it.

  In the place of an example that cannot be read stands the next one of its
  group that can.
  """

  source: Any
  geometry: Geometry
  order: TrainOrder

  def __call__(self, position: int, rng: np.random.Generator) -> Row:
    group, place = self.order.find(position)
    first = self.order.example(group, place)
    unreadable, reason = NONE, ''
    for step in range(min(_TRIES, self.order.group_size(group))):
      index = self.order.example(group, place + step)
      try:
        image_id, pixels, objects = _read(
            self.source, index, group, self.geometry.max_boxes, train=True
        )
      except decode.UnreadableError as error:
        unreadable, reason = first, reason or str(error)
        continue
      size = pixels.shape[:2]
      pixels, objects = self.geometry.augmented(pixels, objects, group, rng)
      row = _row(self.geometry, group, pixels, objects)
      return row | _identity(image_id, size, True, unreadable)
    raise InputError(
        f'{_TRIES} images of an orientation in succession cannot be read, the '
        'first: ' + self.source.describe(first, reason)
    )


class EvalStream:
  """The examples in their order, crowds among them, and blank rows."""

  def __init__(self, source: Any, geometry: Geometry, order: EvalOrder):
    """Takes the records, what is done to them and which stands where."""
    self._source, self._geometry, self._order = source, geometry, order

  def __getitem__(self, position: int) -> Row:
    group, index = self._order(position)
    if index is None:
      return self._blank_row(group, NONE)
    try:
      image_id, pixels, objects = _read(
          self._source, index, group, self._geometry.max_boxes, train=False
      )
    except decode.UnreadableError:
      return self._blank_row(group, index)
    size = pixels.shape[:2]
    pixels, objects = self._geometry.plain(pixels, objects)
    row = self._row(group, pixels, objects)
    return row | _identity(image_id, size, True, NONE)

  def _row(self, group: int, pixels: np.ndarray, objects: Objects) -> Row:
    most = self._geometry.max_boxes
    return _row(self._geometry, group, pixels, objects) | {
        'gt_crowd': _padded(objects.crowd, most),
        'gt_area': _padded(objects.area, most),
    }

  def _blank_row(self, group: int, unreadable: int) -> Row:
    # One pixel, as an image without any divides by zero.
    pixels = np.zeros((1, 1, 3), np.uint8)
    row = self._row(group, pixels, create([], [], [], []))
    return row | _identity(NONE, (1, 1), False, unreadable)


def _read(
    source: Any, index: int, group: int, most: int, *, train: bool
) -> tuple[int, np.ndarray, Objects]:
  """Returns an image's id, its pixels and the objects on it, or the trainable.

  Raises:
    UnreadableError: there is no image, or none as the index has it: the file
      has changed since that was made, or could not be read then.
  """
  record = source[index]
  objects = record['objects']
  if train:
    objects = objects.take(objects.trainable())
  pixels = decode.Picture(record['image'], 3).pixels()
  height, width = pixels.shape[:2]
  if (height > width) != (group == PORTRAIT):
    raise decode.UnreadableError(
        f'its {width} x {height} pixels are of another orientation than before'
    )
  if len(objects) > most:
    raise decode.UnreadableError(
        f'it has {len(objects)} boxes, more than config.data.max_boxes={most}'
    )
  return record['image_id'], pixels, objects


def _row(
    geometry: Geometry, group: int, pixels: np.ndarray, objects: Objects
) -> Row:
  """Returns what a row says of the image on the canvas."""
  most = geometry.max_boxes
  return {
      'image': canvases.paste(pixels, geometry.canvas_of(group)),
      'image_size': np.int32(pixels.shape[:2]),
      'gt_boxes': _padded(objects.boxes, most),
      'gt_labels': _padded(objects.labels, most),
      'gt_valid': np.arange(most) < len(objects),
  }


def _identity(
    image_id: int, size: tuple[int, int], mask: bool, unreadable: int
) -> Row:
  """Returns what a row says of the image that it was made of."""
  return {
      'image_id': np.int32(image_id),
      'original_size': np.int32(size),
      'mask': np.bool_(mask),
      'unreadable': np.int32(unreadable),
  }


def _padded(values: np.ndarray, length: int) -> np.ndarray:
  """Returns the values with zeros after them."""
  out = np.zeros((length, *values.shape[1:]), values.dtype)
  out[: len(values)] = values
  return out
