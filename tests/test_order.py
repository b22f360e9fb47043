"""Every example once an epoch, in an order that only seed and epoch decide."""

import hashlib
import itertools
import os
import subprocess
import sys

import commands
import numpy as np
import order_probe
import pytest

BATCH, LENGTH = 24, 500
# Two epochs and a bit: 41.7 batches are two epochs.
BATCHES = 43
# Of seed 5, the first eight examples.
FIRST = [135, 120, 370, 465, 250, 365, 410, 412]
SCRIPT = """
import sys
sys.path.insert(0, 'tests')
import order_probe
if __name__ == '__main__':
  print(order_probe.read({batch}, {length}, **{options}))
"""


def read(workers=0, count=BATCHES, **options):
  """Returns batches of 'example:random', read as options say."""
  options |= dict(num_workers=workers, count=count)
  return parsed(order_probe.read(BATCH, LENGTH, **options))


def parsed(text):
  return [line.split() for line in text.splitlines()]


@pytest.fixture(scope='module')
def whole():
  return read()


def digest(batches):
  """A hash of the sequence of (example, augmentation's random number)."""
  rows = itertools.chain.from_iterable(batches)
  return hashlib.sha256(' '.join(rows).encode()).hexdigest()


def test_the_order_is_that_of_the_runs_before(whole):
  """Checkpoints go on where they were, also after an update."""
  first = [int(row.split(':')[0]) for row in whole[0][:8]]
  assert first == FIRST


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


def test_workers_change_nothing(whole, tmp_path):
  """From a script, as users run it, of a run that goes on in mid-epoch."""
  options = dict(num_workers=2, start=13, count=BATCHES - 13)
  path = tmp_path / 'script.py'
  path.write_text(SCRIPT.format(batch=BATCH, length=LENGTH, options=options))
  done = subprocess.run(
      [sys.executable, str(path)],
      cwd=commands.ROOT,
      env={**os.environ, 'PYTHONPATH': str(commands.ROOT)},
      capture_output=True,
      text=True,
      timeout=100,
  )
  assert digest(parsed(done.stdout)) == digest(whole[13:]), done.stderr


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_change_nothing(whole, hosts):
  shards = [read(host=host, hosts=hosts) for host in range(hosts)]
  merged = [sum(parts, []) for parts in zip(*shards, strict=True)]

  assert digest(merged) == digest(whole)


def test_a_resumed_run_goes_on_in_mid_epoch(whole):
  assert digest(read(start=13, count=BATCHES - 13)) == digest(whole[13:])


def test_repeats_show_an_example_several_times_in_succession(whole):
  repeated = read(repeats=3, count=2 * BATCHES)
  rows = [row.split(':') for batch in repeated for row in batch]
  once = [row.split(':')[0] for batch in whole for row in batch]
  groups = [rows[i : i + 3] for i in range(0, len(rows), 3)]

  assert all(len({i for i, _ in group}) == 1 for group in groups)
  # The order of the examples is as without, each with other augmentations.
  assert [group[0][0] for group in groups] == once[: len(groups)]
  assert len({random for _, random in rows}) == len(rows)
