"""From what TFDS prepares to a trained network: shipped configs."""

import fake_tfds
import numpy as np
import pictures
import pytest
import tiny

from awconv_jax.train import logging, rundir
from awconv_jax.train import loop as train_loop
from configs import imagenet

STEPS = 8


def imagenet2012(root):
  rows = [dict(image=pictures.photo(i), label=7 * i) for i in range(14)]
  splits = {'train': rows, 'validation': rows[:10]}
  fake_tfds.write(root, 'imagenet2012', fake_tfds.labelled(1000), splits)
  return imagenet.get_config(model='resnet18'), (14, 10)


def folder(root):
  pictures.write_folder(root, {'train': 5, 'validation': 7})
  given = dict(num_classes=2, model='resnet18', recipe='a3')
  return imagenet.get_config(data=f'folder:{root}', **given), (10, 14)


@pytest.mark.usefixtures('quick_compiles_of_module')
@pytest.mark.parametrize('build', [imagenet2012, folder])
def test_trained_and_evaluated_on_every_image(build, tmp_path):
  config, (train, val) = build(tmp_path / 'data')
  assert config.data.image_size in (224, 160)  # The shipped one.
  tiny.shrink(config, 32)
  with config.unlocked():
    config.data.dir = str(tmp_path / 'data')
    config.data.num_workers = 0
    config.num_epochs = STEPS * config.batch_size / train
    config.eval_every_epochs = config.checkpoint_every_epochs = 1e3
    config.log_every_steps = 1
    config.optimizer.warmup_epochs = 0.5
  result = train_loop.train(config, str(tmp_path / 'run'))
  assert result.step == STEPS
  assert result.metrics['num_examples'] == val
  rows = logging.read(tmp_path / 'run/metrics.jsonl')
  losses = [row['train/loss'] for row in rows if 'train/loss' in row]
  assert len(losses) == STEPS and np.isfinite(losses).all()
  assert not (tmp_path / 'run' / rundir.UNREADABLE).exists()
