"""Shipped configs, shrunk so that they compile and run in seconds."""

import functools

import ml_collections

from configs import digits

# The fewest parts of each family of networks that are still such a network, of
# the width that every attention fits into.
_NETWORKS = {
    'resnet': dict(stage_sizes=(1,), width=16),
    'wrn': dict(blocks=1, widen=1, width=16),
    'mobilenet': dict(stages=((1, 16, 1, 1), (2, 16, 2, 2))),
}


@functools.wraps(digits.get_config)  # Takes its arguments.
def get_config(**arguments) -> ml_collections.ConfigDict:
  """Returns the digits: one narrow stage of one AW block, 16x16 pixels."""
  config = digits.get_config(**arguments)
  with config.unlocked():
    config.num_epochs = 0.5
    config.eval_every_epochs = 0.25
    config.checkpoint_every_epochs = 0.25
    config.batch_size = 32
    config.eval_batch_size = 56  # Does not divide 360: the last one is padded.
    config.log_every_steps = 1
    config.data.image_size = 16
    config.data.eval_image_size = 16
    config.model.width = 4
    config.model.stage_sizes = (1,)
    config.model.aw_stages = (1,)
    config.optimizer.warmup_epochs = 0.1
  return config


def shrink(config: ml_collections.ConfigDict, size: int) -> None:
  """Makes the network of any config tiny, and its images size x size."""
  family = next(f for f in _NETWORKS if config.model.name.startswith(f))
  with config.unlocked():
    config.batch_size = 8
    config.eval_batch_size = 8
    config.data.image_size = size
    config.data.eval_image_size = size
    config.model.update(_NETWORKS[family])
    if config.model.attention == 'bam' and family == 'resnet':
      config.model.stage_sizes = (1, 1)  # It stands between two stages.
