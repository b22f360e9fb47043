"""From what TFDS prepares to a trained network: shipped configs."""

import fake_sources
import fake_tfds
import numpy as np
import pytest
import tiny

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
