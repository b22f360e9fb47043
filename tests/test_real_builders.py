"""From what TFDS prepares to a trained network: shipped configs."""

import os
import subprocess
import sys

import fake_coco
import fake_sources
import fake_tfds
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny

from awconv_jax.data import sources
from awconv_jax.train import logging, rundir
from awconv_jax.train import loop as train_loop
from configs import cifar, imagenet

STEPS = 8


def prepared(root, name, num_classes, kind, splits):
  """Writes a set as TFDS does: so many examples of each split."""
  rows = [
      dict(image=fake_sources.image(i, kind), label=7 * i % num_classes)
      for i in range(14)
  ]
  rows = {split: rows[:count] for split, count in splits.items()}
  fake_tfds.write(root, name, fake_tfds.labelled(num_classes), rows)
  return tuple(splits.values())


def imagenet2012(root):
  splits = {'train': 14, 'validation': 10}
  counts = prepared(root, 'imagenet2012', 1000, 'JPEG', splits)
  return imagenet.get_config(model='resnet18'), counts


def cifar_100(root):
  counts = prepared(root, 'cifar100', 100, 'PNG', {'train': 11, 'test': 11})
  return cifar.get_config(data='cifar100', model='resnet18'), counts


def folder(root):
  fake_sources.write_folder(root, {'train': 5, 'validation': 7})
  given = dict(num_classes=2, model='resnet18', recipe='a3')
  return imagenet.get_config(data=f'folder:{root}', **given), (10, 14)


@pytest.mark.usefixtures('quick_compiles_of_module')
@pytest.mark.parametrize('build', [imagenet2012, cifar_100, folder])
def test_trained_and_evaluated_on_every_image(build, tmp_path):
  config, (train, val) = build(tmp_path / 'data')
  size = config.data.image_size
  tiny.shrink(config, 32)
  with config.unlocked():
    config.data.dir = str(tmp_path / 'data')
    config.data.num_workers = 0
    config.num_epochs = STEPS * config.batch_size / train
    config.eval_every_epochs = config.checkpoint_every_epochs = 1e3
    config.log_every_steps = 1
    config.optimizer.warmup_epochs = 0.5
  assert size in (224, 160, 32)  # The shipped one.

  result = train_loop.train(config, str(tmp_path / 'run'))

  assert result.step == STEPS
  assert result.metrics['num_examples'] == val
  rows = logging.read(tmp_path / 'run/metrics.jsonl')
  losses = [row['train/loss'] for row in rows if 'train/loss' in row]
  assert len(losses) == STEPS and np.isfinite(losses).all()
  assert not (tmp_path / 'run' / rundir.UNREADABLE).exists()


def records(name, data_dir, split):
  """Returns the records by their id."""
  source = sources.open_source(name, str(data_dir), split)
  found = [source[i] for i in range(len(source))]
  return {record.get('id', record.get('image_id')): record for record in found}


@pytest.mark.slow
def test_what_tfds_builds_of_the_originals_is_read(monkeypatch, tmp_path):
  """By its own builders, as docs/data.md says, on tiny archives."""
  pytest.importorskip('tensorflow')
  fake_sources.write_imagenet(tmp_path / 'manual', per_class=4, val=10)
  command = (
      *(sys.executable, '-m', 'tensorflow_datasets.scripts.cli.main'),
      *('build', 'imagenet2012', '--file_format=array_record'),
      *(f'--data_dir={tmp_path}', f'--manual_dir={tmp_path}/manual'),
  )
  subprocess.run(command, check=True, env={**os.environ, 'TFDS_DATA_DIR': ''})
  found = records('imagenet2012', tmp_path, 'train')
  wanted = fake_sources.imagenet_train(per_class=4)
  assert len(found) == sum(map(len, wanted.values()))
  for synset, files in wanted.items():
    for name, content in files.items():
      record = found[name.encode()]
      assert record['label'] == fake_sources.SYNSETS[synset]
      assert record['image'] == content
  assert len(records('imagenet2012', tmp_path, 'validation')) == 10

  files = fake_coco.archives(range(1, 9), range(11, 16))
  fake_sources.serve(monkeypatch, tmp_path / 'archives', files)
  options = dict(data_dir=str(tmp_path), file_format='array_record')
  tfds.builder('coco/2017', **options).download_and_prepare()
  found = records('coco/2017', tmp_path, 'validation')
  assert set(found) == set(range(11, 16))
  for seed, record in found.items():
    boxes = fake_coco.xyxy(fake_coco.annotations(seed))
    np.testing.assert_allclose(record['objects'].boxes, boxes, atol=1e-4)
