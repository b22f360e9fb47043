"""Batches for training and evaluation, by Grain, the same on any machine."""

from collections.abc import Iterator, Mapping
import math
from typing import Any

import numpy as np

from awconv_jax.data import augment, rows, sources
from awconv_jax.errors import InputError

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
    config: has `data` with name, dir, train_split, eval_split, image_size (in
      pixels), augment (a tuple of (name, options) pairs), num_workers,
      num_threads and prefetch (see `rows.Reader`).
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
  share = _share(batch_size, process_index, process_count)
  # Checked for evaluation too, so that a mistake shows whichever comes first.
  chain = augment.Chain(data.augment)
  if data.image_size < 1:
    raise InputError(
        f'config.data.image_size={data.image_size} must be at least 1 (pixel)'
    )
  split = data.train_split if train else data.eval_split
  source = sources.open_source(data.name, data.dir, split)
  reading = (share, data.num_workers, data.num_threads, data.prefetch)
  if not train:
    stream = rows.EvalStream(source, data.image_size)
    return EvalBatches(rows.Reader(stream, *reading), source)
  _check_fits(batch_size, source, f'split {split!r} of {data.name}')
  stream = rows.train_stream(source, chain, data.image_size, seed)
  return TrainBatches(rows.Reader(stream, *reading), source, seed)


def _check_fits(batch_size: int, source: Any, place: str) -> None:
  if batch_size > len(source):
    raise InputError(
        f'batch_size {batch_size} is more than the {len(source)} examples of'
        f' {place}; choose a smaller one'
    )


def _share(batch_size: int, index: int, count: int) -> rows.Share:
  if batch_size < 1 or batch_size % count:
    raise InputError(
        f'batch_size {batch_size} cannot be divided among {count} hosts;'
        f' choose a positive multiple of {count}'
    )
  if not 0 <= index < count:
    raise ValueError(f'process_index {index} of {count} processes')
  return rows.Share(batch_size, index, count)


class TrainBatches:
  """Endless batches; an iterator whose state is how many it has delivered.

  Attributes:
    num_examples: N, examples of the split.
    num_classes: labels are 0..num_classes-1.
    batches_per_epoch: N / batch_size; batches may straddle epochs.
  """

  def __init__(self, reader: rows.Reader, source: Any, seed: int):
    self.num_examples = len(source)
    self.num_classes = source.num_classes
    self.batches_per_epoch = len(source) / reader.share.batch_size
    self._reader = reader
    self._seed = seed
    self._delivered = 0
    self._open = None

  def __iter__(self) -> 'TrainBatches':
    return self

  def __next__(self) -> Batch:
    if self._open is None:
      self._open = self._reader.open(self._delivered)
    batch = next(self._open)
    self._delivered += 1
    return batch

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
    batches_per_epoch: ceil(N / batch_size).
  """

  def __init__(self, reader: rows.Reader, source: Any):
    self.num_examples = len(source)
    self.num_classes = source.num_classes
    self.batches_per_epoch = math.ceil(len(source) / reader.share.batch_size)
    self._reader = reader

  def __iter__(self) -> Iterator[Batch]:
    opened = self._reader.open(0, self.batches_per_epoch)
    try:
      yield from opened
    finally:
      opened.close()  # Also when the loop over the batches was left early.
