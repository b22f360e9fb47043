"""Scanned digits: the embedded data set, to try everything on two cores.

  python train.py --config=configs/digits.py --workdir=runs/digits
  python train.py --config=configs/digits.py:model=resnet34,aw_conv=false ...

1,437 scans to train on and 360 to test on, mostly of other writers; they come
with scikit-learn, so nothing is downloaded.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: 'key=value,...' with the keys model, attention ('none' or a name),
      aw_conv (true or false), optimizer and schedule.
  """
  arg = common.parse_arg(
      arg,
      model='resnet18',
      attention='none',
      aw_conv=True,
      optimizer='sgd',
      schedule='cosine',
  )
  config = common.run(
      num_epochs=18.0,
      batch_size=64,
      eval_batch_size=72,
      ema_decay=0.98,
      log_every_steps=20,
      eval_every_epochs=3.0,
      checkpoint_every_epochs=3.0,
  )
  config.data = common.data(
      name='digits',
      train_split='train',
      eval_split='test',
      image_size=16,  # The scans were 8x8 to begin with.
      eval_image_size=16,
      eval_crop=1.0,
      eval_interpolation='area',
      augment=(
          (
              'random_affine',
              dict(
                  rotation=12.0, translation=0.08, scale=(0.85, 1.15), shear=8.0
              ),
          ),
      ),
      repeats=1,
      max_bad_fraction=0.0,
      num_workers=0,  # 0 reads in threads of this process.
      num_threads=1,
      prefetch=4,
  )
  config.task = common.classification(
      loss='softmax',
      label_smoothing=0.1,
      mixup=0.0,
      cutmix=0.0,
      mean=(78.0,),
      std=(96.0,),
  )
  config.model = common.model(
      arg.model,
      num_classes=10,
      attention=arg.attention,
      aw_conv=arg.aw_conv,
      width=16,
      stem='cifar',
  )
  config.optimizer = ml_collections.ConfigDict(
      dict(
          name=arg.optimizer,
          options=common.choose('optimizer', arg.optimizer, common.OPTIMIZERS),
          # At the base batch size; it grows in proportion to the batch.
          learning_rate=0.1 if arg.optimizer == 'sgd' else 3e-3,
          base_batch_size=64,
          weight_decay=5e-4,
          decay_mask='kernels',
          clip_norm=0.0,  # 0 is off.
          frozen=(),  # Such as ('stem_*', 'stage1_*').
          schedule=arg.schedule,
          schedule_options=common.choose(
              'schedule', arg.schedule, common.SCHEDULES
          ),
          warmup_epochs=2.0,
          warmup_steps=0,
          warmup_start_fraction=0.0,
      )
  )
  return config.lock()
