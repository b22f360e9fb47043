"""From a source to batches, by Grain, the same on any machine.

position --order--> example --make_row--> row, b rows a batch

`order` says which example stands where. `make_row(source, index, group, rng)`
reads, decodes and augments; it is given by the reader of the data set, sent to
worker processes, and raises UnreadableError for what cannot be used. Without
`rng` the row is as evaluated; that of index NONE is blank, its mask False.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import json
from typing import Annotated, Any
import weakref

import grain
import numpy as np

from awconv_jax import memory
from awconv_jax.data import workers
from awconv_jax.data.decode import UnreadableError
from awconv_jax.data.order import EvalOrder, GroupedOrder
from awconv_jax.errors import InputError, some
from awconv_jax.options import (
    AnyPath,
    Bound,
    NonNegativeInt,
    PositiveInt,
    UnitFloat,
)

Row = dict[str, Any]
Batch = dict[str, np.ndarray]
Rng = np.random.Generator | None  # None in evaluation.
# In the place of an example's number.
NONE = -1
# Bytes that a reading process takes at the least, beside its batches.
_PROCESS = 2**27
# So many examples are compared between hosts.
_HASHED = 64


@dataclasses.dataclass(frozen=True)
class ReadRow:
  """Position -> row, augmented where random numbers are given."""

  source: Any
  order: Callable[[int], tuple[int, Sequence[int]]]
  make_row: Callable[..., Row]

  def __call__(self, position: int, rng: Rng = None) -> Row:
    group, candidates = self.order(position)
    unreadable, reason = NONE, ''
    for index in candidates:
      try:
        row = self.make_row(self.source, index, group, rng)
        break
      except UnreadableError as error:
        unreadable, reason = candidates[0], reason or str(error)
    else:
      if rng is not None:
        raise InputError(
            f'{len(candidates)} examples in succession cannot be read, the '
            f'first: {self.source.place(unreadable)}: {reason}'
        )
      row = self.make_row(self.source, NONE, group, None)
    return row | {'unreadable': np.int32(unreadable), 'reason': np.str_(reason)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """The options of `config.data` that all data sets have, and the caller's.

  Attributes:
    open_split: `(dir, split) -> source`; see `sources`.
    train: endless shuffled augmented batches, or one pass in order.
    batch_size: rows of a batch over all hosts.
    seed: fixes order and augmentation; evaluation has no use for it.
    process_index, process_count: this host, and how many there are.
    dir: directory of the sets that TFDS has prepared; None is $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    train_split, eval_split: of the data set.
    max_bad_fraction: share of the split that may be unreadable.
    num_workers: processes that read; 0 reads in this one.
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
  dir: AnyPath | None = None
  train_split: str = 'train'
  eval_split: str = 'test'
  max_bad_fraction: UnitFloat = 0.0
  num_workers: Annotated[int, Bound(ge=0, le=1024)] = 0
  num_threads: Annotated[int, Bound(ge=0, le=1024)] = 1
  prefetch: NonNegativeInt = 4

  def blank(self, make_row: Callable[[], Row]) -> Batch:
    """Returns this host's part of a batch of one row, without its memory.

    Raises:
      InputError: the batches that are read ahead need more than there is.
    """
    rows = self.batch_size // self.process_count
    row = {k: np.asarray(v) for k, v in make_row().items()}
    size = rows * sum(value.nbytes for value in row.values())
    held = max(self.prefetch, self.num_threads) + 2
    held *= max(self.num_workers, 1)
    need = held * size + self.num_workers * _PROCESS
    most = memory.limit()
    if need > most:
      raise InputError(
          f'batch_size={self.batch_size} is {size / 1e9:.3g} GB, of which '
          f'prefetch={self.prefetch} and num_workers={self.num_workers} hold '
          f'{held}: that takes {need / 1e9:.3g} GB of memory, and there are '
          f"{most / 1e9:.3g}; lower one of them or the images' size"
      )
    return {k: np.broadcast_to(v, (rows, *v.shape)) for k, v in row.items()}

  def read(self, batches: grain.MapDataset) -> Generator[Batch, None, None]:
    """Yields the batches, read ahead in threads and workers."""
    ahead = grain.ReadOptions(
        num_threads=self.num_threads,
        prefetch_buffer_size=max(self.prefetch, self.num_threads),
    )
    if self.num_workers:
      yield from workers.read(batches, ahead, self.num_workers)
    else:
      workers.settle_opencv()
      with contextlib.closing(iter(batches.to_iter_dataset(ahead))) as opened:
        yield from opened


