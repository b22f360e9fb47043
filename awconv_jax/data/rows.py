"""Which example stands in which row of which batch, as a function of numbers.

Nothing here remembers anything: row r of batch k is example number
`k * batch_size + r` of a stream that is fixed by the seed. So a run resumes
by starting at a later batch, and neither the number of hosts nor that of
threads or processes can change what a batch holds.
"""

from collections.abc import Callable
import dataclasses
import sys
from typing import Any

from absl import flags
import cv2
import grain
import numpy as np

from awconv_jax.data import decode
from awconv_jax.errors import InputError

Row = dict[str, Any]
# In the place of an example's number.
NONE = -1
# Neighbours that are tried in the place of an example that cannot be read.
_TRIES = 100


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
    source: Any, chain: Any, seed: int, repeats: int = 1
) -> grain.MapDataset:
  """Returns the endless stream of shuffled, augmented examples.

  Pass e over the data is the positions [e * N * repeats, (e + 1) * N *
  repeats): all N examples in an order fixed by (seed, e), each `repeats` times
  in succession. The random numbers of an augmentation are fixed by (seed,
  position).

  Args:
    source: random-access records of encoded images, of length N.
    chain: `(picture, rng) -> image`, the augmentations; see `augment.Chain`.
    seed: the run's seed.
    repeats: rows in succession that show the same example (repeated
      augmentation, https://arxiv.org/abs/1901.09335).

  Returns:
    The stream; `stream[position]` is one row.
  """
  # Grain shuffles epoch e by seed + e. Hashing the seed first keeps the runs
  # of seeds 0, 1, 2 from being one order, shifted by an epoch each.
  shuffle, augmentation = np.random.SeedSequence(seed).generate_state(2)
  # Its positions may be beyond N: each N of them are another order.
  order = grain.MapDataset.range(len(source)).shuffle(seed=int(shuffle))
  row = _TrainRow(source, chain, order, repeats)
  positions = grain.MapDataset.range(sys.maxsize)
  return positions.random_map(row, seed=int(augmentation))


@dataclasses.dataclass(frozen=True)
class _TrainRow:
  """Position in the stream -> row; a class so that workers can load it.

  In the place of an example that cannot be read stands the next one that can.
  """

  source: Any
  chain: Any
  order: Any
  repeats: int

  def __call__(self, position: int, rng: np.random.Generator) -> Row:
    length = len(self.source)
    index = self.order[position // self.repeats]
    unreadable, tries = NONE, min(_TRIES, length)
    for step in range(tries):
      taken = (index + step) % length
      try:
        record = self.source[taken]
        picture = decode.Picture(record['image'], self.source.channels)
        image = self.chain(picture, rng)
        return _row(taken, image, record['label'], unreadable)
      except decode.UnreadableError:
        unreadable = index
    raise InputError(
        f'{tries} examples in succession cannot be read, the first: '
        + self.source.describe(index, reason(self.source, index))
    )


class EvalStream:
  """The examples in their order, and blank rows after the last of them.

  Blank, too, are the rows of examples that cannot be read.
  """

  def __init__(self, source: Any, crop: Callable[[decode.Picture], np.ndarray]):
    """Takes the records and what brings their pictures to size."""
    self._source, self._crop = source, crop
    self._blank = np.zeros_like(crop(_blank_picture(source.channels)))
    self._no_label = np.zeros_like(np.int32(source[0]['label']))

  def __getitem__(self, position: int) -> Row:
    if position >= len(self._source):
      return self._blank_row(NONE)
    try:
      record = self._source[position]
      picture = decode.Picture(record['image'], self._source.channels)
      image = self._crop(picture)
    except decode.UnreadableError:
      return self._blank_row(position)
    return _row(position, image, record['label'], NONE)

  def _blank_row(self, unreadable: int) -> Row:
    return {
        'image': self._blank,
        'label': self._no_label,
        'index': np.int32(NONE),
        'mask': np.bool_(False),
        'unreadable': np.int32(unreadable),
    }


def _blank_picture(channels: int) -> decode.Picture:
  _, png = cv2.imencode('.png', np.zeros((1, 1, channels), np.uint8))
  return decode.Picture(png.tobytes(), channels)


def reason(source: Any, index: int) -> str:
  """Returns why an example cannot be read; '' if it can."""
  try:
    decode.Picture(source[index]['image'], source.channels).pixels()
  except decode.UnreadableError as error:
    return str(error)
  return ''


def _row(index: int, image: np.ndarray, label: Any, unreadable: int) -> Row:
  """Returns a row of a batch.

  Args:
    index: of the example.
    image: uint8 [S, S, C].
    label: one, or an array [L] of those that are right, padded with -1; a row
      with none is masked.
    unreadable: the example that this one stands for, or NONE.
  """
  label = np.int32(label)
  return {
      'image': image,
      'label': label,
      'index': np.int32(index),
      'mask': np.any(label >= 0),
      'unreadable': np.int32(unreadable),
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
  """Keeps OpenCV's threads from fighting those of the reader for the cores."""
  del worker, workers
  cv2.setNumThreads(0)
  # What it says of a broken image is told once, and with the image's name.
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
