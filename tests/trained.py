"""What a run leaves, without training."""

import jax
import numpy as np
import tiny

from awconv_jax.train import rundir, settings
from awconv_jax.train.checkpoint import Checkpointer
from configs import imagenet


def write_variables(directory, variables, config=None):
  """Writes variables as checkpoint 0 of a run, and the config, if any."""
  state = dict(variables)
  state = {'params': state.pop('params'), 'model_state': state}
  directory.mkdir(parents=True, exist_ok=True)
  with Checkpointer(directory / 'checkpoints', keep=2) as checkpointer:
    checkpointer.save(0, state, {})
  if config is not None:
    rundir.write_config(directory, config)


def write_run(directory, config, channels=3):
  """Writes first weights and the config; returns the task and the weights."""
  task, data = settings.create_task(config), config.data
  size = data.get('canvas') or (data.eval_image_size,) * 2
  batch = {'image': np.zeros((1, *size, channels), np.uint8)}
  variables = jax.jit(task.init)(jax.random.key(0), batch)
  write_variables(directory, variables, config)
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
