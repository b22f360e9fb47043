"""Which example stands in which row of which batch, as a function of numbers.

Nothing here remembers anything: row r of batch k is example number
`k * batch_size + r` of a stream that is fixed by the seed. So a run resumes
by starting at a later batch, and neither the number of hosts nor that of
threads or processes can change what a batch holds.
"""

import dataclasses
import sys
from typing import Any

from absl import flags
import cv2
import grain
import numpy as np

from awconv_jax.data import augment
from awconv_jax.errors import InputError

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Share:
  """The rows that one host reads of every global batch, counted from 0.

  Attributes:
    batch_size: rows of a global batch.
    process_index: this host.
    process_count: all hosts.
  """

  batch_size: int
  process_index: int
  process_count: int

  @property
  def rows(self) -> int:
    """Rows of every batch that fall to this host."""
    return self.batch_size // self.process_count

  def position(self, local: int) -> int:
    """Returns the place in the stream of this host's row number `local`."""
    batch, row = divmod(local, self.rows)
    return batch * self.batch_size + self.process_index * self.rows + row


def train_stream(
    source: Any, chain: augment.Chain, image_size: int, seed: int
) -> grain.MapDataset:
  """Returns the endless stream of shuffled, augmented examples.

  Epoch e is the positions [e * N, (e + 1) * N): all N examples in an order
  fixed by (seed, e). The random numbers of an augmentation are fixed by
  (seed, position).

  Args:
    source: random-access records, of length N.
    chain: the augmentations, on images as the source has them.
    image_size: height and width of the result, in pixels.
    seed: the run's seed.

  Returns:
    The stream; `stream[position]` is one row.
  """
  # Grain shuffles epoch e by seed + e. Hashing the seed first keeps the runs
  # of seeds 0, 1, 2 from being one order, shifted by an epoch each.
  shuffle, augmentation = np.random.SeedSequence(seed).generate_state(2)
  return (
      grain.MapDataset.source(source)
      .shuffle(seed=int(shuffle))
      .repeat()
      .random_map(_TrainRow(chain, image_size), seed=int(augmentation))
  )


@dataclasses.dataclass(frozen=True)
class _TrainRow:
  """Makes a row of a record; a class so that worker processes can load it."""

  chain: augment.Chain
  image_size: int

  def __call__(self, record: Row, rng: np.random.Generator) -> Row:
    image = self.chain(record['image'], rng)
    # Last, so that augmentations see all pixels and shapes always agree.
    return _row(augment.resize(image, None, size=self.image_size), record)


class EvalStream:
  """The examples in their order, and blank rows after the last of them."""

  def __init__(self, source: Any, image_size: int):
    self._source = source
    self._image_size = image_size
    channels = source[0]['image'].shape[-1]
    self._shape = (image_size, image_size, channels)

  def __getitem__(self, position: int) -> Row:
    if position >= len(self._source):
      image = np.zeros(self._shape, np.uint8)
      return {'image': image, 'label': np.int32(0), 'mask': np.bool_(False)}
    record = self._source[position]
    image = augment.resize(record['image'], None, size=self._image_size)
    return _row(image, record)


def _row(image: np.ndarray, record: Row) -> Row:
  return {
      'image': image,
      'label': np.int32(record['label']),
      'mask': np.bool_(True),
  }


@dataclasses.dataclass(frozen=True)
class _Lookup:
  """This host's row number -> the row; loads in worker processes too."""

  stream: Any
  share: Share

  def __call__(self, local: int) -> Row:
    return self.stream[self.share.position(local)]


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads one host's batches of a stream, ahead of their use.

  Attributes:
    stream: `stream[position]` is a row.
    share: the rows of every batch that are read here.
    num_workers: processes that read; 0 reads in this one. A script that uses
      them needs `if __name__ == '__main__':`, as for all multiprocessing.
    num_threads: threads per reading process, each making a whole batch. For
      tiny images one is best: they hold the interpreter's lock most of the
      time. For JPEGs, as many as there are cores.
    prefetch: batches being made or ready, per reading process; num_threads
      at least, as any thread makes one.
  """

  stream: Any
  share: Share
  num_workers: int
  num_threads: int
  prefetch: int

  def __post_init__(self):
    for key in ('num_workers', 'num_threads', 'prefetch'):
      if getattr(self, key) < 0:
        raise InputError(
            f'config.data.{key}={getattr(self, key)} must be at least 0'
        )
    # Grain lets the threads idle and only warns, in a log line of its own.
    if self.prefetch < self.num_threads:
      raise InputError(
          f'config.data.prefetch={self.prefetch} is less than config.data.'
          f'num_threads={self.num_threads}, so threads would idle; raise the '
          'one or lower the other'
      )

  def open(self, start: int, stop: int | None = None) -> grain.DatasetIterator:
    """Starts reading at batch `start`, up to `stop` or for ever."""
    size = self.share.rows
    end = sys.maxsize if stop is None else stop * size
    local = grain.MapDataset.range(start * size, end)
    # Batched before the threads and workers, as both deal out elements in
    # turn: of single rows, a worker would batch only its own. It is also twice
    # as fast for tiny images [2 cores].
    batches = local.map(_Lookup(self.stream, self.share)).batch(size)
    ahead = grain.ReadOptions(
        num_threads=self.num_threads, prefetch_buffer_size=self.prefetch
    )
    dataset = batches.to_iter_dataset(ahead)
    if self.num_workers == 0:
      _one_thread_for_opencv()
      return iter(dataset)
    if not flags.FLAGS.is_parsed():
      # Grain reads its own flags here, which only absl's app.run has parsed.
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(
        num_workers=self.num_workers, per_worker_buffer_size=1
    )
    return iter(dataset.mp_prefetch(options, _one_thread_for_opencv))


def _one_thread_for_opencv(worker: int = 0, workers: int = 1) -> None:
  """Keeps OpenCV's threads from fighting those of the reader for the cores."""
  del worker, workers
  cv2.setNumThreads(0)
