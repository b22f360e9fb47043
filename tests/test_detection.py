"""The detection task under the training loop, on the shrunk shipped config."""

import jax
import numpy as np
import pytest

from awconv_jax import (
    data,
    metric_writer,
    optim,
    partition,
    tasks,
    train_loop,
    train_step,
)
from awconv_jax.models import detector_presets
from configs import coco, digit_scenes

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def tiny(arg='attention=se'):
  """Returns the config of the scenes: a narrow network, a few images."""
  config = digit_scenes.get_config(arg)
  with config.unlocked():
    config.num_epochs = 2.0
    config.eval_every_epochs = config.checkpoint_every_epochs = 2.0
    config.batch_size = config.eval_batch_size = 8
    config.log_every_steps = 1
    config.data.train_split, config.data.eval_split = 'train[:24]', 'test[:19]'
    model = config.model
    model.backbone.update(width=4, stage_sizes=(1, 1, 1, 1), aw_stages=(4,))
    model.pyramid.features = model.head.features = 8
    model.proposals.update(
        train_candidates=32, candidates=32, train_number=16, number=16
    )
    model.roi_sampler.number = model.anchor_sampler.number = 16
    model.detections.number = 8
    config.optimizer.frozen = ('backbone/stem_*', 'backbone/stage1_*')
  return config


def steps(config, number, norm_train):
  """Returns the state before and after steps on images of one orientation."""
  with config.unlocked():
    config.model.norm_train = norm_train
  task, mesh = tasks.create(config), partition.create_mesh()
  batches = data.create(config, train=True, batch_size=8, seed=0)
  batch = next(batches)
  shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
  optimizer, schedule = optim.create(
      config.optimizer, batch_size=8, total_steps=10, steps_per_epoch=5.0
  )
  with jax.set_mesh(mesh):
    state = train_step.create_state(
        task, optimizer, mesh, seed=0, batch_shapes=shapes, ema=False
    )
    before = jax.device_get(state)
    step = train_step.create_train_step(
        task,
        optimizer,
        schedule,
        mesh,
        seed=0,
        accumulation_steps=1,
        ema_decay=0.0,
        frozen=config.optimizer.frozen,
    )
    for _ in range(number):
      state, metrics = step(state, partition.shard_batch(mesh, batch))
  return before, jax.device_get(state), jax.device_get(metrics)


def moved(before, after):
  """Returns the paths of the arrays that differ."""
  pairs = zip(
      jax.tree_util.tree_leaves_with_path(before),
      jax.tree.leaves(after),
      strict=True,
  )
  return {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for (path, a), b in pairs
      if not np.array_equal(a, b)
  }


@pytest.mark.slow
def test_what_is_frozen_never_moves():
  config = tiny()
  with config.unlocked():
    config.optimizer.decay_mask = 'all'
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup_epochs = 0.0

  before, after, metrics = steps(config, 2, norm_train=False)

  paths = moved(before.params, after.params)
  frozen = ('backbone/stem_', 'backbone/stage1_')
  assert paths and not [p for p in paths if p.startswith(frozen)]
  for part in ('backbone/stage2_', 'fpn/', 'rpn/', 'box_head/'):
    assert [p for p in paths if p.startswith(part)], part
  assert not moved(before.model_state, after.model_state)
  parts = ('rpn_class', 'rpn_box', 'roi_class', 'roi_box')
  assert metrics['loss'] == pytest.approx(sum(metrics[p] for p in parts))


@pytest.mark.slow
def test_norms_may_train():
  before, after, _ = steps(tiny(), 1, norm_train=True)

  assert moved(before.model_state, after.model_state)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('scenes')
  return workdir, train_loop.train(tiny(), str(workdir))


@pytest.mark.slow
def test_it_trains_under_the_loop_and_counts_every_image(run):
  workdir, result = run

  assert result.step == result.total_steps > 0
  assert result.metrics['num_images'] == 19
  assert 0 <= result.metrics['AP'] <= 1
  rows = metric_writer.read(workdir / 'metrics.jsonl')
  losses = [row['train/loss'] for row in rows if 'train/loss' in row]
  assert len(losses) == result.step and np.isfinite(losses).all()
  assert (workdir / 'classes.json').read_text().startswith('["')


@pytest.mark.parametrize('preset', detector_presets.PRESETS)
def test_configs_hold_every_option_of_a_preset(preset):
  section = coco.get_config(f'preset={preset}').model.to_dict()

  for name, value in detector_presets.PRESETS[preset].items():
    assert section[name] == value, name


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
  kept = jax.tree.leaves(optim.frozen(variables['params'], patterns))
  assert 0 < sum(kept) < len(kept)
