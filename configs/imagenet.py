"""ImageNet (ILSVRC2012), and any other set of pictures in the same way.

  python train.py --config=configs/imagenet.py --workdir=runs/imagenet
  python train.py --config=configs/imagenet.py:recipe=paper,attention=cbam ...
  python train.py --config=configs/imagenet.py:recipe=a3,aw_conv=false ...
  python train.py --config=configs/imagenet.py:data=folder:/birds,num_classes=5

recipe    epochs, batch   where from                          plain ResNet-50
standard  100, 1024       Flax's ImageNet example; the rate   76.3-76.7 (Flax)
                          and warm-up of 1706.02677
paper     100, 256        what CBAM (1807.06521), BAM         75.4 (1807.06521,
                          (1807.06514) and most papers on     its own baseline)
                          attention share
a2        300, 2048       2110.00476, procedure A2            79.8 (2110.00476)
a3        100, 2048       2110.00476, procedure A3            78.05 (2110.00476)

The last column is top-1 in per cent, as published there for the plain network
(aw_conv=false). NONE OF THESE RECIPES HAS BEEN RUN BY THIS PROJECT: the suite
takes one small step of each. What 2108.08205 says of its own training was not
at hand; `paper` is the recipe of the attention networks it adds to, and so the
one to hold beside its +1.00 over ResNet-101.

Where the recipes leave something open, or we differ: training crops are resized
by OpenCV, from a JPEG decoded at 1/2, 1/4 or 1/8 where that suffices, and not
antialiased otherwise (Flax's neither; Pillow's, for timm and torchvision, are);
timm changes the rate once an epoch, counts its cosine from the first epoch and
ends at 1e-6, here the rate changes every step, the cosine starts where the
warm-up ends, and it ends at 0.

data is 'imagenet2012', or with num_classes any 'tfds:<name>' or 'folder:<path>'
(of train/<class>/<image> and validation/<class>/<image>). A path that holds ','
or '=' goes into --config.data.name=... instead. With attention=aa images have
the training's size in tests, too (a3: 160), as its tables of positions do.
eval is `val` (train on 'train', test on 'validation') or `minival` (train on
the first 99 % of 'train', test on the rest), for choices that validation must
not see. Other splits: --config.data.eval_split=test.

The reading processes are meant for the host of an accelerator: num_workers *
num_threads should be about its cores, and each of these threads holds a whole
batch (0.15 MB an image of 224x224). On two cores they work, but two are better:
--config.data.num_workers=2 --config.data.num_threads=1.
What a device cannot hold: --config.accumulation_steps=8. On accelerators
--config.model.dtype=bfloat16.
"""

import ml_collections

from configs import common

SPLITS = {
    'val': dict(train_split='train', eval_split='validation'),
    'minival': dict(train_split='train[:99%]', eval_split='train[99%:]'),
}


def _augment(interpolation, *others):
  crop = dict(
      area=(0.08, 1.0), ratio=(0.75, 4 / 3), interpolation=interpolation
  )
  return (('random_resized_crop', crop), ('flip', {}), *others)


def _rand_augment(magnitude: float):
  """Returns timm's rand-m<magnitude>-mstd0.5-inc1."""
  options = dict(magnitude_std=0.5, probability=0.5, increasing=True)
  return 'rand_augment', dict(num_ops=2, magnitude=magnitude, **options)


def _standard():
  return dict(
      run=dict(num_epochs=100.0, batch_size=1024),
      data=dict(
          image_size=224,
          eval_image_size=224,
          eval_crop=0.875,  # 224 of 256.
          eval_interpolation='bicubic',
          augment=_augment('cubic'),
          repeats=1,
      ),
      task=dict(loss='softmax', label_smoothing=0.0, mixup=0.0, cutmix=0.0),
      model=dict(zero_init_residual=True, stochastic_depth=0.0),
      optimizer=dict(
          name='sgd',
          options=dict(momentum=0.9, nesterov=True),
          learning_rate=0.1,
          base_batch_size=256,
          weight_decay=1e-4,
          decay_mask='kernels',
          clip_norm=0.0,
          frozen=(),
          schedule='cosine',
          schedule_options=dict(final_fraction=0.0),
          warmup_epochs=5.0,
          warmup_steps=0,
          warmup_start_fraction=0.0,
      ),
  )


