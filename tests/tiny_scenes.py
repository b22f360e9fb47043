"""digit_scenes as shipped, but for a narrow network and few images."""

import ml_collections

from configs import digit_scenes


def get_config() -> ml_collections.ConfigDict:
  """Returns nine steps on both canvases and at several scales."""
  config = digit_scenes.get_config()
  with config.unlocked():
    config.num_epochs = config.eval_every_epochs = 4.0
    config.checkpoint_every_epochs = 2.0
    config.batch_size = config.eval_batch_size = 8
    config.ema_decay = 0.9
    config.log_every_steps = 1
    # 18 have a box. Neither 19 nor its landscapes or portraits fill batches.
    config.data.train_split, config.data.eval_split = 'train[:24]', 'test[:19]'
    config.data.train_short_sides = (80, 88, 96)
    model = config.model
    model.norm_train = True
    model.backbone.update(width=4, stage_sizes=(1, 1), aw_stages=(2,))
    model.anchors.strides = (4, 8, 16)
    model.pyramid.features = model.head.features = 8
    model.proposals.update(train_candidates=32, candidates=32)
    model.proposals.update(train_number=16, number=16)
    model.roi_sampler.number = model.anchor_sampler.number = 16
    # There would be nothing to count after a few steps.
    model.detections.update(number=32, min_score=0.0)
    # Or else differences of rounding would grow with the steps.
    config.optimizer.learning_rate = 0.01
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.frozen = ('backbone/stem_*', 'backbone/stage1_*')
  return config
