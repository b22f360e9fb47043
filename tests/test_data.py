"""Batches: what they hold, in which order, on how many hosts and threads."""

import functools
import hashlib
import itertools
import json
from pathlib import Path
import subprocess
import sys
import time

import numpy as np
import pytest

from awconv_jax import config, data
from awconv_jax.data import decode, digits, sources
from awconv_jax.errors import InputError

N_TRAIN, N_TEST = 1437, 360
AFFINE = {'rotation': 10.0, 'translation': 0.1, 'scale': (0.9, 1.1)}
AUGMENT = (('random_affine', AFFINE | {'shear': 5.0}),)


@pytest.fixture(scope='session')
def create():
  """Returns `create(config overrides..., arguments of data.create...)`."""
  created = []

  def create(*, batch_size=64, seed=0, train=True, hosts=(0, 1), **changes):
    section = {
        'name': 'digits',
        'train_split': 'train',
        'eval_split': 'test',
        'image_size': 32,
        'eval_image_size': 32,
        'eval_crop': 1.0,
        'eval_interpolation': 'area',
        'augment': AUGMENT,
        'repeats': 1,
        'max_bad_fraction': 0.0,
        'num_workers': 0,
        'num_threads': 1,
        'prefetch': 2,
    }
    batches = data.create(
        section | changes,
        train=train,
        batch_size=batch_size,
        seed=seed,
        process_index=hosts[0],
        process_count=hosts[1],
    )
    created.append(batches)
    return batches

  yield create
  for batches in created:
    if hasattr(batches, 'close'):
      batches.close()


@pytest.fixture(scope='session')
def whole(create):
  """26 batches of the default stream; 22.45 are an epoch."""
  return take(create(), 26)


def take(batches, n):
  return list(itertools.islice(batches, n))


def digest(batches) -> str:
  """A fingerprint of all bytes of all batches."""
  value = hashlib.sha256()
  for batch in batches:
    for key in sorted(batch):
      value.update(f'{key} {batch[key].shape} {batch[key].dtype}'.encode())
      value.update(np.ascontiguousarray(batch[key]).tobytes())
  return value.hexdigest()


def merge(hosts) -> list:
  """Concatenates the batches of several hosts to the global ones."""
  return [
      {
          key: np.concatenate([share[key] for share in shares])
          for key in shares[0]
      }
      for shares in zip(*hosts, strict=True)
  ]


def fingerprints(batches) -> list[bytes]:
  """The images as bytes; all scans differ, so they stand for the examples."""
  return [image.tobytes() for batch in batches for image in batch['image']]


def test_train_batch_contract(create):
  batches = create(batch_size=100)
  batch = next(batches)

  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
      'image': ((100, 32, 32, 1), np.uint8),
      'label': ((100,), np.int32),
      'index': ((100,), np.int32),
      'mask': ((100,), bool),
  }
  assert batch['mask'].all()
  assert (batches.num_examples, batches.num_classes) == (N_TRAIN, 10)
  assert batches.batches_per_epoch == N_TRAIN / 100


def test_every_example_once_per_epoch(create):
  # 3 epochs of 1,437 are 43.11 batches of 100, so epochs end inside batches.
  stream = fingerprints(take(create(batch_size=100, augment=()), 44))
  epochs = [stream[e * N_TRAIN : (e + 1) * N_TRAIN] for e in range(3)]

  for epoch in epochs:
    assert len(set(epoch)) == N_TRAIN
    assert set(epoch) == set(epochs[0])
  # Another order each time, and no rotation or reversal of the last one.
  for one, other in itertools.combinations(epochs, 2):
    assert np.mean([a == b for a, b in zip(one, other, strict=True)]) < 0.01


def test_train_images_come_with_their_labels(create):
  batch = next(create(augment=(), batch_size=N_TRAIN))
  source = sources.open_source('digits', None, 'train')
  labels = {r['image'].tobytes(): r['label'] for r in iter_records(source)}

  assert batch['label'].tolist() == [labels[f] for f in fingerprints([batch])]


def iter_records(source):
  """Yields the records with decoded images."""
  for i in range(len(source)):
    record = source[i]
    encoded = decode.EncodedImage(record['image'], source.channels)
    yield record | {'image': encoded.pixels()}


def test_augmentation_differs_between_epochs(create):
  stream = fingerprints(take(create(batch_size=479), 6))

  assert len(set(stream)) == 2 * N_TRAIN


