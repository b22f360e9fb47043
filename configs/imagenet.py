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
(aw_conv=false). NONE OF THESE RECIPES HAS BEEN RUN BY THIS PROJECT: the tests
take one small step of each. What 2108.08205 says of its own training was not
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

from typing import Any

import ml_collections

from awconv_jax.errors import look_up
from awconv_jax.train import settings

SPLITS = {
    'val': dict(train_split='train', eval_split='validation'),
    'minival': dict(train_split='train[:99%]', eval_split='train[99%:]'),
}


def _augment(method: str, **others: dict[str, Any]) -> tuple[Any, ...]:
  crop = dict(area=(0.08, 1.0), ratio=(0.75, 4 / 3), interpolation=method)
  return (('random_resized_crop', crop), ('flip', {}), *others.items())


# timm's rand-m<magnitude>-mstd0.5-inc1.
RAND = dict(num_ops=2, magnitude_std=0.5, probability=0.5, increasing=True)
BCE = dict(loss='bce', bce_threshold=0.2, mixup=0.1, cutmix=1.0)
LAMB = dict(
    name='lamb',
    base_batch_size=2048,
    weight_decay=0.02,
    clip_norm=1.0,  # A part of timm's LAMB.
    warmup_epochs=5.0,
)
RECIPES = {
    'standard': dict(
        num_epochs=100.0,
        batch_size=1024,
        data=dict(
            image_size=224,
            eval_crop=0.875,  # 224 of 256.
            eval_interpolation='bicubic',
            augment=_augment('cubic'),
        ),
        optimizer=dict(
            learning_rate=0.1,
            base_batch_size=256,
            weight_decay=1e-4,
            warmup_epochs=5.0,
        ),
    ),
    'paper': dict(
        num_epochs=100.0,
        batch_size=256,
        data=dict(
            image_size=224,
            eval_crop=0.875,
            eval_interpolation='bilinear',
            augment=_augment('linear'),
        ),
        model=dict(zero_init_residual=False),
        optimizer=dict(
            options=dict(nesterov=False),
            learning_rate=0.1,
            base_batch_size=256,
            weight_decay=1e-4,
            decay_mask='all',
            schedule='step',
        ),
    ),
    'a2': dict(
        num_epochs=300.0,
        batch_size=2048,
        data=dict(
            image_size=224,
            eval_crop=0.95,
            eval_interpolation='bicubic',
            augment=_augment('cubic', rand_augment=dict(magnitude=7.0, **RAND)),
            repeats=3,
        ),
        task=BCE,
        model=dict(stochastic_depth=0.05),
        optimizer=dict(
            learning_rate=5e-3, warmup_start_fraction=1e-6 / 5e-3, **LAMB
        ),
    ),
    'a3': dict(
        num_epochs=100.0,
        batch_size=2048,
        data=dict(
            image_size=160,
            eval_crop=0.95,
            eval_interpolation='bicubic',
            augment=_augment('cubic', rand_augment=dict(magnitude=6.0, **RAND)),
        ),
        task=BCE,
        optimizer=dict(
            learning_rate=8e-3, warmup_start_fraction=1e-6 / 8e-3, **LAMB
        ),
    ),
}


def get_config(
    *,
    recipe: str = 'standard',
    eval: str = 'val',
    data: str = 'imagenet2012',
    num_classes: int = 1000,
    model: str = 'resnet50',
    attention: str | None = None,
    aw_conv: bool = True,
) -> ml_collections.ConfigDict:
  """Returns the config; `recipe` is one of RECIPES, `eval` of SPLITS."""
  config = look_up('recipe', recipe, RECIPES)
  # The tables of relative positions have the size of the images.
  size = config['data']['image_size'] if attention == 'aa' else 224
  return settings.complete(
      config
      | dict(
          eval_batch_size=1024,
          data=config['data']
          | look_up('eval', eval, SPLITS)
          | dict(
              name=data,
              eval_image_size=size,
              max_bad_fraction=0.001,
              num_workers=8,
              num_threads=2,
              prefetch=2,
          ),
          task=config.get('task', {}) | dict(name='classification'),
          model=settings.network(
              model,
              num_classes=num_classes,
              attention=attention,
              aw_conv=aw_conv,
              **config.get('model', {}),
          ),
      )
  )
