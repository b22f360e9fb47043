"""Batches: what they hold, in which order, on how many hosts and threads."""

import hashlib
import itertools
import json
import pathlib
import resource
import sys
import time

import commands
import numpy as np
import pytest

from awconv_jax import data
from awconv_jax.data import decode, digits, order, sources
from awconv_jax.errors import InputError

N_TRAIN, N_TEST = 1437, 360
AFFINE = dict(rotation=10.0, translation=0.1, scale=(0.9, 1.1), shear=5.0)
SECTION = dict(name='digits', image_size=32, eval_image_size=32, prefetch=2)
SECTION |= dict(augment=(('random_affine', AFFINE),))


@pytest.fixture(scope='session')
def create():
  """Returns `create(config overrides..., arguments of data.create...)`."""
  created = []

  def create(*, batch_size=64, seed=0, train=True, hosts=(0, 1), **changes):
    how = dict(train=train, batch_size=batch_size, seed=seed)
    how |= dict(process_index=hosts[0], process_count=hosts[1])
    batches = data.create(SECTION | changes, **how)
    created.extend([batches] if train else [])
    return batches

  yield create
  for batches in created:
    batches.close()


def take(batches, n):
  return list(itertools.islice(batches, n))


@pytest.fixture(scope='session')
def whole(create):
  return take(create(), 26)  # 22.45 are an epoch.


def digest(batches) -> str:
  value = hashlib.sha256()
  for batch in batches:
    for key in sorted(batch):
      value.update(f'{key} {batch[key].shape} {batch[key].dtype}'.encode())
      value.update(np.ascontiguousarray(batch[key]).tobytes())
  return value.hexdigest()


