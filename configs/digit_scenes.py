"""Scanned digits on photographs: a small detector that trains on two cores.

  python train.py --config=configs/digit_scenes.py --workdir=runs/scenes
  python train.py --config=configs/digit_scenes.py:aw_conv=false ...

1,000 images to train on and 200 to test on, of about 96 x 128 pixels, made of
what comes with scikit-learn: nothing is downloaded. Nothing leaks: the digits
of the test are of other scans, on other parts of the photographs.

Expected: AP 62 to 66 and AP50 88 to 91 after 7 minutes on two cores, with AW
or without; docs/detection.md has the runs.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: 'key=value,...' with the keys model (of the backbone), attention
      ('none' or a name) and aw_conv (true or false).
  """
  arg = common.parse_arg(arg, model='resnet18', attention='none', aw_conv=True)
  config = common.run(
      num_epochs=20.0,
      batch_size=16,
      eval_batch_size=16,
      ema_decay=0.99,
      log_every_steps=20,
      eval_every_epochs=5.0,
      checkpoint_every_epochs=5.0,
  )
  config.data = common.data(
      name='digit_scenes',
      train_split='train',
      eval_split='test',
      canvas=(96, 128),
      short_side=96,
      long_side=128,
      train_short_sides=(80, 88, 96),
      flip=0.0,  # A mirrored digit is none.
      scale_jitter=(),
      max_boxes=8,
      train_empty=False,
      drop_bad=False,
      max_bad_fraction=0.0,
      num_workers=0,
      num_threads=1,
      prefetch=4,
  )
  config.task = ml_collections.ConfigDict()
  config.task.name = 'detection'
  config.task.mean = (123.675, 116.28, 103.53)
  config.task.std = (58.395, 57.12, 57.375)
  backbone = common.model(
      arg.model,
      num_classes=10,
      attention=arg.attention,
      aw_conv=arg.aw_conv,
      width=16,
  )
  config.model = common.detector(
      backbone,
      num_classes=10,
      preset='mmdet',
      norm_train=True,  # Nothing is pretrained.
      pyramid=dict(features=64),
      anchors=dict(scale=6.0),
      anchor_sampler=dict(number=128),
      proposals=dict(
          train_candidates=256, candidates=256, train_number=128, number=128
      ),
      roi_sampler=dict(number=64),
      roi_levels=dict(finest=14.0),
      head=dict(features=128),
      detections=dict(number=32),
  )
  config.optimizer = ml_collections.ConfigDict(
      dict(
          name='sgd',
          options=dict(momentum=0.9, nesterov=True),
          learning_rate=0.03,
          base_batch_size=16,
          weight_decay=1e-4,
          decay_mask='kernels',
          clip_norm=10.0,
          frozen=(),
          schedule='cosine',
          schedule_options=dict(final_fraction=0.0),
          warmup_epochs=1.0,
          warmup_steps=0,
          warmup_start_fraction=0.01,
      )
  )
  return config.lock()
