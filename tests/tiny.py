"""The shipped digits config, shrunk so that it compiles and runs in seconds."""

import ml_collections

from configs import digits


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config: two narrow stages of one AW block, 16x16 pixels."""
  config = digits.get_config(arg)
  with config.unlocked():
    config.num_epochs = 0.5
    config.eval_every_epochs = 0.25
    config.checkpoint_every_epochs = 0.25
    config.batch_size = 32
    config.eval_batch_size = 56  # Does not divide 360: the last one is padded.
    config.log_every_steps = 1
    config.data.image_size = 16
    config.model.width = 4
    config.model.stage_sizes = (1, 1)
    config.model.aw_stages = (1, 2)
    config.optimizer.warmup_epochs = 0.1
  return config
