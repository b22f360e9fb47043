"""The detection task, and the shipped config of COCO at its full size.

For training see test_coco_training.py and test_detection_training.py.
"""

import jax
import numpy as np

from awconv_jax import models, tasks
from awconv_jax.train import optim, settings
from configs import coco


def shapes(height, width):
  like = {
      'image': ((height, width, 3), np.uint8),
      'image_size': ((2,), np.int32),
      'gt_boxes': ((100, 4), np.float32),
      'gt_labels': ((100,), np.int32),
      'gt_valid': ((100,), bool),
  }
  return {k: jax.ShapeDtypeStruct((1, *s), t) for k, (s, t) in like.items()}


def test_coco_traces_at_full_size():
  config = coco.get_config(
      preset='torchvision', num_classes=90, model='resnet18'
  )
  task, batch = settings.create_task(config), shapes(*config.data.canvas)
  key = jax.random.key(0)
  variables = jax.eval_shape(task.init, key, batch)
  loss, (parts, _) = jax.eval_shape(task.loss, variables, batch, key)
  assert loss.shape == () and len(parts) == 4
  patterns = config.optimizer.frozen
  kept = jax.tree.leaves(optim.is_frozen(variables['params'], patterns))
  assert 0 < sum(kept) < len(kept)


def test_forward_has_as_many_regions_as_are_proposed_by_default():
  model = models.create_detector(backbone='resnet18', num_classes=3)
  task, batch = tasks.TASKS['detection'](model), shapes(64, 64)
  variables = jax.eval_shape(task.init, jax.random.key(0), batch)
  outputs = jax.eval_shape(task.forward, variables, batch)
  assert outputs['logits'].shape == (1, 1000, 4)
