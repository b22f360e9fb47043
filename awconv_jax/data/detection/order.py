"""Which example stands in which row, where batches hold one orientation each.

Landscape and portrait images lie on canvases of their own, so that a batch
holds images of one of these groups only. As in data/rows.py nothing remembers
anything: what stands at a position of the stream is a function of numbers.
"""

from collections.abc import Sequence
import dataclasses
import functools

import grain
import numpy as np

LANDSCAPE, PORTRAIT = 0, 1


def groups(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the numbers of the landscape and of the portrait images.

  Args:
    sizes: heights and widths, [N, 2]; a square is landscape.
  """
  portrait = sizes[:, 0] > sizes[:, 1]
  return np.flatnonzero(~portrait), np.flatnonzero(portrait)


@functools.lru_cache(maxsize=8)
def _slots(counts: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
  """Returns the epoch's batches in random order, [n, 2]: group and number."""
  slots = np.array(
      [(g, i) for g, count in enumerate(counts) for i in range(count)]
  ).reshape(-1, 2)
  return np.random.default_rng((seed, epoch)).permutation(slots)


class TrainOrder:
  """The endless order of training: position -> the group and its example.

  Each group is a stream of its own: pass e over its n examples is positions
  [e * n, (e + 1) * n), in an order fixed by (seed, e). It is cut into batches.
  Epoch e consists of the batches that are full when both groups have been
  passed over e + 1 times and were not full before, in an order fixed by (seed,
  e). So no example is lost or shown twice in a pass: the less than a batch
  that a group leaves over at an epoch's end begins a batch of the next one. (A
  group of less than a batch shows its examples several times at once, and then
  not for some epochs.)
  """

  def __init__(
      self, examples: Sequence[np.ndarray], batch_size: int, seed: int
  ):
    """Takes the groups; at least a batch of examples is needed in all.

    Args:
      examples: numbers of the examples, by group.
      batch_size: rows of a batch over all hosts.
      seed: at least 0.
    """
    self._examples = tuple(np.asarray(e) for e in examples)
    self._batch_size, self._seed = batch_size, seed
    # Hashed, so that neighbouring seeds are not each other's epochs.
    seeds = np.random.SeedSequence(seed).generate_state(len(examples))
    self._shuffled = tuple(
        grain.MapDataset.range(max(len(e), 1)).shuffle(seed=int(s))
        for e, s in zip(self._examples, seeds, strict=True)
    )

  def _batches_before(self, epoch: int) -> np.ndarray:
    """Returns how many batches each group has had when an epoch begins."""
    return np.array(
        [epoch * len(e) // self._batch_size for e in self._examples]
    )

  def _batch(self, number: int) -> tuple[int, int]:
    """Returns the group of a batch of the stream, and its number therein."""
    total = sum(len(e) for e in self._examples)
    epoch = number * self._batch_size // total
    while self._batches_before(epoch + 1).sum() <= number:
      epoch += 1
    before, after = map(self._batches_before, (epoch, epoch + 1))
    counts = tuple(int(count) for count in after - before)
    group, rank = _slots(counts, self._seed, epoch)[number - before.sum()]
    return int(group), int(before[group] + rank)

  def find(self, position: int) -> tuple[int, int]:
    """Returns the group at a position of the stream, and where in the group.

    Args:
      position: at least 0; `batch * batch_size + row`.

    Returns:
      The group, and a number p such that `example(group, p)` stands there.
    """
    batch, row = divmod(position, self._batch_size)
    group, number = self._batch(batch)
    return group, int(self._shuffled[group][number * self._batch_size + row])

  def example(self, group: int, place: int) -> int:
    """Returns an example's number; beyond the group's last, the first again."""
    return int(self._examples[group][place % len(self._examples[group])])

  def group_size(self, group: int) -> int:
    """Returns how many examples a group has."""
    return len(self._examples[group])


@dataclasses.dataclass(frozen=True)
class EvalOrder:
  """Every example once: the groups in turn, each filled up to whole batches.

  Attributes:
    examples: numbers of the examples, by group.
    batch_size: rows of a batch over all hosts.
  """

  examples: tuple[np.ndarray, ...]
  batch_size: int

  def num_batches(self) -> int:
    """Returns how many batches hold all examples."""
    return sum(-(-len(e) // self.batch_size) for e in self.examples)

  def __call__(self, position: int) -> tuple[int, int | None]:
    """Returns the group at a position and the example, None in blank rows."""
    for group, examples in enumerate(self.examples):
      rows = -(-len(examples) // self.batch_size) * self.batch_size
      if position < rows:
        blank = position >= len(examples)
        return group, None if blank else int(examples[position])
      position -= rows
    raise IndexError(f'{position} rows beyond the last batch')
