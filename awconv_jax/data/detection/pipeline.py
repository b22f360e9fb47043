"""Batches of images with boxes, each of one orientation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from awconv_jax.data import pipeline
from awconv_jax.data import rows as reading
from awconv_jax.data.detection import rows
from awconv_jax.data.detection.order import EvalOrder, TrainOrder, groups
from awconv_jax.errors import InputError
from awconv_jax.options import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitFloat,
)


def boxed_images(
    open_split: Callable[[str | None, str], Any],
    *,
    train: bool,
    batch_size: PositiveInt,
    seed: NonNegativeInt,
    process_index: NonNegativeInt = 0,
    process_count: PositiveInt = 1,
    canvas: tuple[PositiveInt, PositiveInt],
    short_side: PositiveInt,
    long_side: PositiveInt,
    train_short_sides: tuple[PositiveInt, ...],
    dir: str | None = None,
    train_split: str = 'train',
    eval_split: str = 'test',
    flip: UnitFloat = 0.5,
    scale_jitter: tuple[PositiveFloat, ...] = (),
    max_boxes: PositiveInt = 100,
    train_empty: bool = False,
    drop_bad: bool = False,
    max_bad_fraction: UnitFloat = 0.0,
    num_workers: NonNegativeInt = 0,
    num_threads: NonNegativeInt = 1,
    prefetch: NonNegativeInt = 4,
) -> 'TrainBatches | EvalBatches':
  """Returns the train or eval batches of images with boxes.

  Args:
    open_split: `(dir, split) -> source`; see `objects`.
    train: endless shuffled augmented batches, or one pass.
    batch_size: rows of a batch over all hosts.
    seed: fixes order and augmentation, and evaluation has no use for it.
    process_index: this host.
    process_count: all hosts.
    canvas, short_side, long_side, train_short_sides: see `rows.Geometry`.
    dir: directory of prepared data sets; None is $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    train_split, eval_split: of the data set.
    flip, scale_jitter, max_boxes: see `rows.Geometry`.
    train_empty: whether images without any box are trained on.
    drop_bad: whether faulty boxes and images are left out; if not, they are
      an error.
    max_bad_fraction: share of the split that may be unreadable.
    num_workers, num_threads, prefetch: see `data.rows.Reader`.

  Raises:
    InputError: for a data set or sizes that cannot be used.
  """
  shard = pipeline.share_of(batch_size, process_index, process_count)
  geometry = rows.Geometry(
      canvas=canvas,
      short_side=short_side,
      long_side=long_side,
      train_short_sides=train_short_sides,
      flip=flip,
      scale_jitter=scale_jitter,
      max_boxes=max_boxes,
  )
  # For training the other split is opened, too: faults of both are told at
  # once, and the labels must mean the same in both.
  splits = ((train_split,) if train else ()) + (eval_split,)
  opened = {split: open_split(dir, split) for split in splits}
  _check_faults(opened, drop_bad)
  _check_categories(opened)
  source = opened[splits[0]]
  examples = _examples(source, max_boxes, train, train_empty)
  unreadable = pipeline.Unreadable(
      source,
      pipeline.tolerated(max_bad_fraction, source, train, process_count),
      prompt=process_count == 1,
      left_out=source.faults,
  )
  options = (shard, num_workers, num_threads, prefetch)
  if not train:
    order = EvalOrder(examples, batch_size)
    stream = rows.EvalStream(source, geometry, order)
    reader = reading.Reader(stream, *options)
    return EvalBatches(reader, source, unreadable, order)
  pipeline.check_fits(batch_size, np.concatenate(examples), train_split)
  order = TrainOrder(examples, batch_size, seed)
  stream = rows.train_stream(source, geometry, order, seed)
  reader = reading.Reader(stream, *options)
  return TrainBatches(reader, source, unreadable, seed, examples)


def _check_faults(opened: Mapping[str, Any], drop_bad: bool) -> None:
  faulty = {split: s.faults for split, s in opened.items() if s.faults}
  if faulty and not drop_bad:
    count = sum(map(len, faulty.values()))
    lines = [f'{split}: {f}' for split, fs in faulty.items() for f in fs]
    raise InputError(
        f'{count} fault(s) in the data; mend them, or leave out what is '
        'faulty by config.data.drop_bad=true:\n  ' + '\n  '.join(lines)
    )


def _check_categories(opened: Mapping[str, Any]) -> None:
  (one, first), *others = opened.items()
  for other, source in others:
    if source.category_ids != first.category_ids:
      raise InputError(
          f'splits {one!r} and {other!r} differ in their categories, '
          f'{_difference(first, source)}; list the same in both'
      )


def _difference(first: Any, other: Any) -> str:
  ids = set(first.category_ids) ^ set(other.category_ids)
  return 'id ' + ', '.join(map(str, sorted(ids)))


def _examples(
    source: Any, max_boxes: int, train: bool, train_empty: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the numbers of the examples to read, by orientation."""
  index = source.index
  counts = index.trainable if train else index.objects
  most = int(counts.argmax())
  if counts[most] > max_boxes:
    raise InputError(
        f'image {source[most]["image_id"]} has {counts[most]} boxes, more '
        f'than config.data.max_boxes={max_boxes}; raise it'
    )
  keep = np.ones(len(source), bool)
  if train and not train_empty:
    # What cannot be read is kept, to be told of.
    keep = (counts > 0) | (index.sizes[:, 0] == 0)
  return tuple(group[keep[group]] for group in groups(index.sizes))


class TrainBatches(pipeline.TrainBatches):
  """Endless batches; see `order.TrainOrder` for which, and the base class.

  Attributes:
    num_examples: N, images that are trained on.
    num_left_out: images of the split that are not, having no boxes.
    batches_per_epoch: N / batch_size; what an orientation leaves over at the
      end of an epoch begins a batch of the next.
  """

  def __init__(
      self,
      reader: reading.Reader,
      source: Any,
      unreadable: pipeline.Unreadable,
      seed: int,
      examples: Sequence[np.ndarray],
  ):
    super().__init__(reader, source, unreadable, seed, repeats=1)
    self.num_examples = sum(map(len, examples))
    self.num_left_out = len(source) - self.num_examples
    self.batches_per_epoch = self.num_examples / reader.share.batch_size


class EvalBatches(pipeline.EvalBatches):
  """Every example once: the landscape images in order, then the portraits.

  The last batch of each orientation is filled up with rows whose mask is False.

  Attributes:
    batches_per_epoch: of both orientations.
  """

  def __init__(
      self,
      reader: reading.Reader,
      source: Any,
      unreadable: pipeline.Unreadable,
      order: EvalOrder,
  ):
    super().__init__(reader, source, unreadable)
    self.batches_per_epoch = order.num_batches()
