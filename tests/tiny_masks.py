"""Ink masks of digit_scenes, for a narrow network and few images."""

import ml_collections

from configs import segmentation


def get_config() -> ml_collections.ConfigDict:
  """Returns six steps on both canvases."""
  config = segmentation.get_config()
  with config.unlocked():
    config.num_epochs = config.eval_every_epochs = 2.0
    config.checkpoint_every_epochs = 2.0
    config.batch_size = config.eval_batch_size = 8
    config.ema_decay = 0.9
    config.log_every_steps = 1
    # Neither these nor their landscapes or portraits fill batches.
    config.data.train_split, config.data.eval_split = 'train[:24]', 'test[:5]'
    model = config.model
    model.backbone.update(width=4, stage_sizes=(1, 1, 1), aw_stages=(2,))
    model.update(features=16, groups=4)
    model.pyramid.features = 16
  return config