def _paper():
  return dict(
      run=dict(num_epochs=100.0, batch_size=256),
      data=dict(
          image_size=224,
          eval_image_size=224,
          eval_crop=0.875,
          eval_interpolation='bilinear',
          augment=_augment('linear'),
          repeats=1,
      ),
      task=dict(loss='softmax', label_smoothing=0.0, mixup=0.0, cutmix=0.0),
      model=dict(zero_init_residual=False, stochastic_depth=0.0),
      optimizer=dict(
          name='sgd',
          options=dict(momentum=0.9, nesterov=False),
          learning_rate=0.1,
          base_batch_size=256,
          weight_decay=1e-4,
          decay_mask='all',
          clip_norm=0.0,
          frozen=(),
          schedule='step',
          schedule_options=dict(
              boundaries_epochs=(30.0, 60.0, 90.0), factor=0.1
          ),
          warmup_epochs=0.0,
          warmup_steps=0,
          warmup_start_fraction=0.0,
      ),
  )


def _strong(
    *,
    num_epochs: float,
    image_size: int,
    magnitude: float,
    repeats: int,
    stochastic_depth: float,
    learning_rate: float,
):
  """Returns what the procedures A2 and A3 share, with what they do not."""
  return dict(
      run=dict(num_epochs=num_epochs, batch_size=2048),
      data=dict(
          image_size=image_size,
          eval_image_size=224,
          eval_crop=0.95,
          eval_interpolation='bicubic',
          augment=_augment('cubic', _rand_augment(magnitude)),
          repeats=repeats,
      ),
      task=dict(
          loss='bce',
          label_smoothing=0.0,
          bce_threshold=0.2,
          mixup=0.1,
          cutmix=1.0,
      ),
      model=dict(zero_init_residual=True, stochastic_depth=stochastic_depth),
      optimizer=dict(
          name='lamb',
          options=dict(b1=0.9, b2=0.999, eps=1e-6),
          learning_rate=learning_rate,
          base_batch_size=2048,
          weight_decay=0.02,
          decay_mask='kernels',
          clip_norm=1.0,  # A part of timm's LAMB.
          frozen=(),
          schedule='cosine',
          schedule_options=dict(final_fraction=0.0),
          warmup_epochs=5.0,
          warmup_steps=0,
          warmup_start_fraction=1e-6 / learning_rate,
      ),
  )


def _a2():
  return _strong(
      num_epochs=300.0,
      image_size=224,
      magnitude=7.0,
      repeats=3,
      stochastic_depth=0.05,
      learning_rate=5e-3,
  )


def _a3():
  return _strong(
      num_epochs=100.0,
      image_size=160,
      magnitude=6.0,
      repeats=1,
      stochastic_depth=0.0,
      learning_rate=8e-3,
  )


RECIPES = {'standard': _standard, 'paper': _paper, 'a2': _a2, 'a3': _a3}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: 'key=value,...' with the keys recipe (standard, paper, a2, a3), eval
      (val, minival), data, num_classes, model, attention ('none' or a name)
      and aw_conv (true or false).
  """
  arg = common.parse_arg(
      arg,
      recipe='standard',
      eval='val',
      data='imagenet2012',
      num_classes=1000,
      model='resnet50',
      attention='none',
      aw_conv=True,
  )
  recipe = common.choose('recipe', arg.recipe, RECIPES)()
  if arg.attention == 'aa':
    # Its tables of relative positions have the size of the images.
    recipe['data']['eval_image_size'] = recipe['data']['image_size']
  config = common.run(
      **recipe['run'],
      eval_batch_size=1024,
      ema_decay=0.0,
      log_every_steps=100,
      eval_every_epochs=1.0,
      checkpoint_every_epochs=1.0,
  )
  config.data = common.data(
      name=arg.data,
      **common.choose('eval', arg.eval, SPLITS),
      **recipe['data'],
      max_bad_fraction=0.001,
      num_workers=8,
      num_threads=2,
      prefetch=2,
  )
  config.task = common.classification(
      **recipe['task'],
      mean=(123.675, 116.28, 103.53),
      std=(58.395, 57.12, 57.375),
  )
  config.model = common.model(
      arg.model,
      num_classes=arg.num_classes,
      attention=arg.attention,
      aw_conv=arg.aw_conv,
      **recipe['model'],
  )
  config.optimizer = ml_collections.ConfigDict(recipe['optimizer'])
  return config.lock()
