"""The detection task, and the shipped config of COCO at its full size.

For training see test_coco_training.py and test_detection_training.py.
"""

import jax
import numpy as np
import pytest

from awconv_jax import tasks
from awconv_jax.train import optim
from configs import coco


@pytest.mark.parametrize(
    'arg', ['', 'preset=torchvision,num_classes=90', 'model=resnet101']
)
def test_coco_traces_at_full_size(arg):
  config = coco.get_config(arg)
  task = tasks.create(config)
  height, width = config.data.canvas
  shapes = {
      'image': jax.ShapeDtypeStruct((1, height, width, 3), np.uint8),
      'image_size': jax.ShapeDtypeStruct((1, 2), np.int32),
      'gt_boxes': jax.ShapeDtypeStruct((1, 100, 4), np.float32),
      'gt_labels': jax.ShapeDtypeStruct((1, 100), np.int32),
      'gt_valid': jax.ShapeDtypeStruct((1, 100), bool),
  }
  key = jax.random.key(0)
  variables = jax.eval_shape(task.init, key, shapes)
  loss, (parts, _) = jax.eval_shape(task.loss, variables, shapes, key)
  assert loss.shape == () and len(parts) == 4
  patterns = config.optimizer.frozen
  kept = jax.tree.leaves(optim.is_frozen(variables['params'], patterns))
  assert 0 < sum(kept) < len(kept)
