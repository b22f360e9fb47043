"""What a run leaves, without training."""

import jax
import numpy as np
import tiny

from awconv_jax.tools import convert
from awconv_jax.train import settings
from configs import imagenet


def write_run(directory, config, channels=3):
  """Writes first weights and the config; returns the task and the weights."""
  task, side = settings.create_task(config), config.data.eval_image_size
  batch = {'image': np.zeros((1, side, side, channels), np.uint8)}
  variables = jax.jit(task.init)(jax.random.key(0), batch)
  convert.write_run(directory, variables, config)
  return task, variables


def imagenet_run(directory, num_classes):
  """Writes a tiny run for ImageNet; returns config, task and weights."""
  config = imagenet.get_config(model='resnet18')
  tiny.shrink(config, 32)
  with config.unlocked():
    config.eval_batch_size = 8
    config.model.num_classes = num_classes
    config.data.max_bad_fraction = 0.0
    config.data.num_workers = 0
  return config, *write_run(directory, config)
