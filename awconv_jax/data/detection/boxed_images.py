"""Batches of images with boxes; `data.detection` says what is in them."""

import dataclasses
from typing import Annotated

import numpy as np

from awconv_jax.data import batches, canvases
from awconv_jax.data.decode import EncodedImage, UnreadableError
from awconv_jax.data.detection.objects import NOTHING
from awconv_jax.data.order import PORTRAIT, groups
from awconv_jax.errors import InputError, some
from awconv_jax.options import Bound


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxedImages(canvases.Geometry, batches.Reader):
  """Reads images with boxes, each batch of one orientation.

  Attributes:
    max_boxes: M, rows of objects per image.
    train_empty: whether images without any box are trained on.
    drop_bad: whether faulty boxes and images are left out; if not, they are
      an error.
  """

  max_boxes: Annotated[int, Bound(ge=1, le=2**16)] = 100
  train_empty: bool = False
  drop_bad: bool = False

  def create(self) -> batches.TrainBatches | batches.EvalBatches:
    """Returns the batches; InputError if the data cannot be used."""
    # For training the other split is opened, too: faults of both are told at
    # once, and the labels must mean the same in both.
    names = [self.train_split] if self.train else []
    names.append(self.eval_split)
    opened = {split: self.open_split(self.dir, split) for split in names}
    faults = [f'{k}: {fault}' for k, s in opened.items() for fault in s.faults]
    if faults and not self.drop_bad:
      head = (
          f'{len(faults)} fault(s) in the data; mend them, or leave out what '
          'is faulty by config.data.drop_bad=true:'
      )
      lines = head, *(f'  {fault}' for fault in faults)
      raise InputError(*lines if len(faults) > 1 else [f'{head} {faults[0]}'])
    source, other = opened[names[0]], opened[self.eval_split]
    batches.check_classes(source, other, (names[0], self.eval_split))
    sizes = source.index[:, :2]
    counts = source.index[:, 3 if self.train else 2]
    if counts.max() > self.max_boxes:
      raise InputError(
          f'{source.place(int(counts.argmax()))} has {counts.max()} boxes; '
          f'raise config.data.max_boxes={self.max_boxes}'
      )
    keep = np.ones(len(source), bool)
    if self.train and not self.train_empty:
      # What cannot be read is kept, to be told of.
      keep = (counts > 0) | (sizes[:, 0] == 0)
    if not keep.any():
      raise InputError(
          f'no image of split {names[0]!r} has a box to train on; '
          f'{len(source.faults)} fault(s) in it: {some(source.faults, 3, "; ")}'
      )
    examples = [group[keep[group]] for group in groups(sizes)]
    return batches.by_groups(self, source, examples)

  def row(self, source, index: int, group: int, rng: batches.Rng) -> dict:
    """Makes a row; see `batches`."""
    # If blank, of one pixel, as an image without any divides by zero.
    pixels, objects = np.zeros((1, 1, 3), np.uint8), NOTHING
    size, image_id = (1, 1), batches.NONE
    if index != batches.NONE:
      record = source[index]
      image_id, objects = record['image_id'], record['objects']
      if rng is not None:
        objects = objects.take(objects.trainable())
      pixels = EncodedImage(record['image'], 3).pixels()
      height, width = size = pixels.shape[:2]
      # As the index has them, unless the file has changed since, or could not
      # be read then.
      turned = (height > width) != (group == PORTRAIT)
      if turned or len(objects) > self.max_boxes:
        raise UnreadableError(
            f'its {width} x {height} pixels or {len(objects)} boxes are others '
            'than before'
        )
      if rng is not None:
        pixels, objects = self.augmented(pixels, objects, group, rng)
      else:
        pixels, objects = self.plain(pixels, objects)
    row = {
        'image': canvases.paste(pixels, self.canvas_of(group)),
        'image_size': np.int32(pixels.shape[:2]),
        'image_id': np.int32(image_id),
        'original_size': np.int32(size),
        'mask': np.bool_(index != batches.NONE),
        'gt_valid': np.arange(self.max_boxes) < len(objects),
    }
    evaluated = ('crowd', 'area') if rng is None else ()
    for name in ('boxes', 'labels', *evaluated):
      values = getattr(objects, name)
      shape = (self.max_boxes, *values.shape[1:])
      row[f'gt_{name}'] = np.zeros(shape, values.dtype)
      row[f'gt_{name}'][: len(values)] = values
    return row
