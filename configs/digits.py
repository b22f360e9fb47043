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
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.num_epochs = 18.0
  config.batch_size = 64
  config.eval_batch_size = 72
  config.accumulation_steps = 1
  config.ema_decay = 0.98  # 0 is off.
  # A run's directory, or a .safetensors or .pth file, to take weights from, but
  # for the modules in init_skip, such as ('head',).
  config.init_from = ml_collections.config_dict.placeholder(str)
  config.init_skip = ()
  config.log_every_steps = 20
  config.eval_every_epochs = 3.0
  config.checkpoint_every_epochs = 3.0
  config.checkpoints_to_keep = 2

  config.data = ml_collections.ConfigDict()
  config.data.name = 'digits'
  # None is $TFDS_DATA_DIR or ~/tensorflow_datasets.
  config.data.dir = ml_collections.config_dict.placeholder(str)
  config.data.train_split = 'train'
  config.data.eval_split = 'test'
  config.data.image_size = 16  # The scans were 8x8 to begin with.
  config.data.augment = (
      (
          'random_affine',
          dict(rotation=12.0, translation=0.08, scale=(0.85, 1.15), shear=8.0),
      ),
  )
  config.data.num_workers = 0  # 0 reads in threads of this process.
  config.data.num_threads = 1
  config.data.prefetch = 4

  config.task = ml_collections.ConfigDict()
  config.task.name = 'classification'
  config.task.label_smoothing = 0.1
  config.task.mean = (78.0,)
  config.task.std = (96.0,)

  config.model = ml_collections.ConfigDict()
  config.model.name = arg.model
  config.model.num_classes = 10
  config.model.update(common.network(arg.model, width=16, stem='cifar'))
  # A placeholder, so that --config.model.attention=se finds its type.
  config.model.attention = ml_collections.config_dict.placeholder(str)
  if arg.attention != 'none':
    config.model.attention = arg.attention
  config.model.attention_options = common.attention_options(arg.attention)
  config.model.aw_conv = arg.aw_conv
  config.model.aw_where = '3x3'
  # None is all of them; or such as (3, 4).
  config.model.aw_stages = ml_collections.config_dict.placeholder(tuple)
  config.model.aw_options = common.aw_options()
  config.model.norm_momentum = 0.9
  config.model.norm_epsilon = 1e-5
  config.model.dtype = 'float32'
  config.model.param_dtype = 'float32'

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = arg.optimizer
  config.optimizer.options = common.choose(
      'optimizer', arg.optimizer, common.OPTIMIZERS
  )
  # At the base batch size; it grows in proportion to the batch.
  config.optimizer.learning_rate = 0.1 if arg.optimizer == 'sgd' else 3e-3
  config.optimizer.base_batch_size = 64
  config.optimizer.weight_decay = 5e-4
  config.optimizer.decay_mask = 'kernels'
  config.optimizer.clip_norm = 0.0  # 0 is off.
  config.optimizer.schedule = arg.schedule
  config.optimizer.schedule_options = common.choose(
      'schedule', arg.schedule, common.SCHEDULES
  )
  config.optimizer.warmup_epochs = 2.0
  config.optimizer.warmup_start_fraction = 0.0
  return config.lock()
