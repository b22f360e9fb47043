"""Every example once an epoch, in an order that only seed and epoch decide."""

import hashlib
import itertools
import os
import subprocess
import sys

import commands
import numpy as np
import pytest

BATCH, LENGTH = 24, 500
# Two epochs and a bit: 41.7 batches are two epochs.
BATCHES = 43

# Reads {count} batches from batch {start} on, as host {host} of {hosts}, and
# prints (example, random number) of every row, batch by batch.
SCRIPT = """
import itertools, sys
sys.path.insert(0, 'tests')
import order_probe
from awconv_jax.data import batches as reading, order

if __name__ == '__main__':
  workers, host, hosts, start, count, repeats = map(int, sys.argv[1:])
  source = order_probe.Numbers({length})
  reader = reading.Reader(
      None, train=True, batch_size={batch}, seed=5, process_index=host,
      process_count=hosts, num_workers=workers, num_threads=1, prefetch=2)
  shuffled = order.ShuffledOrder({length}, 5, repeats)
  stream = reading.train_stream(source, shuffled, order_probe.make_row, 7)
  batches = reader.train_batches(
      source, stream, num_examples={length}, repeats=repeats)
  batches.set_state(batches.get_state() | {{'batches': start}})
  for batch in itertools.islice(batches, count):
    print(*(f'{{i}}:{{r}}' for i, r in batch['row'].tolist()))
  batches.close()
"""


@pytest.fixture(scope='module')
def read(tmp_path_factory):
  """Returns `read(...)`: a list of batches, each a list of 'index:random'."""
  path = tmp_path_factory.mktemp('order') / 'script.py'
  path.write_text(SCRIPT.format(batch=BATCH, length=LENGTH))

  def read(workers=0, host=0, hosts=1, start=0, count=BATCHES, repeats=1):
    arguments = [workers, host, hosts, start, count, repeats]
    done = subprocess.run(
        [sys.executable, str(path), *map(str, arguments)],
        cwd=commands.ROOT,
        env={**os.environ, 'PYTHONPATH': str(commands.ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]

  return read


@pytest.fixture(scope='module')
def whole(read):
  return read()


def digest(batches):
  """A hash of the sequence of (example, augmentation's random number)."""
  rows = itertools.chain.from_iterable(batches)
  return hashlib.sha256(' '.join(rows).encode()).hexdigest()


def test_every_example_once_an_epoch_and_every_epoch_anew(whole):
  rows = [row.split(':') for batch in whole for row in batch]
  epochs = [rows[:LENGTH], rows[LENGTH : 2 * LENGTH]]
  orders = [[int(i) for i, _ in epoch] for epoch in epochs]

  assert sorted(orders[0]) == sorted(orders[1]) == list(range(LENGTH))
  assert orders[0] != orders[1]
  # Shuffled, not turned: neighbours do not stay neighbours.
  steps = np.diff(orders[0])
  assert np.unique(steps).size > LENGTH / 2
  assert len({random for _, random in rows}) == len(rows)


@pytest.mark.parametrize('workers', [2, 4])
def test_workers_change_nothing(read, whole, workers):
  assert digest(read(workers=workers)) == digest(whole)


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_change_nothing(read, whole, hosts):
  shares = [read(host=host, hosts=hosts) for host in range(hosts)]
  merged = [sum(parts, []) for parts in zip(*shares, strict=True)]

  assert digest(merged) == digest(whole)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_goes_on_in_mid_epoch(read, whole, workers):
  rest = read(workers=workers, start=13, count=BATCHES - 13)

  assert digest(whole[:13] + rest) == digest(whole)


def test_repeats_show_an_example_several_times_in_succession(read, whole):
  repeated = read(repeats=3, count=2 * BATCHES)
  rows = [row.split(':') for batch in repeated for row in batch]
  once = [row.split(':')[0] for batch in whole for row in batch]
  groups = [rows[i : i + 3] for i in range(0, len(rows), 3)]

  assert all(len({i for i, _ in group}) == 1 for group in groups)
  # The order of the examples is as without, each with other augmentations.
  assert [group[0][0] for group in groups] == once[: len(groups)]
  assert len({random for _, random in rows}) == len(rows)