def test_seeds_differ_and_repeat(create):
  streams = [take(create(seed=seed), 3) for seed in (0, 0, 1)]

  assert digest(streams[0]) == digest(streams[1]) != digest(streams[2])
  # Grain shuffles epoch e by seed + e: epoch 1 of seed 0 must not be epoch 0
  # of seed 1.
  plain = [
      fingerprints(take(create(seed=seed, augment=(), batch_size=479), 6))
      for seed in (0, 1)
  ]
  assert plain[0][N_TRAIN:] != plain[1][:N_TRAIN]


@pytest.mark.parametrize('threads, prefetch', [(0, 0), (2, 5), (16, 16)])
def test_threads_change_nothing(create, whole, threads, prefetch):
  batches = create(num_threads=threads, prefetch=prefetch)

  assert digest(take(batches, 26)) == digest(whole)


@pytest.mark.parametrize('count', [2, 4])
def test_hosts_change_nothing(create, whole, count):
  hosts = [take(create(hosts=(i, count)), 26) for i in range(count)]

  assert hosts[0][0]['image'].shape[0] == 64 // count
  assert digest(merge(hosts)) == digest(whole)


WORKERS = """
import sys
sys.path.insert(0, 'tests')
import test_data
from awconv_jax import data
if __name__ == '__main__':
  batches = data.create({config}, train=True, batch_size=64, seed=0)
  batches.set_state(batches.get_state() | {{'batches': 21}})
  print(test_data.digest(test_data.take(batches, 5)))
"""


def test_workers_change_nothing(whole, tmp_path):
  """From a script, as users run it, and which ends without `close`."""
  config = {
      'name': 'digits',
      'train_split': 'train',
      'eval_split': 'test',
      'image_size': 32,
      'eval_image_size': 32,
      'eval_crop': 1.0,
      'eval_interpolation': 'area',
      'augment': AUGMENT,
      'repeats': 1,
      'max_bad_fraction': 0.0,
      'num_workers': 2,
      'num_threads': 1,
      'prefetch': 2,
  }
  script = tmp_path / 'script.py'
  script.write_text(WORKERS.format(config=config))
  root = Path(__file__).parent.parent

  done = subprocess.run(
      [sys.executable, script],
      cwd=root,
      env={'PYTHONPATH': str(root)},
      capture_output=True,
      text=True,
      timeout=60,
  )

  assert done.stdout.strip() == digest(whole[21:]), done.stderr


@pytest.mark.parametrize('delivered', [0, 5, 22, 23])
def test_resumed_equals_uninterrupted(create, whole, delivered):
  first = create(num_threads=4, prefetch=8)
  take(first, delivered)
  state = json.loads(json.dumps(first.get_state()))
  resumed = create(num_threads=1, prefetch=3)
  next(resumed)
  resumed.set_state(state)

  assert digest(take(resumed, 3)) == digest(whole[delivered : delivered + 3])


def test_resumes_on_other_hosts(create, whole):
  first = create(hosts=(1, 2))
  take(first, 5)
  state = first.get_state()
  hosts = [create(hosts=(i, 4)) for i in range(4)]
  for host in hosts:
    host.set_state(state)

  assert digest(merge([take(h, 3) for h in hosts])) == digest(whole[5:8])


def test_state_counts_delivered_not_prefetched(create):
  batches = create(num_threads=4, prefetch=16)
  take(batches, 3)
  time.sleep(0.3)  # The threads are far ahead by now.

  assert batches.get_state() == {
      'batches': 3,
      'seed': 0,
      'batch_size': 64,
      'num_examples': N_TRAIN,
      'repeats': 1,
  }


def test_close_is_prompt_and_keeps_the_place(create, whole):
  batches = create(num_threads=2, prefetch=50)
  first = next(batches)
  start = time.monotonic()
  batches.close()
  batches.close()

  assert time.monotonic() - start < 1
  assert digest([first, next(batches)]) == digest(whole[:2])


@pytest.mark.parametrize('key', ['seed', 'batch_size', 'num_examples'])
def test_refuses_the_state_of_another_stream(create, key):
  batches = create()
  state = batches.get_state()
  written = state | {key: 7}

  with pytest.raises(
      InputError, match=f'{key} 7, and this run has {state[key]}'
  ):
    batches.set_state(written)


