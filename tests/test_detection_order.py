"""Which example stands in which row, where batches hold one orientation."""

import collections

import numpy as np
import pytest

from awconv_jax.data.order import EvalOrder, GroupedOrder, groups


def examples(landscape, portrait):
  numbers = np.random.default_rng(0).permutation(landscape + portrait)
  return np.sort(numbers[:landscape]), np.sort(numbers[landscape:])


def batch(order, number, size):
  """Returns the groups of a batch's rows and their examples."""
  found = [order(number * size + row) for row in range(size)]
  return {group for group, _ in found}, [first for _, (first, *_) in found]


def batches_until(parts, size, epoch):
  return sum(epoch * len(part) // size for part in parts)


def test_squares_are_landscape():
  landscape, portrait = groups(np.array([[3, 4], [4, 3], [3, 3], [9, 2]]))
  assert (list(landscape), list(portrait)) == ([0, 2], [1, 3])


PARTS = [((37, 21), 8), ((50, 3), 8), ((16, 0), 4), ((0, 9), 4), ((4, 4), 8)]


@pytest.mark.parametrize('parts, size', PARTS)
def test_every_epoch_shows_every_example_once(parts, size):
  parts = examples(*parts)
  order = GroupedOrder(parts, size, seed=3)
  seen, number = collections.Counter(), 0
  for epoch in range(1, 7):
    while number < batches_until(parts, size, epoch):
      kinds, rows = batch(order, number, size)
      assert len(kinds) == 1
      seen.update(rows)
      number += 1
    for part in parts:
      counts = np.array([seen[i] for i in part])
      # What is left over at the end of an epoch is less than a batch.
      if len(part) >= size:
        assert ((counts == epoch) | (counts == epoch - 1)).all()
      elif len(part):
        assert counts.max() - counts.min() <= 1
      assert (epoch - counts).sum() == epoch * len(part) % size
  assert seen.total() == number * size


def test_orders_differ_by_seed_and_epoch_and_mix_the_orientations():
  parts = examples(64, 32)
  orders = [GroupedOrder(parts, 8, seed) for seed in (0, 0, 1)]
  a, b, c = ([batch(o, n, 8) for n in range(24)] for o in orders)
  assert a == b
  assert [rows for _, rows in a] != [rows for _, rows in c]
  assert a[:12] != a[12:]
  kinds = [next(iter(kind)) for kind, _ in a]
  assert kinds[:12] != sorted(kinds[:12]) and kinds[:12] != kinds[12:]
  assert collections.Counter(kinds[:12]) == {0: 8, 1: 4}


@pytest.mark.parametrize('far', [8, 8 * 10**10])
def test_epochs_that_leave_nothing_over_show_all_equally_often(far):
  parts, size = examples(37, 21), 8
  order = GroupedOrder(parts, size, seed=0)
  first = far * 58 // size  # Of 8 epochs, 464 examples.
  found = [batch(order, first + i, size) for i in range(58)]
  seen = collections.Counter(i for _, rows in found for i in rows)
  assert seen == dict.fromkeys(range(58), size)


@pytest.mark.parametrize('parts', [(5, 3), (8, 4), (0, 3), (3, 0)])
def test_evaluation_shows_every_example_once_and_blank_rows(parts):
  parts = examples(*parts)
  order = EvalOrder(parts, 4)
  rows = [order(i) for i in range(4 * order.num_batches)]
  shown = [index for _, chosen in rows for index in chosen]
  assert shown == [*parts[0], *parts[1]]
  for start in range(0, len(rows), 4):
    assert len({group for group, _ in rows[start : start + 4]}) == 1
  with pytest.raises(IndexError):
    order(len(rows))