def check_classes(one: Any, other: Any, splits: tuple[str, str]) -> None:
  """Raises InputError if labels mean other classes in two sources or batches.

  By the data set's numbers of the classes, where it has any; `splits` has the
  names of the two.
  """
  numbers = [s.category_ids or range(len(s.class_names)) for s in (one, other)]
  a, b = (
      dict(zip(n, s.class_names, strict=True))
      for n, s in zip(numbers, (one, other), strict=True)
  )
  keys = sorted(k for k in a | b if a.get(k) != b.get(k))
  if keys:
    kind = 'label' if one.category_ids is None else 'id'
    pairs = ((k, a.get(k, 'absent'), b.get(k, 'absent')) for k in keys)
    shown = (f'{kind} {k} is {x!r} and {y!r}' for k, x, y in pairs)
    raise InputError(
        f'splits {splits[0]!r} and {splits[1]!r} must have the same classes; '
        f'{len(keys)} differ: {some(shown, 5)}'
    )


class Unreadable:
  """Which examples could not be read, and whether they are too many.

  Args:
    source: of the examples; its faults are told with the rest.
    most: how many may be unreadable, on this host.
  """

  def __init__(self, source: Any, most: float):
    self._source, self._most = source, most
    self._known, self._untold = {}, list(source.faults)

  def __len__(self) -> int:
    return len(self._known)

  def take(self, batch: Batch) -> Batch:
    """Returns the batch without its note of what was unreadable.

    Raises:
      InputError: there are more than are allowed; all of them are named.
    """
    numbers = batch.pop('unreadable').tolist()
    for index, reason in zip(numbers, batch.pop('reason'), strict=True):
      if index != NONE and index not in self._known:
        line = f'{self._source.place(index)} cannot be read: {reason}'
        self._known[index] = line
        self._untold.append(line)
    self._check()
    return batch

  def _check(self) -> None:
    """Raises InputError, with all their names, if there are too many."""
    if len(self) > self._most:
      raise InputError(
          f'{len(self)} of {len(self._source)} examples cannot be read, more '
          f'than the {int(self._most)} that config.data.max_bad_fraction '
          f'allows; mend them or raise it: {"; ".join(self._known.values())}'
      )

  def news(self) -> list[str]:
    """Returns a line for each that was met since the last call."""
    news, self._untold = self._untold, []
    return news


