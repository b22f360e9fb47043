"""The shipped config of COCO, trained on a tiny COCO."""

import fake_coco
import numpy as np
import pytest
import watched_run

from configs import coco

# Of the first, 3 has a crowd only and 4 nothing: six are trained on. Those to
# evaluate on are 3 landscapes and 2 portraits, and one has nothing on it.
TRAIN, VAL = range(1, 9), range(11, 16)
TRAINABLE, BATCH, STEPS, WARMUP_STEPS = 6, 2, 5, 3


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  root = tmp_path_factory.mktemp('coco')
  fake_coco.prepare(root, {'train': TRAIN, 'validation': VAL})
  return root


def on_tiny_images(data_dir, **data):
  """Returns the shipped config for five steps on a small canvas."""
  config = coco.get_config(model='resnet50', aw_conv=True)
  with config.unlocked():
    config.batch_size = config.eval_batch_size = BATCH
    config.num_epochs = STEPS * BATCH / TRAINABLE
    config.log_every_steps = 1
    config.optimizer.warmup_steps = WARMUP_STEPS
    config.data.update(data, dir=str(data_dir), num_workers=0)
  return config


def check(run):
  assert run.result.step == run.result.total_steps == STEPS
  for name in ('loss', 'rpn_class', 'rpn_box', 'roi_class', 'roi_box'):
    values = watched_run.logged(run.workdir, f'train/{name}')
    assert len(values) == STEPS and np.isfinite(values).all(), name
    assert max(values) > 0, name
  # 0.02 for 16 images, from a thousandth of it.
  rise = 0.001 + 0.999 * np.arange(WARMUP_STEPS) / WARMUP_STEPS
  rates = 0.02 * BATCH / 16 * np.append(rise, [1] * (STEPS - WARMUP_STEPS))
  got = watched_run.logged(run.workdir, 'train/learning_rate')
  np.testing.assert_allclose(got, rates, rtol=1e-5)
  # Every image of the split was counted once, with all of its objects.
  assert run.evaluators and run.result.metrics['num_images'] == len(VAL)
  wanted = [a for seed in VAL for a in fake_coco.annotations(seed)]
  for dataset in (evaluator.dataset() for evaluator in run.evaluators):
    assert [image['id'] for image in dataset['images']] == [*VAL]
    for key in ('image_id', 'area', 'iscrowd'):
      got = sorted(a[key] for a in dataset['annotations'])
      assert got == sorted(a[key] for a in wanted), key
  # Only what the config does not freeze has moved, by one bit at least: the
  # affine parts of norms are trained, their statistics are not.
  first, last = run.first, watched_run.saved_arrays(run.workdir, STEPS)
  moved = {n for n, a in first.items() if a.tobytes() != last[n].tobytes()}
  for prefix, moves in (
      *(('params/backbone/stem_', False), ('params/backbone/stage1_', False)),
      *(('model_state/', False), ('params/backbone/stage2_block1/norm', True)),
      *(('params/backbone/stage2_block1/conv', True), ('params/fpn/', True)),
      *(('params/rpn/', True), ('params/box_head/', True)),
  ):
    assert any(name.startswith(prefix) for name in first), prefix
    assert any(name.startswith(prefix) for name in moved) == moves, prefix


@pytest.mark.usefixtures('quick_compiles')
def test_five_steps_and_an_evaluation(data_dir, tmp_path):
  # Both orientations lie on one square canvas, so that one step is compiled
  # for three short sides in training and three sizes of images.
  sizes = dict(canvas=(64, 64), short_side=60, long_side=64)
  config = on_tiny_images(data_dir, **sizes, train_short_sides=(44, 52, 60))
  with config.unlocked():
    model = config.model
    model.backbone.update(width=4, stage_sizes=(1, 1), aw_stages=(2,))
    model.anchors.strides = (4, 8, 16)
    model.pyramid.features = model.head.features = 8
    model.proposals.update(train_number=16, number=16)
    model.roi_sampler.number = model.anchor_sampler.number = 16
  run = watched_run.train(config, tmp_path, devices=1)
  check(run)
  assert run.step._cache_size() == run.predict._cache_size() == 1


@pytest.mark.slow
def test_the_shipped_network_trains_on_both_canvases(data_dir, tmp_path):
  sizes = dict(canvas=(128, 192), short_side=128, long_side=192)
  config = on_tiny_images(data_dir, **sizes, train_short_sides=(128,))
  run = watched_run.train(config, tmp_path, devices=1)
  check(run)
  # The paper's network and head, no option of which was changed.
  shipped = coco.get_config(model='resnet50', aw_conv=True)
  assert config.model.to_dict() == shipped.model.to_dict()
  assert run.first['params/box_predictor/cls_score/kernel'].shape == (1024, 81)
  assert run.step._cache_size() == run.predict._cache_size() == 2
