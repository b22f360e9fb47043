"""Batches of images with boxes; `data.detection` says what is in them."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from awconv_jax.data import batches
from awconv_jax.data.decode import EncodedImage, UnreadableError
from awconv_jax.data.detection import canvases
from awconv_jax.data.detection.objects import NOTHING, Objects
from awconv_jax.data.order import PORTRAIT, EvalOrder, GroupedOrder, groups
from awconv_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxedImages(canvases.Geometry, batches.Reader):
  """Reads images with boxes, each batch of one orientation.

  Attributes:
    train_empty: whether images without any box are trained on.
    drop_bad: whether faulty boxes and images are left out; if not, they are
      an error.
  """

  train_empty: bool = False
  drop_bad: bool = False

  def create(self) -> batches.TrainBatches | batches.EvalBatches:
    """Returns the train or eval batches.

    Raises:
      InputError: for a data set or sizes that cannot be used.
    """
    # For training the other split is opened, too: faults of both are told at
    # once, and the labels must mean the same in both.
    names = (self.train_split,) if self.train else ()
    opened = {
        split: self.open_split(self.dir, split)
        for split in (*names, self.eval_split)
    }
    faults = [f'{k}: {fault}' for k, s in opened.items() for fault in s.faults]
    if faults and not self.drop_bad:
      raise InputError(
          f'{len(faults)} fault(s) in the data; mend them, or leave out what '
          'is faulty by config.data.drop_bad=true:\n  ' + '\n  '.join(faults)
      )
    source, other = next(iter(opened.values())), opened[self.eval_split]
    differing = set(source.category_ids) ^ set(other.category_ids)
    if differing:
      raise InputError(
          f'splits {self.train_split!r} and {self.eval_split!r} differ in '
          f'their categories, id {", ".join(map(str, sorted(differing)))}; '
          'list the same in both'
      )
    examples = self._examples(source)
    make_row = _MakeRow(canvases.Geometry.of(vars(self)))
    if not self.train:
      order = EvalOrder(examples, self.batch_size)
      return batches.EvalBatches(self, source, order, make_row)
    order = GroupedOrder(examples, self.batch_size, self.seed)
    # Not a seed that `order` uses.
    seed = np.random.SeedSequence((self.seed, 1)).generate_state(1)[0]
    return batches.TrainBatches(self, source, order, make_row, seed)

  def _examples(self, source: Any) -> list[np.ndarray]:
    """Returns the numbers of the examples to read, by orientation."""
    sizes = source.index[:, :2]
    counts = source.index[:, 3 if self.train else 2]
    most = int(counts.argmax())
    if counts[most] > self.max_boxes:
      raise InputError(
          f'image {source[most]["image_id"]} has {counts[most]} boxes, more '
          f'than config.data.max_boxes={self.max_boxes}; raise it'
      )
    keep = np.ones(len(source), bool)
    if self.train and not self.train_empty:
      # What cannot be read is kept, to be told of.
      keep = (counts > 0) | (sizes[:, 0] == 0)
    return [group[keep[group]] for group in groups(sizes)]


@dataclasses.dataclass(frozen=True)
class _MakeRow:
  """Record -> row; see `batches`."""

  geometry: canvases.Geometry

  def __call__(
      self,
      index: int,
      record: Mapping[str, Any],
      group: int,
      rng: np.random.Generator | None,
  ) -> batches.Row:
    del index
    objects = record['objects']
    if rng is not None:
      objects = objects.take(objects.trainable())
    pixels = EncodedImage(record['image'], 3).pixels()
    height, width = pixels.shape[:2]
    # As the index has them, unless the file has changed since, or could not
    # be read then.
    turned = (height > width) != (group == PORTRAIT)
    if turned or len(objects) > self.geometry.max_boxes:
      raise UnreadableError(
          f'its {width} x {height} pixels or {len(objects)} boxes are others '
          'than before'
      )
    if rng is not None:
      pixels, objects = self.geometry.augmented(pixels, objects, group, rng)
    else:
      pixels, objects = self.geometry.plain(pixels, objects)
    row = self._row(pixels, objects, group, rng is None)
    return row | {
        'image_id': np.int32(record['image_id']),
        'original_size': np.int32([height, width]),
        'mask': np.bool_(True),
    }

  def blank(self, group: int) -> batches.Row:
    # One pixel, as an image without any divides by zero.
    return self._row(np.zeros((1, 1, 3), np.uint8), NOTHING, group, True)

  def _row(
      self, pixels: np.ndarray, objects: Objects, group: int, evaluated: bool
  ) -> batches.Row:
    """Returns the row of what lies on the canvas, so far not of an image."""
    most = self.geometry.max_boxes

    row = {
        'image': canvases.paste(pixels, self.geometry.canvas_of(group)),
        'image_size': np.int32(pixels.shape[:2]),
        'gt_valid': np.arange(most) < len(objects),
        'image_id': np.int32(batches.NONE),
        'original_size': np.int32([1, 1]),
        'mask': np.bool_(False),
    }
    given = {'gt_boxes': objects.boxes, 'gt_labels': objects.labels}
    if evaluated:
      given |= {'gt_crowd': objects.crowd, 'gt_area': objects.area}
    for key, values in given.items():
      row[key] = np.zeros((most, *values.shape[1:]), values.dtype)
      row[key][: len(values)] = values
    return row
