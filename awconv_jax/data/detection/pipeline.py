"""Batches of images with boxes, each of one orientation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from awconv_jax.data import pipeline, sources
from awconv_jax.data import rows as reading
from awconv_jax.data.detection import rows
from awconv_jax.data.detection.order import EvalOrder, TrainOrder, groups
from awconv_jax.errors import InputError


def create(
    config: Any,
    *,
    train: bool,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> 'TrainBatches | EvalBatches':
  """Returns the train or eval batches of the data set in `config.data`.

  Args:
    config: has `data` with
      name, dir: of the data set; see `sources.open_source`.
      train_split, eval_split: of it.
      canvas, short_side, long_side, train_short_sides, flip, scale_jitter,
        max_boxes: see `rows.Geometry`.
      train_empty: whether images without any box are trained on.
      drop_bad: whether faulty boxes and images are left out; if not, they are
        an error.
      max_bad_fraction: share of the split that may be unreadable.
      num_workers, num_threads, prefetch: see `data.rows.Reader`.
    train: endless shuffled augmented batches, or one pass.
    batch_size: rows of a batch over all hosts.
    seed: at least 0; fixes order and augmentation, and evaluation has no use
      for it.
    process_index: this host.
    process_count: all hosts.

  Raises:
    InputError: for a config, a data set or sizes that cannot be used.
  """
  if seed < 0:
    raise InputError(f'config.seed={seed} must be at least 0')
  data = config.data
  share = pipeline.share_of(batch_size, process_index, process_count)
  geometry = check_geometry(data)
  source = _open(data, train)
  examples = _examples(source, data, train)
  unreadable = pipeline.Unreadable(
      source,
      pipeline.tolerated(data, source, train, process_count),
      prompt=process_count == 1,
      left_out=source.faults,
  )
  options = (share, data.num_workers, data.num_threads, data.prefetch)
  if not train:
    order = EvalOrder(examples, batch_size)
    stream = rows.EvalStream(source, geometry, order)
    reader = reading.Reader(stream, *options)
    return EvalBatches(reader, source, unreadable, order)
  pipeline.check_fits(
      batch_size,
      np.concatenate(examples),
      f'split {data.train_split!r} of {data.name}',
  )
  order = TrainOrder(examples, batch_size, seed)
  stream = rows.train_stream(source, geometry, order, seed)
  reader = reading.Reader(stream, *options)
  return TrainBatches(reader, source, unreadable, seed, examples)


def _open(data: Any, train: bool) -> Any:
  """Opens a split, and for training looks at the other, too.

  Faults of both are told at once, and the labels must mean the same in both.
  """
  opened = {
      split: sources.open_source(data.name, data.dir, split)
      for split in ((data.train_split,) if train else ()) + (data.eval_split,)
  }
  faulty = {split: s.faults for split, s in opened.items() if s.faults}
  if faulty and not data.drop_bad:
    count = sum(map(len, faulty.values()))
    lines = [f'{split}: {f}' for split, fs in faulty.items() for f in fs]
    raise InputError(
        f'{count} fault(s) in {data.name}; mend them, or leave out what is '
        'faulty by config.data.drop_bad=true:\n  ' + '\n  '.join(lines)
    )
  first, *others = opened.values()
  for other in others:
    if other.label_to_category_id != first.label_to_category_id:
      raise InputError(
          f'splits {data.train_split!r} and {data.eval_split!r} of {data.name} '
          'differ in their categories, '
          f'{_difference(first, other)}; list the same in both'
      )
  return first


def _difference(first: Any, other: Any) -> str:
  ids = set(first.label_to_category_id) ^ set(other.label_to_category_id)
  return 'id ' + ', '.join(map(str, sorted(ids)))


def _examples(
    source: Any, data: Any, train: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the numbers of the examples to read, by orientation."""
  index = source.index
  counts = index.trainable if train else index.objects
  most = int(counts.argmax())
  if counts[most] > data.max_boxes:
    raise InputError(
        f'image {source[most]["image_id"]} of {data.name} has {counts[most]} '
        f'boxes, more than config.data.max_boxes={data.max_boxes}; raise it'
    )
  keep = np.ones(len(source), bool)
  if train and not data.train_empty:
    # What cannot be read is kept, to be told of.
    keep = (counts > 0) | (index.sizes[:, 0] == 0)
  return tuple(group[keep[group]] for group in groups(index.sizes))


