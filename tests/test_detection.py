"""The detection task, and the shipped config of COCO at its full size.

For training see test_coco_training.py and test_detection_training.py.
"""

import jax
import numpy as np
import pytest

from awconv_jax import tasks
from awconv_jax.models.detection import presets as detector_presets
from awconv_jax.train import optim
from configs import coco, common


def test_presets_of_configs_are_those_of_the_models():
  assert common.DETECTORS == detector_presets.PRESETS
  for preset in common.DETECTORS:
    section = coco.get_config(f'preset={preset}').model.to_dict()
    for name, value in detector_presets.PRESETS[preset].items():
      assert section[name] == value, name
    # It would do nothing beside all of the options.
    assert 'preset' not in section


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
