"""Semantic segmentation: the ink of scanned digits on photographs, or others.

  python train.py --config=configs/segmentation.py --workdir=runs/ink
  python train.py --config=configs/segmentation.py:aw_conv=false ...
  python train.py --config=configs/segmentation.py:data=tfds:oxford_iiit_pet ...
  python train.py --config=configs/segmentation.py:data=folder:a,num_classes=3

Semantic FPN (1901.02446) over a ResNet. The first is of digit_scenes: 1,000
images to train on and 200 to test on, of about 96 x 128 pixels, whose pixels
are background or one of ten digits; it trains on two cores, and nothing is
downloaded. docs/segmentation.md has its results.

The others have larger images and a full ResNet, whose weights should be those
of a classifier (--config.init_from). THIS PROJECT HAS NOT RUN THEM: no result
of its own is known.
"""

import ml_collections

from awconv_jax.train import settings

# Classes of the data sets that are known.
CLASSES = {'digit_scenes': 11, 'tfds:oxford_iiit_pet': 3}


def _small() -> dict:
  """Returns the data, the model and the length for digit_scenes."""
  data = dict(
      canvas=(96, 128),
      short_side=96,  # All images fit: none is resized in evaluation.
      long_side=128,
      train_short_sides=(96,),  # Of no effect beside jitter.
      scale_jitter=(0.6, 1.6),
      flip=0.0,  # A mirrored digit is none.
  )
  model = dict(pyramid=dict(features=32), features=32, groups=8)
  # As in classification, where some attentions lost on branches that start at
  # zero: see docs/results.md.
  backbone = dict(width=16, zero_init_residual=False)
  optimizer = dict(learning_rate=0.1, weight_decay=1e-3)
  return dict(
      num_epochs=20.0,
      data=data,
      model=model,
      backbone=backbone,
      optimizer=optimizer,
  )


def _full() -> dict:
  """Returns those for photographs."""
  data = dict(
      canvas=(384, 512),
      short_side=384,
      long_side=512,
      train_short_sides=(256, 320, 384),
      max_bad_fraction=0.001,
      num_workers=4,
      num_threads=2,
      prefetch=2,
  )
  optimizer = dict(learning_rate=0.05, weight_decay=1e-4)
  return dict(
      num_epochs=40.0,
      data=data,
      model={},
      backbone=dict(width=64),
      optimizer=optimizer,
  )


def get_config(
    *,
    model: str = 'resnet18',
    attention: str | None = None,
    aw_conv: bool = True,
    data: str = 'digit_scenes',
    num_classes: int | None = None,
) -> ml_collections.ConfigDict:
  """Returns the config; `model` is the backbone.

  Data is what follows 'masks:' in `config.data.name`; its number of classes is
  wanted where it is a folder.
  """
  how = _small() if data == 'digit_scenes' else _full()
  backbone = settings.network(
      model, attention=attention, aw_conv=aw_conv, **how['backbone']
  )
  # Of a folder without their number, the data's is told.
  classes = num_classes or CLASSES.get(data, 2)
  return settings.complete(
      dict(
          num_epochs=how['num_epochs'],
          batch_size=16,
          eval_batch_size=16,
          ema_decay=0.99,
          log_every_steps=20,
          eval_every_epochs=5.0,
          checkpoint_every_epochs=5.0,
          data=dict(name=f'masks:{data}', **how['data']),
          task=dict(name='segmentation'),
          model=dict(
              name='semantic_fpn',
              num_classes=classes,
              backbone=backbone,
              **how['model'],
          ),
          optimizer=dict(
              base_batch_size=16,
              clip_norm=10.0,
              warmup_epochs=1.0,
              warmup_start_fraction=0.01,
              **how['optimizer'],
          ),
      )
  )