_KEYS = (
    *('name', 'dir', 'train_split', 'eval_split', 'canvas', 'short_side'),
    *('long_side', 'train_short_sides', 'flip', 'scale_jitter', 'max_boxes'),
    *('train_empty', 'drop_bad', 'max_bad_fraction', 'num_workers'),
    *('num_threads', 'prefetch'),
)


def _check_keys(data: Any) -> None:
  """Raises InputError for what `config.data` lacks."""
  lacking = [key for key in _KEYS if key not in data]
  if lacking:
    raise InputError(
        f'config.data lacks {", ".join(lacking)}, which images with boxes need;'
        ' configs/coco.py shows all'
    )


def check_geometry(data: Any) -> rows.Geometry:
  """Returns what `config.data` says of sizes, after checking it.

  Raises:
    InputError: a value is missing, impossible or does not fit the others.
  """
  _check_keys(data)
  canvas = tuple(data.canvas)
  sides = tuple(data.train_short_sides)
  jitter = tuple(data.scale_jitter)
  _require(
      len(canvas) == 2 and 1 <= canvas[0] <= canvas[1],
      'canvas',
      canvas,
      'is not landscape; want (height, width)',
  )
  height, width = canvas
  _require(
      1 <= data.short_side <= min(height, data.long_side),
      'short_side',
      data.short_side,
      'must be in 1..canvas height and at most long_side',
  )
  _require(
      data.long_side <= width,
      'long_side',
      data.long_side,
      f'is more than the {width} of the canvas',
  )
  _require(
      bool(sides) and all(1 <= s <= min(height, data.long_side) for s in sides),
      'train_short_sides',
      sides,
      'must be one or more in 1..canvas height and at most long_side',
  )
  _require(0 <= data.flip <= 1, 'flip', data.flip, 'is not in [0, 1]')
  _require(
      not jitter or (len(jitter) == 2 and 0 < jitter[0] <= jitter[1]),
      'scale_jitter',
      jitter,
      'must be (smallest, largest) factor, or () for none',
  )
  _require(data.max_boxes >= 1, 'max_boxes', data.max_boxes, 'is less than 1')
  _require(
      0 <= data.max_bad_fraction <= 1,
      'max_bad_fraction',
      data.max_bad_fraction,
      'is not in [0, 1]',
  )
  return rows.Geometry(
      canvas=canvas,
      short_side=data.short_side,
      long_side=data.long_side,
      train_short_sides=sides,
      flip=data.flip,
      scale_jitter=jitter,
      max_boxes=data.max_boxes,
  )


def _require(sound: bool, key: str, value: Any, fault: str) -> None:
  if not sound:
    raise InputError(f'config.data.{key}={value} {fault}')


def _describe(batches: Any, source: Any) -> None:
  """Gives batches what evaluators and pictures need to know of labels."""
  batches.label_to_category_id = source.label_to_category_id


class TrainBatches(pipeline.TrainBatches):
  """Endless batches; see `order.TrainOrder` for which, and the base class.

  Attributes:
    num_examples: N, images that are trained on.
    num_left_out: images of the split that are not, having no boxes.
    batches_per_epoch: N / batch_size; what an orientation leaves over at the
      end of an epoch begins a batch of the next.
    label_to_category_id: the data set's number of each label.
    class_names: the name of each label.
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
    _describe(self, source)


class EvalBatches(pipeline.EvalBatches):
  """Every example once: the landscape images in order, then the portraits.

  The last batch of each orientation is filled up with rows whose mask is False.

  Attributes:
    batches_per_epoch: of both orientations.
    label_to_category_id: the data set's number of each label.
    class_names: the name of each label.
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
    _describe(self, source)
