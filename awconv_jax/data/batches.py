"""From a source to batches, by Grain, the same on any machine.

position --order--> example --source--> record --row--> row, b rows a batch

`order` says which example stands where, `row` decodes and augments; both are
given by the reader of the data set. Here is what all readers have in common.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import sys
from typing import Any, Protocol

from absl import flags
import cv2
import grain
import numpy as np

from awconv_jax.data.decode import EncodedImage, UnreadableError
from awconv_jax.data.order import EvalOrder, TrainOrder
from awconv_jax.errors import InputError
from awconv_jax.options import NonNegativeInt, PositiveInt, UnitFloat

Row = dict[str, Any]
Batch = dict[str, np.ndarray]
# In the place of an example's number.
NONE = -1


@dataclasses.dataclass(frozen=True)
class Shard:
  """The rows that one host reads of every global batch, counted from 0.

  Attributes:
    batch_size: rows of a global batch.
    process_index: this host.
    process_count: all hosts.
  """

  batch_size: int
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    if self.batch_size < 1 or self.batch_size % self.process_count:
      raise InputError(
          f'batch_size {self.batch_size} cannot be divided among '
          f'{self.process_count} hosts; choose a positive multiple of '
          f'{self.process_count}'
      )

  @property
  def rows(self) -> int:
    """Rows of every batch that fall to this host."""
    return self.batch_size // self.process_count

  def position(self, local: int) -> int:
    """Returns the place in the stream of this host's row number `local`."""
    batch, row = divmod(local, self.rows)
    return batch * self.batch_size + self.process_index * self.rows + row


class MakeRow(Protocol):
  """Makes rows of records; loads in worker processes."""

  def __call__(
      self,
      index: int,
      record: Mapping[str, Any],
      group: int,
      rng: np.random.Generator | None,
  ) -> Row:
    """Returns the row of an example, augmented, or as evaluated without `rng`.

    Raises:
      UnreadableError: the example cannot be used.
    """

  def blank(self, group: int) -> Row:
    """Returns a row, whose mask is False, for evaluation."""


def train_stream(
    source: Any, order: TrainOrder, make_row: MakeRow, seed: int
) -> grain.MapDataset:
  """Returns the endless stream of augmented rows, `stream[position]`.

  Args:
    source: of the records.
    order: which stands where.
    make_row: decodes and augments.
    seed: with the position, fixes the random numbers of a row.
  """
  row = _TrainRow(source, order, make_row)
  return grain.MapDataset.range(sys.maxsize).random_map(row, seed=int(seed))


@dataclasses.dataclass(frozen=True)
class _TrainRow:
  """Position in the stream -> row; a class so that workers can load it."""

  source: Any
  order: TrainOrder
  make_row: MakeRow

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
class EvalStream:
  """Every example once; blank rows fill up, and stand for unreadable ones."""

  source: Any
  order: EvalOrder
  make_row: MakeRow

  def __getitem__(self, position: int) -> Row:
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
class _Lookup:
  """This host's row number -> the row; loads in worker processes too."""

  stream: Any
  shard: Shard

  def __call__(self, local: int) -> Row:
    return self.stream[self.shard.position(local)]