@pytest.mark.parametrize('batch_size', [1, 7, 360, 512])
def test_eval_yields_every_example_once_and_in_order(create, batch_size):
  source = sources.open_source('digits', None, 'test')
  records = list(iter_records(source))
  batches = create(train=False, batch_size=batch_size)

  for _ in range(2):
    seen = list(batches)
    assert len(seen) == batches.batches_per_epoch == -(-N_TEST // batch_size)
    assert {b['image'].shape for b in seen} == {(batch_size, 32, 32, 1)}
    joined = {key: np.concatenate([b[key] for b in seen]) for key in seen[0]}
    assert joined['mask'].sum() == N_TEST and joined['mask'][:N_TEST].all()
    assert joined['index'][:N_TEST].tolist() == list(range(N_TEST))
    assert (joined['index'][N_TEST:] == -1).all()
    for key in ('image', 'label'):
      np.testing.assert_array_equal(
          joined[key][:N_TEST], [record[key] for record in records]
      )
      assert not joined[key][N_TEST:].any()


@pytest.mark.parametrize('batch_size', [8, 14, 512])
def test_eval_hosts_merge_to_one(create, batch_size):
  arguments = {'train': False, 'batch_size': batch_size}
  hosts = [list(create(hosts=(i, 2), **arguments)) for i in range(2)]

  assert len(hosts[0]) == len(hosts[1])
  assert digest(merge(hosts)) == digest(create(**arguments))


def test_eval_left_early_starts_anew(create):
  batches = create(train=False, batch_size=50)
  first = take(batches, 1)

  assert digest(first) == digest(take(batches, 1))


def test_image_size(create):
  for train in (True, False):
    batches = create(
        train=train, image_size=24, eval_image_size=20, batch_size=400
    )
    side = 24 if train else 20
    assert next(iter(batches))['image'].shape == (400, side, side, 1)


def test_several_labels_are_not_trained_on(create, monkeypatch):
  class Several(digits.Digits):

    def __getitem__(self, index):
      return super().__getitem__(index) | {'label': np.array([3, 5, -1])}

  several = sources._labelled(lambda dir, split: Several(split))
  monkeypatch.setitem(sources.DATASETS, 'digits', several)

  with pytest.raises(InputError, match='several labels each'):
    create()
  batch = next(iter(create(train=False, batch_size=4)))
  assert batch['label'].tolist() == [[3, 5, -1]] * 4 and batch['mask'].all()


def test_an_example_that_cannot_be_read_stops_the_run(create, monkeypatch):
  class Half(digits.Digits):

    def __getitem__(self, index):
      record = super().__getitem__(index)
      image = record['image'][:60] if index == 164 else record['image']
      return record | {'image': image}

  half = sources._labelled(lambda dir, split: Half(split))
  monkeypatch.setitem(sources.DATASETS, 'digits', half)
  for threads in (0, 2):
    with pytest.raises(InputError, match='^scan 164 cannot be read: .'):
      take(create(num_threads=threads), 23)


@pytest.mark.parametrize(
    'name, options, message',
    [
        ('digits', {'eval_interpolation': 'cubik'}, "mean 'cubic'"),
        ('digits', {'eval_crop': 0.0}, 'config.eval_crop=0.0 must be greater'),
        ('digits', {'repeats': 0}, 'config.repeats=0 must be greater'),
        ('coco/2017', {'canvas': (8, 8, 8)}, 'config.canvas=.* at most 2'),
        ('coco/2017', {'scale_jitter': (2.0, 1.0)}, 'must be .least, great'),
        ('coco/2017', {'train_empti': True}, "mean 'train_empty'"),
    ],
)
def test_options_of_a_reader_are_checked_by_its_signature(
    name, options, message
):
  needed = dict(image_size=8, eval_image_size=8)
  if name == 'coco/2017':
    needed = dict(
        canvas=(8, 8), short_side=8, long_side=8, train_short_sides=(8,)
    )
  given = functools.partial(
      data.reader_of(name), train=True, batch_size=8, seed=0
  )
  settings = config.complete(needed, given)
  assert settings.dir is None and settings.max_bad_fraction == 0.0
  with pytest.raises(InputError, match=message):
    config.complete(needed | options, given)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'batch_size': 9, 'hosts': (0, 2)}, 'batch_size 9 .* among 2 hosts'),
        ({'batch_size': 2000}, "batch_size 2000 .* 1437 examples .* 'train'"),
        ({'name': 'digit'}, "unknown dataset 'digit'"),
        (
            {'train_split': 'tain'},
            "unknown split of digits 'tain'",
        ),
        (
            {'eval_split': 'val', 'train': False},
            "split of digits 'val'",
        ),
        ({'augment': (('flop', {}),)}, r"'flop' \(did you mean 'flip'\?\)"),
    ],
)
def test_errors(create, arguments, message):
  with pytest.raises(InputError, match=message) as caught:
    create(**arguments)
  assert '\n' not in str(caught.value)