def merge(hosts) -> list:
  return [
      {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
      for parts in zip(*hosts, strict=True)
  ]


def joined(batches, key):
  return np.concatenate([batch[key] for batch in batches])


def records(split):
  found = list(sources.open_source('digits', None, split))
  images = [decode.EncodedImage(r['image'], 1).pixels() for r in found]
  return np.stack(images), np.array([r['label'] for r in found])


def test_the_order_is_that_of_the_runs_before():
  """Checkpoints go on where they were, also after an update."""
  shuffled = order.ShuffledOrder(500, seed=5)
  first = [shuffled(position)[1][0] for position in range(8)]
  assert first == [135, 120, 370, 465, 250, 365, 410, 412]


def test_every_example_once_per_epoch_with_its_image_and_label(create):
  batches = create(batch_size=100, augment=())
  taken = take(batches, 44)  # Epochs end inside batches; three after 43.11.
  kinds = dict.fromkeys(('label', 'index'), ((100,), np.int32))
  kinds |= dict(image=((100, 32, 32, 1), np.uint8), mask=((100,), bool))
  assert {k: (v.shape, v.dtype) for k, v in taken[0].items()} == kinds
  assert joined(taken, 'mask').all()
  assert (batches.num_examples, batches.num_classes) == (N_TRAIN, 10)
  assert batches.batches_per_epoch == N_TRAIN / 100
  images, labels = records('train')
  index = joined(taken, 'index')
  np.testing.assert_array_equal(joined(taken, 'image'), images[index])
  np.testing.assert_array_equal(joined(taken, 'label'), labels[index])
  epochs = index[: 3 * N_TRAIN].reshape(3, N_TRAIN)
  assert (np.sort(epochs) == np.arange(N_TRAIN)).all()
  for one, other in itertools.combinations(epochs, 2):
    assert np.mean(one == other) < 0.01
  # Neighbours do not stay neighbours.
  assert np.unique(np.diff(epochs[0])).size > N_TRAIN / 2


def test_augmentations_differ_between_epochs_and_seeds(create, whole):
  images = joined(take(create(batch_size=479, image_size=24), 6), 'image')
  assert images.shape[1:] == (24, 24, 1)  # In evaluation it is 32.
  assert len({image.tobytes() for image in images}) == 2 * N_TRAIN
  assert digest(take(create(seed=1), 3)) != digest(whole[:3])
  # Grain shuffles epoch e by seed + e.
  shuffled = [order.ShuffledOrder(N_TRAIN, seed) for seed in (0, 1)]
  later = [shuffled[0](N_TRAIN + i)[1][0] for i in range(9)]
  assert later != [shuffled[1](i)[1][0] for i in range(9)]


def test_repeats_show_an_example_several_times_in_succession(create, whole):
  taken = take(create(repeats=4), 12)
  groups = joined(taken, 'index').reshape(-1, 4)
  assert (groups == joined(whole, 'index')[: len(groups), None]).all()
  images = joined(taken, 'image')
  assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize('threads, prefetch', [(0, 0), (16, 1)])
def test_threads_change_nothing(create, whole, threads, prefetch):
  batches = create(num_threads=threads, prefetch=prefetch)
  assert digest(take(batches, 26)) == digest(whole)


WORKERS = """
import os, pathlib, signal, sys, threading, time
sys.path.insert(0, 'tests')
import test_data
from awconv_jax import data
options = test_data.SECTION | {'num_workers': 2, 'prefetch': 1}
batches = data.create(options, train=True, batch_size=64, seed=0)
batches.set_state(batches.get_state() | {'batches': 3})
def readers():
  found = pathlib.Path('/proc/self/task').glob('*/children')
  return sorted(int(p) for file in found for p in file.read_text().split())
def take(number):
  return test_data.take(batches, number)
def kill_while_it_starts():
  while not readers():
    time.sleep(0.001)
  os.kill(readers()[0], signal.SIGKILL)
threading.Thread(target=kill_while_it_starts).start()
taken = take(2)
first = readers()
for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
  for pid in first:
    os.kill(pid, number)
taken += take(7)
assert readers() == first
os.kill(first[0], signal.SIGKILL)
taken += take(7)
os.kill(readers()[0], signal.SIGSTOP)
taken += take(7)
print(test_data.digest(taken), *readers(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_change_nothing_and_end_with_their_parent(whole, tmp_path):
  """Signals are not for them; the killed is replaced, the stopped is woken."""
  script = tmp_path / 'script.py'
  script.write_text(WORKERS)
  path = {'PYTHONPATH': str(commands.ROOT)}
  _, out, err = commands.run(script, env=path)
  digested, *readers = out.split()
  assert digested == digest(whole[3:]), err
  assert 'killed by SIGKILL; another one goes on' in err
  end = time.monotonic() + 10
  while any(map(alive, readers)):
    assert time.monotonic() < end
    time.sleep(0.1)


def alive(pid) -> bool:
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  except FileNotFoundError:
    return False
  return state.split()[0] != 'Z'  # Nobody has asked for how it ended.


def test_what_readers_lack_is_told(create, monkeypatch, tmp_path):
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\nkill -9 $$\n')
  python.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(python))
  told = 'killed by SIGKILL, as was the one before: memory'
  with pytest.raises(InputError, match=told):
    next(create(num_workers=2))
  monkeypatch.undo()
  batches = create(num_workers=2)
  most = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
  try:
    with pytest.raises(InputError, match='Too many open files; raise `ulimit'):
      next(batches)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, most)


@pytest.mark.parametrize('host, hosts', [(0, 1), (1, 2)])
def test_one_row_a_batch(create, whole, host, hosts):
  taken = take(create(batch_size=hosts, hosts=(host, hosts)), 8)
  want = joined(whole, 'image')[host::hosts][:8]
  np.testing.assert_array_equal(joined(taken, 'image'), want)


@pytest.mark.parametrize('delivered', [0, 5, 22, 23])
def test_resumed_equals_uninterrupted(create, whole, delivered):
  """On other hosts, with other threads."""
  first = create(num_threads=4, prefetch=16, hosts=(1, 2))
  take(first, delivered)
  time.sleep(0.1)  # The threads are far ahead by now.
  state = json.loads(json.dumps(first.get_state()))
  assert state['batches'] == delivered
  hosts = [create(hosts=(i, 4)) for i in range(4)]
  for host in hosts:
    next(host)
    host.set_state(state)
  resumed = merge([take(host, 3) for host in hosts])
  assert digest(resumed) == digest(whole[delivered : delivered + 3])


def test_close_is_prompt_and_keeps_the_place(create, whole):
  batches = create(num_threads=2, prefetch=50)
  first = next(batches)
  start = time.monotonic()
  batches.close()
  batches.close()
  assert time.monotonic() - start < 1
  assert digest([first, next(batches)]) == digest(whole[:2])


@pytest.mark.parametrize('batch_size, count', [(1, 1), (7, 1), (512, 4)])
def test_eval_yields_every_example_once_and_in_order(create, batch_size, count):
  images, labels = records('test')
  how = dict(train=False, batch_size=batch_size)
  hosts = [create(hosts=(i, count), **how) for i in range(count)]
  for _ in range(2):
    taken = merge([list(batches) for batches in hosts])
    number = hosts[0].batches_per_epoch
    assert len(taken) == number == -(-N_TEST // batch_size)
    assert {b['image'].shape for b in taken} == {(batch_size, 32, 32, 1)}
    kinds = [
        {key: (array.shape, array.dtype) for key, array in batch.items()}
        for batch in (next(iter(hosts[0])), hosts[0].blank)
    ]
    assert kinds[0] == kinds[1]
    wanted = dict(image=images, label=labels, mask=1, index=np.arange(N_TEST))
    for key, values in wanted.items():
      found = joined(taken, key)
      np.testing.assert_array_equal(found[:N_TEST], values)
      assert (found[N_TEST:] == (-1 if key == 'index' else 0)).all()
    next(iter(hosts[0]))  # Left early, the next pass begins anew.


def test_several_labels_are_not_trained_on(create, monkeypatch):
  monkeypatch.setattr(digits.Digits, 'label_shape', (3,))
  with pytest.raises(InputError, match='several labels each'):
    create()


def test_errors(create):
  for size, hosts, message in (
      (9, (0, 2), 'batch_size=9 .* multiple of 2 hosts'),
      (2000, (0, 1), "batch_size=2000 .* 1437 examples .* 'train'"),
  ):
    with pytest.raises(InputError, match=message):
      create(batch_size=size, hosts=hosts)
  for train, changes in (
      (False, dict(batch_size=10**30)),
      (True, dict(image_size=30_000)),
      (True, dict(prefetch=10**9)),
      (False, dict(num_workers=10**6)),
  ):
    with pytest.raises(InputError, match='GB of memory, and there are'):
      create(train=train, **changes)
  batches = create()
  with pytest.raises(InputError, match='seed 7, and this run has 0'):
    batches.set_state(batches.get_state() | {'seed': 7})
