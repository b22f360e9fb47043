"""Which example stands at which position of a stream, as a function of numbers.

Row r of batch k is position `k * batch_size + r` of a stream that is fixed by
the seed. So a run resumes by starting at a later batch, and neither hosts nor
threads nor processes can change what a batch holds.

An order is called with a position and returns a group and numbers of examples:
of the one that stands there, and of those that take its place where the ones
before cannot be read. Where images lie on canvases of several shapes, a batch
holds those of one group only: landscapes or portraits.
"""

from collections.abc import Sequence
import functools
from typing import Any

import grain
import numpy as np

PORTRAIT = 1  # The number of their group; landscapes are 0.
# Neighbours that are tried in the place of an example that cannot be read.
_TRIES = 100


def groups(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the numbers of the landscape and of the portrait images.

  `sizes` are heights and widths, [N, 2]; a square is landscape.
  """
  portrait = sizes[:, 0] > sizes[:, 1]
  return np.flatnonzero(~portrait), np.flatnonzero(portrait)


class ShuffledOrder:
  """Every example once an epoch, all in one group.

  Pass e over the data is the positions [e * N * repeats, (e + 1) * N *
  repeats): all N examples in an order fixed by (seed, e), each `repeats` times
  in succession (repeated augmentation, https://arxiv.org/abs/1901.09335).
  """

  def __init__(self, num_examples: int, seed: int, repeats: int = 1):
    # Grain shuffles epoch e by seed + e. `seed` is hashed, as the runs of 0, 1
    # and 2 would be one order, shifted by an epoch each.
    shuffle = np.random.SeedSequence(seed).generate_state(1)[0]
    self.num_examples, self.repeats = num_examples, repeats
    # Its positions may be beyond N: each N of them are another order.
    numbers = grain.MapDataset.range(num_examples)
    self._order = numbers.shuffle(seed=int(shuffle))

  def __call__(self, position: int) -> tuple[int, Sequence[int]]:
    first = self._order[position // self.repeats]
    tries = range(min(_TRIES, self.num_examples))
    return 0, [(first + step) % self.num_examples for step in tries]


@functools.lru_cache(maxsize=8)
def _slots(counts: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
  """Returns the epoch's batches in random order, [n, 2]: group and number."""
  slots = [(g, i) for g, count in enumerate(counts) for i in range(count)]
  rng = np.random.default_rng((seed, epoch))
  return rng.permutation(np.reshape(slots, (-1, 2)))


class GroupedOrder:
  """Every example once an epoch, in batches of one group each.

  Each group is a stream of its own: pass e over its n examples is positions
  [e * n, (e + 1) * n), in an order fixed by (seed, e). It is cut into batches.
  Epoch e consists of the batches that are full when both groups have been
  passed over e + 1 times and were not full before, in an order fixed by (seed,
  e). So no example is lost or shown twice in a pass: the less than a batch
  that a group leaves over at an epoch's end begins a batch of the next one. (A
  group of less than a batch shows its examples several times at once, and then
  not for some epochs.)
  """

  repeats = 1

  def __init__(self, examples: Sequence[Any], batch_size: int, seed: int):
    """Takes the numbers of the examples by group, at least a batch in all."""
    self._examples, self._batch_size, self._seed = examples, batch_size, seed
    self._counts = np.array([len(e) for e in examples])
    self.num_examples = int(self._counts.sum())
    # Hashed, so that neighbouring seeds are not each other's epochs.
    seeds = np.random.SeedSequence(seed).generate_state(len(examples))
    self._shuffled = [
        grain.MapDataset.range(max(n, 1)).shuffle(seed=int(s))
        for n, s in zip(self._counts, seeds, strict=True)
    ]

  def _batches_before(self, epoch: int) -> np.ndarray:
    """Returns how many batches each group has had when an epoch begins."""
    return epoch * self._counts // self._batch_size

  def __call__(self, position: int) -> tuple[int, Sequence[int]]:
    batch, row = divmod(position, self._batch_size)
    epoch = batch * self._batch_size // self.num_examples
    while self._batches_before(epoch + 1).sum() <= batch:
      epoch += 1
    before, after = map(self._batches_before, (epoch, epoch + 1))
    slots = _slots(tuple((after - before).tolist()), self._seed, epoch)
    group, rank = map(int, slots[batch - before.sum()])
    examples = self._examples[group]
    number = int(before[group]) + rank
    first = self._shuffled[group][number * self._batch_size + row]
    places = range(first, first + min(_TRIES, len(examples)))
    return group, [int(examples[place % len(examples)]) for place in places]


class EvalOrder:
  """Every example once: the groups in turn, each filled up to whole batches."""

  def __init__(self, examples: Sequence[Sequence[int]], batch_size: int):
    """Takes the numbers of the examples by group."""
    filled = [
        np.pad(np.int64(e), (0, -len(e) % batch_size), constant_values=-1)
        for e in examples
    ]
    self._numbers = np.concatenate(filled)
    self._groups = np.repeat(range(len(filled)), [len(f) for f in filled])
    self.num_batches = len(self._numbers) // batch_size

  def __call__(self, position: int) -> tuple[int, list[int]]:
    """Returns the group at a position and the example; none in blank rows."""
    number = int(self._numbers[position])
    return int(self._groups[position]), [number] if number >= 0 else []