@dataclasses.dataclass(frozen=True)
class Loader:
  """Reads one host's batches of a stream, ahead of their use.

  Attributes:
    stream: `stream[position]` is a row.
    shard: the rows of every batch that are read here.
    num_workers, num_threads, prefetch: see `Reader`.
  """

  stream: Any
  shard: Shard
  num_workers: int
  num_threads: int
  prefetch: int

  def __post_init__(self):
    # Grain lets the threads idle and only warns, in a log line of its own.
    if self.prefetch < self.num_threads:
      raise InputError(
          f'config.data.prefetch={self.prefetch} is less than config.data.'
          f'num_threads={self.num_threads}, so threads would idle; raise the '
          'one or lower the other'
      )

  def open(self, start: int, stop: int | None = None) -> grain.DatasetIterator:
    """Starts reading at batch `start`, up to `stop` or for ever."""
    size = self.shard.rows
    end = sys.maxsize if stop is None else stop * size
    local = grain.MapDataset.range(start * size, end)
    # Batched before the threads and workers, as both deal out elements in
    # turn: of single rows, a worker would batch only its own. It is also twice
    # as fast for tiny images [2 cores].
    batches = local.map(_Lookup(self.stream, self.shard)).batch(size)
    ahead = grain.ReadOptions(
        num_threads=self.num_threads, prefetch_buffer_size=self.prefetch
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
  """Keeps OpenCV's threads from fighting those of the loader for the cores."""
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
    for index in map(int, numbers[numbers != NONE]):
      if index in self._known:
        continue
      reason = unreadable_reason(self._source, index)
      reason = reason or 'it was not, a moment ago'
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


class _Batches:
  """What `data.create` says that all batches have."""

  def __init__(self, loader: Loader, source: Any, unreadable: Unreadable):
    self.unreadable = unreadable
    self.num_examples, self.num_left_out = len(source), 0
    self.num_classes = source.num_classes
    self.class_names = source.class_names
    self.category_ids = source.category_ids
    self.channels = source.channels
    self._loader = loader


class TrainBatches(_Batches):
  """Endless batches; an iterator whose state is how many it has delivered."""

  def __init__(
      self,
      loader: Loader,
      source: Any,
      unreadable: Unreadable,
      *,
      num_examples: int,
      seed: int,
      repeats: int = 1,
  ):
    super().__init__(loader, source, unreadable)
    self.num_examples = num_examples
    self.num_left_out = len(source) - num_examples
    self.batches_per_epoch = num_examples / loader.shard.batch_size
    self._identity = {
        'seed': seed,
        'batch_size': loader.shard.batch_size,
        'num_examples': num_examples,
        'repeats': repeats,
    }
    self._delivered = 0
    self._open = None

  def __iter__(self) -> 'TrainBatches':
    return self

  def __next__(self) -> Batch:
    if self._open is None:
      self._open = self._loader.open(self._delivered)
    batch = next(self._open)
    self._delivered += 1
    return self.unreadable.take(batch)

  def get_state(self) -> dict[str, int]:
    """Returns what `set_state` needs to go on with the next batch, as JSON.

    Hosts, workers, threads and prefetching may be others then.
    """
    return {'batches': self._delivered, **self._identity}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes to where `get_state` was called.

    Args:
      state: what `get_state` returned.

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
  all hosts yield the same number of batches.
  """

  def __init__(
      self,
      loader: Loader,
      source: Any,
      unreadable: Unreadable,
      num_batches: int,
  ):
    super().__init__(loader, source, unreadable)
    self.batches_per_epoch = num_batches

  def __iter__(self) -> Iterator[Batch]:
    opened = self._loader.open(0, self.batches_per_epoch)
    try:
      for batch in opened:
        yield self.unreadable.take(batch)
    finally:
      opened.close()  # Also when the loop over the batches was left early.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """The options of `config.data` that all data sets have, and the caller's.

  Attributes:
    open_split: `(dir, split) -> source`; see `sources`.
    train: endless shuffled augmented batches, or one pass in order.
    batch_size: rows of a batch over all hosts.
    seed: fixes order and augmentation, and evaluation has no use for it.
    process_index: this host.
    process_count: all hosts.
    dir: directory of the sets that TFDS has prepared; None is $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    train_split, eval_split: of the data set.
    max_bad_fraction: share of the split that may be unreadable.
    num_workers: processes that read; 0 reads in this one. A script that uses
      them needs `if __name__ == '__main__':`, as for all multiprocessing.
    num_threads: threads per reading process, each making a whole batch. For
      tiny images one is best: they hold the interpreter's lock most of the
      time. For JPEGs, as many as there are cores.
    prefetch: batches being made or ready, per reading process; num_threads
      at least, as any thread makes one.
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

  def train_batches(
      self,
      source: Any,
      stream: Any,
      *,
      num_examples: int,
      repeats: int = 1,
      left_out: Sequence[str] = (),
  ) -> TrainBatches:
    """Returns the batches of an endless stream.

    Raises:
      InputError: a batch is of more rows than there are examples, or cannot be
        divided among the hosts.
    """
    if self.batch_size > num_examples:
      raise InputError(
          f'batch_size {self.batch_size} is more than the {num_examples} '
          f'examples of split {self.train_split!r}; choose a smaller one'
      )
    # In the course of time, every host meets all of the split.
    unreadable = self._unreadable(source, len(source), left_out)
    return TrainBatches(
        self._loader(stream),
        source,
        unreadable,
        num_examples=num_examples,
        seed=self.seed,
        repeats=repeats,
    )

  def eval_batches(
      self,
      source: Any,
      examples: Sequence[Sequence[int]],
      make_row: MakeRow,
      left_out: Sequence[str] = (),
  ) -> EvalBatches:
    """Returns batches of every example once, by group.

    Raises:
      InputError: a batch cannot be divided among the hosts.
    """
    order = EvalOrder(examples, self.batch_size)
    loader = self._loader(EvalStream(source, order, make_row))
    # A host meets its own part of the split.
    met = len(source) / self.process_count
    unreadable = self._unreadable(source, met, left_out)
    return EvalBatches(loader, source, unreadable, order.num_batches())

  def _loader(self, stream: Any) -> Loader:
    shard = Shard(self.batch_size, self.process_index, self.process_count)
    reading = (self.num_workers, self.num_threads, self.prefetch)
    return Loader(stream, shard, *reading)

  def _unreadable(self, source, met, left_out) -> Unreadable:
    most = self.max_bad_fraction * met
    return Unreadable(source, most, self.process_count == 1, left_out)
