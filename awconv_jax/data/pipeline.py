"""Batches for training and evaluation, by Grain, the same on any machine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import math
from typing import Annotated, Any

import numpy as np

from awconv_jax.data import augment as augmentations
from awconv_jax.data import crops, decode, rows
from awconv_jax.errors import InputError
from awconv_jax.options import (
    Bound,
    NonNegativeInt,
    OneOf,
    PositiveInt,
    UnitFloat,
)

Batch = dict[str, np.ndarray]


def images(
    open_split: Callable[[str | None, str], Any],
    *,
    train: bool,
    batch_size: PositiveInt,
    seed: NonNegativeInt,
    process_index: NonNegativeInt = 0,
    process_count: PositiveInt = 1,
    image_size: PositiveInt,
    eval_image_size: PositiveInt,
    dir: str | None = None,
    train_split: str = 'train',
    eval_split: str = 'test',
    augment: Sequence[tuple[str, dict[str, Any]]] = (),
    repeats: PositiveInt = 1,
    eval_crop: Annotated[float, Bound(gt=0, le=1)] = 1.0,
    eval_interpolation: Annotated[str, OneOf(decode.INTERPOLATIONS)] = 'area',
    max_bad_fraction: UnitFloat = 0.0,
    num_workers: NonNegativeInt = 0,
    num_threads: NonNegativeInt = 1,
    prefetch: NonNegativeInt = 4,
) -> 'TrainBatches | EvalBatches':
  """Returns the train or eval batches of images with labels.

  Args:
    open_split: `(dir, split) -> source`; see `sources`.
    train: endless shuffled augmented batches, or one pass in order.
    batch_size: rows of a batch over all hosts.
    seed: fixes order and augmentation, and evaluation has no use for it.
    process_index: this host.
    process_count: all hosts.
    image_size, eval_image_size: pixels of an image's side in training and in
      evaluation.
    dir: directory of prepared data sets; None is $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    train_split, eval_split: of the data set.
    augment: (name, options) pairs; see `augment.Chain`.
    repeats: rows in succession that show the same example, in training.
    eval_crop: side of the central square that is evaluated, over the image's
      shorter side.
    eval_interpolation: a key of `decode.INTERPOLATIONS`.
    max_bad_fraction: share of the split that may be unreadable.
    num_workers, num_threads, prefetch: see `rows.Reader`.

  Raises:
    InputError: for a data set or sizes that cannot be used.
  """
  shard = share_of(batch_size, process_index, process_count)
  # Made for evaluation too, so that a mistake shows whichever comes first.
  chain = augmentations.Chain(augment, image_size)
  split = train_split if train else eval_split
  source = open_split(dir, split)
  reading = (shard, num_workers, num_threads, prefetch)
  unreadable = Unreadable(
      source,
      tolerated(max_bad_fraction, source, train, process_count),
      prompt=process_count == 1,
  )
  if not train:
    crop = functools.partial(
        crops.center_crop,
        size=eval_image_size,
        share=eval_crop,
        interpolation=eval_interpolation,
    )
    stream = rows.EvalStream(source, crop)
    return EvalBatches(rows.Reader(stream, *reading), source, unreadable)
  check_fits(batch_size, source, split)
  if np.ndim(source[0]['label']):
    raise InputError(
        f'the images of split {split!r} have several labels each, to be '
        'evaluated with, not to be trained on'
    )
  stream = rows.train_stream(source, chain, seed, repeats)
  reader = rows.Reader(stream, *reading)
  return TrainBatches(reader, source, unreadable, seed, repeats)


def check_fits(batch_size: int, source: Any, split: str) -> None:
  """Raises InputError for a batch of more rows than there are examples."""
  if batch_size > len(source):
    raise InputError(
        f'batch_size {batch_size} is more than the {len(source)} examples of'
        f' split {split!r}; choose a smaller one'
    )


def share_of(batch_size: int, index: int, count: int) -> rows.Share:
  """Returns what host `index` of `count` reads of batches over all hosts."""
  if batch_size < 1 or batch_size % count:
    raise InputError(
        f'batch_size {batch_size} cannot be divided among {count} hosts;'
        f' choose a positive multiple of {count}'
    )
  if not 0 <= index < count:
    raise ValueError(f'process_index {index} of {count} processes')
  return rows.Share(batch_size, index, count)


def tolerated(
    fraction: float, source: Any, train: bool, process_count: int
) -> float:
  """Returns how many examples may be unreadable on a host."""
  # In evaluation a host meets its own part of the split, in training, in the
  # course of time, all of it.
  met = len(source) if train else len(source) / process_count
  return fraction * met


class Unreadable:
  """Which examples could not be read, and whether they are too many.

  Args:
    source: of the examples.
    most: how many may be unreadable, on this host.
    prompt: whether one too many is an error at once. Where several hosts work
      together the others would wait for the one that fails: there it is one
      when all of them call `check`.
    left_out: lines about what the source itself left out, told with the rest.
  """

  def __init__(
      self,
      source: Any,
      most: float,
      prompt: bool = True,
      left_out: Sequence[str] = (),
  ):
    self._source, self._most, self._prompt = source, most, prompt
    self._known, self._untold = {}, list(left_out)

  def __len__(self) -> int:
    return len(self._known)

  def take(self, batch: Batch) -> Batch:
    """Returns the batch without its note of what was unreadable.

    Raises:
      InputError: there are more than are allowed; all of them are named.
    """
    numbers = batch.pop('unreadable')
    for index in map(int, numbers[numbers != rows.NONE]):
      if index in self._known:
        continue
      reason = rows.reason(self._source, index) or 'it was not, a moment ago'
      self._known[index] = self._source.describe(index, reason)
      self._untold.append(self._known[index])
    if self._prompt:
      self.check()
    return batch

  def check(self) -> None:
    """Raises InputError, with all their names, if there are too many."""
    names = list(self._known.values())
    if len(names) <= self._most:
      return
    if not self._most and len(names) == 1:
      raise InputError(names[0])
    raise InputError(
        f'{len(names)} of {len(self._source)} examples cannot be read, more '
        f'than the {self._most:g} that config.data.max_bad_fraction allows; '
        f'mend or remove them, or raise it: {"; ".join(names)}'
    )

  def news(self) -> list[str]:
    """Returns a line for each that was met since the last call."""
    news, self._untold = self._untold, []
    return news


class TrainBatches:
  """Endless batches; an iterator whose state is how many it has delivered.

  Attributes:
    num_examples: N, examples of the split.
    num_classes: labels are 0..num_classes-1.
    class_names: the name of each label.
    batches_per_epoch: N / batch_size; batches may straddle epochs.
    unreadable: what could not be read so far.
  """

  def __init__(
      self,
      reader: rows.Reader,
      source: Any,
      unreadable: Unreadable,
      seed: int,
      repeats: int,
  ):
    self.unreadable = unreadable
    self.num_examples = len(source)
    self.num_classes = source.num_classes
    self.class_names = source.class_names
    self.category_ids = source.category_ids
    self.num_left_out = 0
    self.batches_per_epoch = len(source) / reader.share.batch_size
    self._reader = reader
    self._seed, self._repeats = seed, repeats
    self._delivered = 0
    self._open = None

  def __iter__(self) -> 'TrainBatches':
    return self

  def __next__(self) -> Batch:
    if self._open is None:
      self._open = self._reader.open(self._delivered)
    batch = next(self._open)
    self._delivered += 1
    return self.unreadable.take(batch)

  def get_state(self) -> dict[str, int]:
    """Returns what `set_state` needs to go on with the next batch, as JSON.

    Hosts, workers, threads and prefetching may be others then.
    """
    return {'batches': self._delivered, **self._identity()}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes to where `get_state` was called.

    Args:
      state: what `get_state` returned.

    Raises:
      InputError: the state is of another stream, or no state at all.
    """
    for key, here in self._identity().items():
      there = state.get(key)
      if there != here:
        raise InputError(
            f'the data state was written with {key} {there}, and this run has'
            f' {here}; resume with {key}={there} or start a new run'
        )
    batches = state.get('batches')
    if not isinstance(batches, int) or batches < 0:
      raise InputError(f'the data state has no count of batches: {state}')
    self.close()
    self._delivered = batches

  def _identity(self) -> dict[str, int]:
    return {
        'seed': self._seed,
        'batch_size': self._reader.share.batch_size,
        'num_examples': self.num_examples,
        'repeats': self._repeats,
    }

  def close(self) -> None:
    """Stops threads and workers; `next` would start them again, in place."""
    if self._open is not None:
      self._open.close()
      self._open = None


class EvalBatches:
  """Every example once and in order, each time it is iterated over.

  The last batch is filled up with rows whose mask is False, and all hosts
  yield the same number of batches.

  Attributes:
    num_examples: N, examples of the split.
    num_classes: labels are 0..num_classes-1.
    class_names: the name of each label.
    batches_per_epoch: ceil(N / batch_size).
    unreadable: what could not be read so far; the mask leaves it out, too.
  """

  def __init__(self, reader: rows.Reader, source: Any, unreadable: Unreadable):
    self.unreadable = unreadable
    self.num_examples = len(source)
    self.num_classes = source.num_classes
    self.class_names = source.class_names
    self.category_ids = source.category_ids
    self.num_left_out = 0
    self.batches_per_epoch = math.ceil(len(source) / reader.share.batch_size)
    self._reader = reader

  def __iter__(self) -> Iterator[Batch]:
    opened = self._reader.open(0, self.batches_per_epoch)
    try:
      for batch in opened:
        yield self.unreadable.take(batch)
    finally:
      opened.close()  # Also when the loop over the batches was left early.
