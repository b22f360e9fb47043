"""Broken images never end a run, unless they are too many."""

import pathlib

import numpy as np
import pictures
import pytest
import tiny

from awconv_jax import data, errors
from awconv_jax.train import logging, rundir
from awconv_jax.train import loop as train_loop

CLASSES = ('ant', 'bee', 'cow', 'doe')
BROKEN, TOTAL = 200, 2000
EVAL_BROKEN, EVAL_TOTAL = 7, 60


def jpeg(seed, **options):
  return pictures.encode(pictures.smooth(20, 24, seed), 'JPEG', **options)


# What cannot be read; the names of the files tell the kinds.
BREAK = {
    'corrupt': lambda i: jpeg(i)[:2] + b'\x00' * 300 + jpeg(i)[302:],
    'truncated': lambda i: jpeg(i)[: len(jpeg(i)) * 2 // 3],
    'empty': lambda i: b'',
    'text': lambda i: b'<html>404 Not Found</html>',
}
# What is odd, and read: all are called .jpg.
ODD = {
    'cmyk': lambda i: jpeg(i, mode='CMYK'),
    'grey': lambda i: jpeg(i, mode='L'),
    'rgba': lambda i: pictures.encode(pictures.smooth(20, 24, i), mode='RGBA'),
    'png': lambda i: pictures.encode(pictures.smooth(20, 24, i)),
    'pixel': lambda i: pictures.encode(pictures.smooth(1, 1, i)),
}


def write(folder, total, broken):
  """Writes a split; returns the names of what cannot be read."""
  names = []
  for name in CLASSES:
    (folder / name).mkdir(parents=True)
  spread = set(np.linspace(0, total - 1, broken).astype(int).tolist())
  assert len(spread) == broken
  for i in range(total):
    kinds = BREAK if i in spread else ODD if i % 50 == 1 else {'good': jpeg}
    kind = list(kinds)[i // 3 % len(kinds)]
    path = folder / CLASSES[i % len(CLASSES)] / f'{i:04}_{kind}.jpg'
    path.write_bytes(kinds[kind](i))
    if i in spread:
      names.append(str(path))
  return names


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('dirty')
  broken = {
      'train': write(root / 'train', TOTAL, BROKEN),
      'val': write(root / 'val', EVAL_TOTAL, EVAL_BROKEN),
  }
  return root, broken


def config(root, limit):
  result = tiny.get_config('aw_conv=false')
  with result.unlocked():
    result.num_epochs = 1.1  # So that every image was met.
    result.eval_every_epochs = result.checkpoint_every_epochs = 2.0
    result.batch_size, result.eval_batch_size = 64, 32
    result.log_every_steps = 10
    result.data.name = f'folder:{root}'
    result.data.eval_split = 'val'
    result.data.image_size = result.data.eval_image_size = 8
    result.data.augment = (
        (
            'random_resized_crop',
            dict(area=(0.3, 1.0), ratio=(0.75, 1.33), interpolation='linear'),
        ),
    )
    result.data.max_bad_fraction = limit
    result.model.num_classes = len(CLASSES)
    result.optimizer.learning_rate = 0.01
  return result


def noted(workdir):
  """Returns the names in the run's list, and their reasons."""
  lines = (pathlib.Path(workdir) / rundir.UNREADABLE).read_text()
  return dict(line.split(' cannot be read: ') for line in lines.splitlines())


def test_a_run_finishes_and_names_each_broken_image(folder, tmp_path, capsys):
  root, broken = folder

  result = train_loop.train(config(root, 0.12), str(tmp_path))

  found = noted(tmp_path)
  assert sorted(found) == sorted(broken['train'] + broken['val'])
  assert all(reason.strip() for reason in found.values())
  assert result.metrics['num_examples'] == EVAL_TOTAL - EVAL_BROKEN
  assert result.step == result.total_steps == round(1.1 * TOTAL / 64)
  rows = logging.read(tmp_path / 'metrics.jsonl')
  assert np.isfinite([r['train/loss'] for r in rows if 'train/loss' in r]).all()
  out = capsys.readouterr().out
  assert f'not used: {broken["val"][0]}' in out
  assert 'more, named in' in out


def test_too_many_stop_the_run_with_their_names(folder, tmp_path):
  root, broken = folder
  settings = config(root, 0.05)
  settings.data.eval_split = 'train'
  with pytest.raises(errors.InputError) as caught:
    train_loop.train(settings, str(tmp_path))

  message = str(caught.value)
  number = int(message.split()[0])
  # More than 5 %, by no more than one batch could bring.
  assert 100 < number <= 100 + 64
  assert message.startswith(f'{number} of {TOTAL} examples cannot be read')
  named = [name for name in broken['train'] if name in message]
  assert len(named) == number and set(named) <= set(noted(tmp_path))
  assert (
      'than the 100 that config.data.max_bad_fraction' in message
      and '\n' not in message
  )


def test_too_many_in_evaluation_stop_the_run_too(folder):
  root, broken = folder
  batches = data.create(
      config(root, 0.05).data, train=False, batch_size=8, seed=0
  )
  with pytest.raises(errors.InputError, match=f'4 of {EVAL_TOTAL} examples'):
    list(batches)
  assert len(batches.unreadable) == 4 < len(broken['val'])


def test_on_several_hosts_it_is_told_when_all_ask(folder):
  """One that failed by itself would leave the others waiting."""
  root, broken = folder
  counts = []
  for host in range(2):
    batches = data.create(
        config(root, 0.05).data,
        train=False,
        batch_size=8,
        seed=0,
        process_index=host,
        process_count=2,
    )
    assert len(list(batches)) == batches.batches_per_epoch
    counts.append(len(batches.unreadable))
    # The limit of a host is that of its part of the split.
    if counts[-1] > 0.05 * EVAL_TOTAL / 2:
      with pytest.raises(errors.InputError, match='than the 1.5 that'):
        batches.unreadable.check()
  assert sum(counts) == len(broken['val']) and max(counts) > 1.5


@pytest.mark.parametrize(
    'workers', [0, pytest.param(2, marks=pytest.mark.slow)]
)
def test_the_rest_of_an_evaluation_is_as_it_was(folder, workers):
  root, broken = folder
  settings = config(root, 1.0)
  with settings.unlocked():
    settings.data.num_workers = workers
  batches = data.create(settings.data, train=False, batch_size=16, seed=0)
  rows = {
      key: np.concatenate([batch[key] for batch in batches])
      for key in ('index', 'mask', 'image')
  }

  assert rows['mask'].sum() == EVAL_TOTAL - EVAL_BROKEN
  seen = rows['index'][rows['mask']].tolist()
  assert len(set(seen)) == len(seen)
  assert (rows['index'][~rows['mask']] == -1).all()
  assert not rows['image'][~rows['mask']].any()
  assert len(batches.unreadable) == len(broken['val'])


def test_each_broken_image_is_replaced_by_the_next_that_can_be_read(folder):
  root, broken = folder
  batches = data.create(
      config(root, 1.0).data, train=True, batch_size=TOTAL, seed=0
  )
  batch = next(batches)

  counts = np.bincount(batch['index'], minlength=TOTAL)
  bad = np.flatnonzero(counts == 0)
  assert len(bad) == len(batches.unreadable) == len(broken['train'])
  assert counts.sum() == TOTAL
  for index in bad:
    after = next(
        i % TOTAL for i in range(index, 2 * TOTAL) if counts[i % TOTAL]
    )
    assert counts[after] > 1
  assert batch['mask'].all()


def test_a_folder_of_nothing_but_broken_images_ends_in_one_line(tmp_path):
  for split in ('train', 'val'):
    write(tmp_path / split, 120, 120)
  batches = data.create(
      config(tmp_path, 1.0).data, train=True, batch_size=8, seed=0
  )
  with pytest.raises(errors.InputError, match='100 examples in succession'):
    next(batches)
