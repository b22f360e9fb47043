"""From the originals to a trained network: real builders, shipped configs."""

import fake_sources
import numpy as np
import pytest
import tiny

from awconv_jax.tools import prepare
from awconv_jax.train import loop as train_loop
from awconv_jax.train import metric_writer
from configs import cifar10, cifar100, imagenet

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')
STEPS = 20


def imagenet2012(root, monkeypatch):
  del monkeypatch
  fake_sources.write_imagenet(root / 'manual', per_class=4, val=10)
  prepare.prepare('imagenet2012', str(root), str(root / 'manual'))
  return imagenet.get_config('model=resnet18'), (14, 10)


def cifar_10(root, monkeypatch):
  files = {'cifar-10-binary.tar.gz': fake_sources.cifar10(per_file=4)}
  fake_sources.serve(monkeypatch, root / 'archives', files)
  prepare.prepare('cifar10', str(root), None)
  return cifar10.get_config('model=resnet18'), (20, 4)


def cifar_100(root, monkeypatch):
  files = {'cifar-100-binary.tar.gz': fake_sources.cifar100(count=11)}
  fake_sources.serve(monkeypatch, root / 'archives', files)
  prepare.prepare('cifar100', str(root), None)
  return cifar100.get_config('model=resnet18'), (11, 11)


def folder(root, monkeypatch):
  del monkeypatch
  fake_sources.write_folder(root, {'train': 5, 'validation': 7})
  arg = f'data=folder:{root},num_classes=2,model=resnet18,recipe=a3'
  return imagenet.get_config(arg), (10, 14)


@pytest.mark.parametrize('build', [imagenet2012, cifar_10, cifar_100, folder])
def test_prepared_trained_and_evaluated_on_every_image(
    build, tmp_path, monkeypatch
):
  config, (train, val) = build(tmp_path / 'data', monkeypatch)
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
  rows = metric_writer.read(tmp_path / 'run/metrics.jsonl')
  losses = [row['train/loss'] for row in rows if 'train/loss' in row]
  assert len(losses) == STEPS and np.isfinite(losses).all()
  assert not (tmp_path / 'run' / train_loop.UNREADABLE).exists()
