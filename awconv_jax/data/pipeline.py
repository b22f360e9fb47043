"""Batches for training and evaluation, by Grain, the same on any machine."""

from collections.abc import Iterator, Mapping, Sequence
import functools
import math
from typing import Any

import numpy as np

from awconv_jax.data import augment, crops, decode, rows, sources
from awconv_jax.errors import InputError, unknown_name

Batch = dict[str, np.ndarray]


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
      image_size, eval_image_size: pixels of an image's side in training and in
        evaluation.
      augment: a tuple of (name, options) pairs; see `augment.Chain`.
      repeats: rows in succession that show the same example, in training.
      eval_crop: side of the central square that is evaluated, over the image's
        shorter side.
      eval_interpolation: a key of `decode.INTERPOLATIONS`.
      max_bad_fraction: share of the split that may be unreadable.
      num_workers, num_threads, prefetch: see `rows.Reader`.
    train: endless shuffled augmented batches, or one pass in order.
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
  _check(data)
  share = share_of(batch_size, process_index, process_count)
  # Checked for evaluation too, so that a mistake shows whichever comes first.
  chain = augment.Chain(data.augment, data.image_size)
  split = data.train_split if train else data.eval_split
  source = sources.open_source(data.name, data.dir, split)
  reading = (share, data.num_workers, data.num_threads, data.prefetch)
  unreadable = Unreadable(
      source,
      tolerated(data, source, train, process_count),
      prompt=process_count == 1,
  )
  if not train:
    crop = functools.partial(
        crops.center_crop,
        size=data.eval_image_size,
        share=data.eval_crop,
        interpolation=data.eval_interpolation,
    )
    stream = rows.EvalStream(source, crop)
    return EvalBatches(rows.Reader(stream, *reading), source, unreadable)
  check_fits(batch_size, source, f'split {split!r} of {data.name}')
  if np.ndim(source[0]['label']):
    raise InputError(
        f'the images of {data.name} have several labels each, to be evaluated '
        'with, not to be trained on'
    )
  stream = rows.train_stream(source, chain, seed, data.repeats)
  reader = rows.Reader(stream, *reading)
  return TrainBatches(reader, source, unreadable, seed, data.repeats)


_KEYS = (
    *('name', 'dir', 'train_split', 'eval_split', 'image_size'),
    *('eval_image_size', 'eval_crop', 'eval_interpolation', 'augment'),
    *('repeats', 'max_bad_fraction', 'num_workers', 'num_threads', 'prefetch'),
)
_LEAST = {'image_size': 1, 'eval_image_size': 1, 'repeats': 1}


def _check(data: Any) -> None:
  """Raises InputError for what `config.data` lacks or has out of range."""
  lacking = [key for key in _KEYS if key not in data]
  if lacking:
    raise InputError(
        f'config.data lacks {", ".join(lacking)}; configs/digits.py shows all'
    )
  for key, least in _LEAST.items():
    if data[key] < least:
      raise InputError(
          f'config.data.{key}={data[key]} must be at least {least}'
      )
  if not 0 < data.eval_crop <= 1:
    raise InputError(f'config.data.eval_crop={data.eval_crop} is not in (0, 1]')
  if not 0 <= data.max_bad_fraction <= 1:
    raise InputError(
        f'config.data.max_bad_fraction={data.max_bad_fraction} is not in [0, 1]'
    )
  if data.eval_interpolation not in decode.INTERPOLATIONS:
    raise unknown_name(
        'config.data.eval_interpolation',
        data.eval_interpolation,
        decode.INTERPOLATIONS,
    )


def check_fits(batch_size: int, source: Any, place: str) -> None:
  """Raises InputError for a batch of more rows than there are examples."""
  if batch_size > len(source):
    raise InputError(
        f'batch_size {batch_size} is more than the {len(source)} examples of'
        f' {place}; choose a smaller one'
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


def tolerated(data: Any, source: Any, train: bool, process_count: int) -> float:
  """Returns how many examples may be unreadable on a host."""
  # In evaluation a host meets its own part of the split, in training, in the
  # course of time, all of it.
  met = len(source) if train else len(source) / process_count
  return data.max_bad_fraction * met


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
    self.batches_per_epoch = math.ceil(len(source) / reader.share.batch_size)
    self._reader = reader

  def __iter__(self) -> Iterator[Batch]:
    opened = self._reader.open(0, self.batches_per_epoch)
    try:
      for batch in opened:
        yield self.unreadable.take(batch)
    finally:
      opened.close()  # Also when the loop over the batches was left early.
