"""Broken images never end a run, unless they are too many."""

import numpy as np
import pictures
import pytest
import tiny

from awconv_jax import data, errors
from awconv_jax.train import logging, rundir
from awconv_jax.train import loop as train_loop

CLASSES = ('ant', 'bee', 'cow', 'doe')
BROKEN, TOTAL, EVAL_BROKEN, EVAL_TOTAL = 100, 1000, 7, 60


def jpeg(seed, kind='JPEG', mode=None, side=20):
  return pictures.encode(pictures.smooth(side, side, seed), kind, mode)


# What cannot be read; the names of the files tell the kinds.
BREAK = {
    'corrupt': lambda i: jpeg(i)[:2] + b'\x00' * 300 + jpeg(i)[302:],
    'truncated': lambda i: jpeg(i)[: len(jpeg(i)) * 2 // 3],
    'empty': lambda i: b'',
}
# What is odd, and read: all are called .jpg.
ODD = {
    'cmyk': lambda i: jpeg(i, mode='CMYK'),
    'grey': lambda i: jpeg(i, mode='L'),
    'rgba': lambda i: jpeg(i, 'PNG', 'RGBA'),
    'png': lambda i: jpeg(i, 'PNG'),
    'pixel': lambda i: jpeg(i, 'PNG', side=1),
}


def write(folder, total, broken):
  """Writes a split; returns the names of what cannot be read."""
  names = []
  for name in CLASSES:
    (folder / name).mkdir(parents=True)
  spread = set(np.linspace(0, total - 1, broken).astype(int).tolist())
  for i in range(total):
    kinds = BREAK if i in spread else ODD if i % 50 == 1 else {'good': jpeg}
    kind = list(kinds)[i // 3 % len(kinds)]
    path = folder / CLASSES[i % len(CLASSES)] / f'{i:04}_{kind}.jpg'
    path.write_bytes(kinds[kind](i))
    names += [str(path)] if i in spread else []
  return names


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('dirty')
  broken = write(root / 'train', TOTAL, BROKEN)
  return root, broken, write(root / 'val', EVAL_TOTAL, EVAL_BROKEN)


def config(root, limit):
  result = tiny.get_config(aw_conv=False)
  crop = dict(area=(0.3, 1.0), ratio=(0.75, 1.33), interpolation='linear')
  with result.unlocked():
    result.num_epochs = 1.1  # So that every image was met.
    result.eval_every_epochs = result.checkpoint_every_epochs = 2.0
    result.batch_size, result.eval_batch_size = 64, 32
    result.data.name = f'folder:{root}'
    result.data.eval_split = 'val'
    result.data.image_size = result.data.eval_image_size = 8
    result.data.augment = (('random_resized_crop', crop),)
    result.data.max_bad_fraction = limit
    result.model.num_classes = len(CLASSES)
    result.optimizer.learning_rate = 0.01
  return result


def batches_of(root, limit, train=False, batch_size=8, host=0, hosts=1):
  how = dict(train=train, batch_size=batch_size, seed=0)
  how |= dict(process_index=host, process_count=hosts)
  return data.create(config(root, limit).data, **how)


def noted(workdir):
  lines = (workdir / rundir.UNREADABLE).read_text()
  return dict(line.split(' cannot be read: ') for line in lines.splitlines())


def test_a_run_finishes_and_names_each_broken_image(folder, tmp_path, capsys):
  root, broken, eval_broken = folder
  result = train_loop.train(config(root, 0.12), str(tmp_path))
  found = noted(tmp_path)
  assert sorted(found) == sorted(broken + eval_broken)
  assert all(reason.strip() for reason in found.values())
  assert result.metrics['num_examples'] == EVAL_TOTAL - EVAL_BROKEN
  assert result.step == result.total_steps == round(1.1 * TOTAL / 64)
  rows = logging.read(tmp_path / 'metrics.jsonl')
  assert np.isfinite([r['train/loss'] for r in rows if 'train/loss' in r]).all()
  out = capsys.readouterr().out
  assert f'not used: {eval_broken[0]}' in out and 'more, named in' in out


def test_too_many_stop_the_run_with_their_names(folder, tmp_path):
  root, broken, _ = folder
  settings = config(root, 0.05)
  settings.data.eval_split = 'train'
  with pytest.raises(errors.InputError) as caught:
    train_loop.train(settings, str(tmp_path))
  message = str(caught.value)
  number = int(message.split()[0])
  assert 50 < number <= 50 + 64  # By what one batch could bring.
  assert message.startswith(f'{number} of {TOTAL} examples cannot be read')
  named = [name for name in broken if name in message]
  assert len(named) == number and set(named) <= set(noted(tmp_path))
  assert 'than the 50 that config.data.max_bad_fraction' in message


def test_the_limit_of_one_of_several_hosts_is_that_of_its_part(folder):
  root, _, broken = folder
  with pytest.raises(errors.InputError, match=f'4 of {EVAL_TOTAL} examples'):
    list(batches_of(root, 0.05))
  counts, shown = [], set()
  for host in range(2):
    batches = batches_of(root, 1.0, host=host, hosts=2)
    for batch in batches:
      index, mask = batch['index'], batch['mask']
      assert (index[~mask] == -1).all() and not batch['image'][~mask].any()
      shown |= set(index[mask].tolist())
    counts.append(len(batches.unreadable))
    if counts[-1] > 0.05 * EVAL_TOTAL / 2:
      with pytest.raises(errors.InputError, match='than the 1 that'):
        list(batches_of(root, 0.05, host=host, hosts=2))
  assert sum(counts) == len(broken) and max(counts) > 1.5
  assert len(shown) == EVAL_TOTAL - EVAL_BROKEN


def test_each_broken_image_is_replaced_by_the_next_that_can_be_read(folder):
  batches = batches_of(folder[0], 1.0, train=True, batch_size=TOTAL)
  batch = next(batches)
  batches.close()
  counts = np.bincount(batch['index'], minlength=TOTAL)
  bad = np.flatnonzero(counts == 0)
  assert len(bad) == len(batches.unreadable) == BROKEN
  assert counts.sum() == TOTAL and batch['mask'].all()
  good = np.flatnonzero(counts)
  following = good[np.searchsorted(good, bad) % len(good)]
  assert (counts[following] > 1).all()


def test_a_folder_of_nothing_but_broken_images_ends_in_one_line(tmp_path):
  write(tmp_path / 'train', 120, 120)
  batches = batches_of(tmp_path, 1.0, train=True)
  with pytest.raises(errors.InputError, match='100 examples in succession'):
    next(batches)


def test_labels_mean_the_same_classes_in_both_splits_and_ever_after(tmp_path):
  for split, names in (('one', 'abcd'), ('two', 'bcde')):
    for name in names:
      (tmp_path / split / name).mkdir(parents=True)
      for i in range(2):
        (tmp_path / split / name / f'{i}.jpg').write_bytes(jpeg(i))
  options = config(tmp_path, 0.0)
  options.data.update(train_split='one', eval_split='two')
  options.batch_size = 8
  with pytest.raises(errors.InputError, match="4 differ: label 0 is 'a' and"):
    train_loop.train(options, str(tmp_path / 'run'))
  record = {'config': options.to_dict(), 'classes': [*'abcd']}
  rundir.check_record(tmp_path, record, options, [*'abcd'])
  with pytest.raises(errors.InputError, match="label 2 is 'c' there and 'x' h"):
    rundir.check_record(tmp_path, record, options, [*'abxd'])
