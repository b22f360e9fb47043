"""CIFAR-100: 50,000 images of 32x32 pixels to train on, 10,000 to test on.

  python train.py --config=configs/cifar100.py --workdir=runs/cifar100
  python train.py --config=configs/cifar100.py:model=wrn_28_10,aw_conv=false ...
  python train.py --config=configs/cifar100.py:auto_augment=true ...

The recipe is that of Wide ResNets (1605.07146), for all networks: 200 epochs of
128, Nesterov momentum 0.9, the rate 0.1 times 0.2 at epochs 60, 120 and 160, L2
5e-4 on all parameters, crops of the image padded by 4 (by zeros, there by
reflection), and flips; no dropout, and scales that start at 1. AutoAugment is
the policy of 1805.09501, found on CIFAR-10 and used there for CIFAR-100, too,
without the Cutout that follows it there. Mean and std are those of the training
images, which differ from CIFAR-10's.

Expected: 77.4 to 79.9 % top-1 with the plain ResNet-50 and 81.0 % with the
plain WRN-28-10 (public trainings by this recipe); 81.15 % with WRN-28-10 and
dropout 0.3 (1605.07146, --config.model.dropout=0.3). THIS PROJECT HAS NOT RUN
IT YET: the suite takes one small step.

Four processes read ahead; a machine of two cores is better off with
--config.data.num_workers=0, where a thread of the training process reads.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: 'key=value,...' with the keys model, attention ('none' or a name),
      aw_conv and auto_augment (true or false).
  """
  arg = common.parse_arg(
      arg,
      model='resnet50',
      attention='none',
      aw_conv=True,
      auto_augment=False,
  )
  config = common.run(
      num_epochs=200.0,
      batch_size=128,
      eval_batch_size=1024,
      ema_decay=0.0,
      log_every_steps=100,
      eval_every_epochs=5.0,
      checkpoint_every_epochs=5.0,
  )
  augment = (('pad_crop', dict(padding=4)), ('flip', {}))
  if arg.auto_augment:
    augment += (('auto_augment', dict(policy='cifar10')),)
  config.data = common.data(
      name='cifar100',
      train_split='train',
      eval_split='test',
      image_size=32,
      eval_image_size=32,
      eval_crop=1.0,
      eval_interpolation='area',  # Nothing is resized.
      augment=augment,
      repeats=1,
      max_bad_fraction=0.001,
      num_workers=4,
      num_threads=1,
      prefetch=4,
  )
  config.task = common.classification(
      loss='softmax',
      label_smoothing=0.0,
      mixup=0.0,
      cutmix=0.0,
      mean=(129.3105, 124.1085, 112.404),  # 255 * (0.5071, 0.4867, 0.4408)
      std=(68.2125, 65.4075, 70.4055),  # 255 * (0.2675, 0.2565, 0.2761)
  )
  config.model = common.model(
      arg.model,
      num_classes=100,
      attention=arg.attention,
      aw_conv=arg.aw_conv,
      stem='cifar',
      zero_init_residual=False,
      dropout=0.0,
  )
  config.optimizer = ml_collections.ConfigDict(
      dict(
          name='sgd',
          options=dict(momentum=0.9, nesterov=True),
          learning_rate=0.1,
          base_batch_size=128,
          weight_decay=5e-4,
          decay_mask='all',
          clip_norm=0.0,
          frozen=(),
          schedule='step',
          schedule_options=dict(
              boundaries_epochs=(60.0, 120.0, 160.0), factor=0.2
          ),
          warmup_epochs=0.0,
          warmup_steps=0,
          warmup_start_fraction=0.0,
      )
  )
  return config.lock()
