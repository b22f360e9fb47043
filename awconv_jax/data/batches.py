"""From a source to batches, by Grain, the same on any machine.

position --order--> example --source--> record --make_row--> row, b rows a batch

`order` says which example stands where. `make_row` decodes and augments; it is
given by the reader of the data set and is sent to worker processes. It has
  make_row(index, record, group, rng): the row of an example, augmented, or as
    evaluated if `rng` is None; UnreadableError if it cannot be used.
  make_row.blank(group): a row whose mask is False, for evaluation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import sys
from typing import Any

from absl import flags
import cv2
import grain
import numpy as np

from awconv_jax.data.decode import EncodedImage, UnreadableError
from awconv_jax.data.order import EvalOrder
from awconv_jax.errors import InputError
from awconv_jax.options import NonNegativeInt, PositiveInt, UnitFloat

Row = dict[str, Any]
Batch = dict[str, np.ndarray]
# In the place of an example's number.
NONE = -1


@dataclasses.dataclass(frozen=True)
class TrainRow:
  """Position in the endless stream and random numbers -> augmented row."""

  source: Any
  order: Callable[[int], tuple[int, Sequence[int]]]
  make_row: Callable[..., Row]

  def __call__(self, position: int, rng: np.random.Generator) -> Row:
    group, candidates = self.order(position)
    unreadable, reason = NONE, ''
    for index in candidates:
      try:
        row = self.make_row(index, self.source[index], group, rng)
        return row | {'unreadable': np.int32(unreadable)}
      except UnreadableError as error:
        unreadable, reason = candidates[0], reason or str(error)
    raise InputError(
        f'{len(candidates)} examples in succession cannot be read, the first: '
        + self.source.describe(candidates[0], reason)
    )


@dataclasses.dataclass(frozen=True)
class EvalRow:
  """Position -> row; blank ones fill up, and stand for unreadable examples."""

  source: Any
  order: EvalOrder
  make_row: Any

  def __call__(self, position: int) -> Row:
    group, index = self.order(position)
    unreadable = NONE
    if index is not None:
      try:
        row = self.make_row(index, self.source[index], group, None)
        return row | {'unreadable': np.int32(NONE)}
      except UnreadableError:
        unreadable = index
    return self.make_row.blank(group) | {'unreadable': np.int32(unreadable)}


@dataclasses.dataclass(frozen=True)
class _HostRow:
  """This host's row number -> the row of the global stream."""

  stream: grain.MapDataset
  batch_size: int
  process_index: int
  process_count: int

  def __call__(self, local: int) -> Row:
    rows = self.batch_size // self.process_count
    batch, row = divmod(local, rows)
    return self.stream[
        batch * self.batch_size + self.process_index * rows + row
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """The options of `config.data` that all data sets have, and the caller's.

  Attributes:
    open_split: `(dir, split) -> source`; see `sources`.
    train, batch_size, seed, process_index, process_count: see `data.create`.
    dir: directory of the sets that TFDS has prepared; None is $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    train_split, eval_split: of the data set.
    max_bad_fraction: share of the split that may be unreadable.
    num_workers: processes that read; 0 reads in this one. A script that uses
      them needs `if __name__ == '__main__':`, as for all multiprocessing.
    num_threads: threads per reading process, each making a whole batch. For
      tiny images one is best: they hold the interpreter's lock most of the
      time. For JPEGs, as many as there are cores.
    prefetch: batches being made or ready, per reading process; no fewer than
      num_threads, as any thread makes one.
  """

  # Not one of the config's.
  open_split: Any = dataclasses.field(kw_only=False)
  train: bool
  batch_size: PositiveInt
  seed: NonNegativeInt
  process_index: NonNegativeInt = 0
  process_count: PositiveInt = 1
  dir: str | None = None
  train_split: str = 'train'
  eval_split: str = 'test'
  max_bad_fraction: UnitFloat = 0.0
  num_workers: NonNegativeInt = 0
  num_threads: NonNegativeInt = 1
  prefetch: NonNegativeInt = 4

  def read(
      self, stream: grain.MapDataset, start: int, stop: int | None = None
  ) -> grain.DatasetIterator:
    """Starts reading this host's batches from `start` to `stop`, or on."""
    hosts = (self.batch_size, self.process_index, self.process_count)
    size = self.batch_size // self.process_count
    end = sys.maxsize if stop is None else stop * size
    local = grain.MapDataset.range(start * size, end)
    # Batched before the threads and workers, as both deal out elements in
    # turn: of single rows, a worker would batch only its own. It is also twice
    # as fast for tiny images [2 cores].
    batches = local.map(_HostRow(stream, *hosts)).batch(size)
    ahead = grain.ReadOptions(
        num_threads=self.num_threads,
        prefetch_buffer_size=max(self.prefetch, self.num_threads),
    )
    dataset = batches.to_iter_dataset(ahead)
    if self.num_workers == 0:
      _settle_opencv()
      return iter(dataset)
    if not flags.FLAGS.is_parsed():
      # Grain reads its own flags here, which only absl's app.run has parsed.
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(
        num_workers=self.num_workers, per_worker_buffer_size=1
    )
    return iter(dataset.mp_prefetch(options, _settle_opencv))


def _settle_opencv(worker: int = 0, workers: int = 1) -> None:
  """Keeps OpenCV's threads from fighting those that read for the cores."""
  del worker, workers
  cv2.setNumThreads(0)
  # What it says of a broken image is told once, and with the image's name.
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def unreadable_reason(source: Any, index: int) -> str:
  """Returns why an example cannot be read; '' if it can."""
  try:
    EncodedImage(source[index]['image'], source.channels).pixels()
  except UnreadableError as error:
    return str(error)
  return ''


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
      self, source: Any, most: float, prompt: bool, left_out: Sequence[str]
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
    for index in map(int, numbers[numbers != NONE]):
      if index not in self._known:
        reason = unreadable_reason(self._source, index)
        self._known[index] = self._source.describe(
            index, reason or 'it was not, a moment ago'
        )
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


class _Batches:
  """What `data.create` says that all batches have."""

  def __init__(
      self,
      reader: Reader,
      source: Any,
      stream: grain.MapDataset,
      met: float,
      left_out: Sequence[str],
  ):
    """Takes what reads which stream, and how many examples this host meets."""
    if reader.batch_size % reader.process_count:
      raise InputError(
          f'batch_size {reader.batch_size} cannot be divided among '
          f'{reader.process_count} hosts; choose a multiple of that'
      )
    self._reader, self._stream = reader, stream
    alone = reader.process_count == 1
    most = reader.max_bad_fraction * met
    self.unreadable = Unreadable(source, most, alone, left_out)
    self.num_examples, self.num_left_out = len(source), 0
    self.num_classes = source.num_classes
    self.class_names = source.class_names
    self.category_ids = source.category_ids
    self.channels = source.channels


class TrainBatches(_Batches):
  """Endless batches; an iterator whose state is how many it has delivered.

  Args:
    reader: says how to read.
    row: of every position.
    row_seed: with the position, fixes the random numbers of a row.
    num_examples: that `row.order` shows of the source.
    repeats: rows in succession of each.
    left_out: see `Unreadable`.

  Raises:
    InputError: a batch is of more rows than there are examples, or cannot be
      divided among the hosts.
  """

  def __init__(
      self,
      reader: Reader,
      row: TrainRow,
      row_seed: int,
      num_examples: int,
      repeats: int = 1,
      left_out: Sequence[str] = (),
  ):
    endless = grain.MapDataset.range(sys.maxsize)
    stream = endless.random_map(row, seed=int(row_seed))
    # In the course of time, every host meets all of the split.
    super().__init__(reader, row.source, stream, len(row.source), left_out)
    if reader.batch_size > num_examples:
      raise InputError(
          f'batch_size {reader.batch_size} is more than the {num_examples} '
          f'examples of split {reader.train_split!r}; choose a smaller one'
      )
    self.num_examples = num_examples
    self.num_left_out = len(row.source) - num_examples
    self.batches_per_epoch = num_examples / reader.batch_size
    self._identity = {
        'seed': reader.seed,
        'batch_size': reader.batch_size,
        'num_examples': num_examples,
        'repeats': repeats,
    }
    self._delivered = 0
    self._open = None

  def __iter__(self) -> 'TrainBatches':
    return self

  def __next__(self) -> Batch:
    if self._open is None:
      self._open = self._reader.read(self._stream, self._delivered)
    batch = next(self._open)
    self._delivered += 1
    return self.unreadable.take(batch)

  def get_state(self) -> dict[str, int]:
    """Returns what `set_state` needs to go on with the next batch, as JSON.

    Hosts, workers, threads and prefetching may be others then.
    """
    return {'batches': self._delivered, **self._identity}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes to where `get_state` returned `state`.

    Raises:
      InputError: the state is of another stream.
    """
    for key, here in self._identity.items():
      there = state.get(key)
      if there != here:
        raise InputError(
            f'the data state was written with {key} {there}, and this run has'
            f' {here}; resume with {key}={there} or start a new run'
        )
    self.close()
    self._delivered = state['batches']

  def close(self) -> None:
    """Stops threads and workers; `next` would start them again, in place."""
    if self._open is not None:
      self._open.close()
      self._open = None


class EvalBatches(_Batches):
  """Every example once, in the same order each time it is iterated over.

  The last batch (of each group) is filled up with rows whose mask is False, and
  all hosts yield the same number of batches. Arguments and errors are those of
  `TrainBatches`.
  """

  def __init__(
      self, reader: Reader, row: EvalRow, left_out: Sequence[str] = ()
  ):
    self.batches_per_epoch = row.order.num_batches()
    rows = self.batches_per_epoch * reader.batch_size
    # A host meets its own part of the split.
    met = len(row.source) / reader.process_count
    stream = grain.MapDataset.range(rows).map(row)
    super().__init__(reader, row.source, stream, met, left_out)

  def __iter__(self) -> Iterator[Batch]:
    opened = self._reader.read(self._stream, 0, self.batches_per_epoch)
    try:
      for batch in opened:
        yield self.unreadable.take(batch)
    finally:
      opened.close()  # Also when the loop over the batches was left early.