class _Batches:
  """What `data.create` says that all batches have, of a stream of rows."""

  def __init__(self, reader: Reader, source: Any, number: int, stream: Any):
    hosts = reader.process_count
    if reader.batch_size % hosts:
      raise InputError(
          f'config.batch_size={reader.batch_size} must be a multiple of {hosts}'
          ' hosts'
      )
    self._reader = reader
    # Each host has its part of every batch. Batched before the threads and
    # workers, as both deal out elements in turn: of single rows, a worker would
    # batch only its own. It is also twice as fast for tiny images [2 cores].
    parts = stream.batch(reader.batch_size // hosts)
    self._batches = parts[reader.process_index :: hosts]
    # A host meets its part of what is evaluated, and of training all in time.
    met = len(source) / (1 if reader.train else hosts)
    most = reader.max_bad_fraction * met
    self.unreadable = Unreadable(source, most)
    self.num_examples, self.num_left_out = number, len(source) - number
    self.num_classes = len(source.class_names)
    self.class_names = source.class_names
    self.category_ids = source.category_ids
    self.channels = source.channels
    self.place = source.place
    self._source = source

  def summary(self) -> list[Any]:
    """Returns, as JSON, what on each host must be the same of the data.

    It is their number, the classes, and a hash over some of the examples.
    """
    digest, size = hashlib.sha256(), len(self._source)
    for index in sorted({size * i // _HASHED for i in range(_HASHED)}):
      try:
        record = self._source[index]
      except UnreadableError:
        continue
      digest.update(record['image'])
      if 'objects' in record:
        parts = vars(record['objects']).values()
      else:
        parts = [record['label' if 'label' in record else 'classes']]
      for part in parts:
        digest.update(np.asarray(part).tobytes())
    names = json.dumps(self.class_names)
    digest.update(names.encode())
    numbers = size, self.num_examples, self.num_classes
    return [*map(int, numbers), digest.hexdigest()[:12]]


class TrainBatches(_Batches):
  """Endless batches; an iterator whose state is how many it has delivered.

  `blank` has the shapes and types of the first one.
  """

  def __init__(
      self, reader: Reader, source: Any, order: Any, make_row: Any, seed: int
  ):
    """Takes what reads; `seed` and position fix a row's random numbers."""
    # Endless; Grain counts the batches by floats, which are exact so far.
    places = grain.MapDataset.range(2**53)
    stream = places.random_map(ReadRow(source, order, make_row), seed=int(seed))
    super().__init__(reader, source, order.num_examples, stream)
    if reader.batch_size > order.num_examples:
      raise InputError(
          f'config.batch_size={reader.batch_size} is more than the '
          f'{order.num_examples} examples of split {reader.train_split!r}'
      )
    self.blank = reader.blank(lambda: make_row(source, NONE, 0, None))
    self.batches_per_epoch = order.num_examples / reader.batch_size
    counts = dict(num_examples=order.num_examples, repeats=order.repeats)
    sizes = dict(seed=reader.seed, batch_size=reader.batch_size)
    self._identity = sizes | counts
    self._delivered, self._open = 0, None

  def __iter__(self) -> 'TrainBatches':
    return self

  def __next__(self) -> Batch:
    if self._open is None:
      opened = self._reader.read(self._batches[self._delivered :])
      weakref.finalize(self, opened.close)  # In time, if nobody does.
      self._open = opened
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
      if (there := state.get(key)) != here:
        raise InputError(
            f'the data state was written with {key} {there}, and this run has '
            f'{here}; resume with that, or start a new run'
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
  all hosts yield the same number of batches. `blank` has the shapes and types
  of the first one.
  """

  def __init__(self, reader: Reader, source: Any, examples: Any, make_row: Any):
    """Takes what reads, and the numbers of the examples by group."""
    # As the first batch is, but for its pixels.
    group = next(i for i, part in enumerate(examples) if len(part))
    self.blank = reader.blank(lambda: make_row(source, NONE, group, None))
    order = EvalOrder(examples, reader.batch_size)
    positions = grain.MapDataset.range(order.num_batches * reader.batch_size)
    stream = positions.map(ReadRow(source, order, make_row))
    super().__init__(reader, source, len(source), stream)
    self.batches_per_epoch = order.num_batches

  def __iter__(self) -> Iterator[Batch]:
    # Closed also when the loop over the batches is left early.
    with contextlib.closing(self._reader.read(self._batches)) as opened:
      yield from map(self.unreadable.take, opened)


def by_groups(
    reader: Any, source: Any, examples: Sequence[np.ndarray]
) -> TrainBatches | EvalBatches:
  """Returns batches of images of one group each, such as of one orientation.

  Args:
    reader: a `Reader` with `row`, which makes the rows.
    source: of the split.
    examples: numbers of the examples of each group.
  """
  if not reader.train:
    return EvalBatches(reader, source, examples, reader.row)
  order = GroupedOrder(examples, reader.batch_size, reader.seed)
  # Not a seed that `order` uses.
  seed = np.random.SeedSequence((reader.seed, 1)).generate_state(1)[0]
  return TrainBatches(reader, source, order, reader.row, seed)
