"""Scanned digits on photographs: a small detector that trains on two cores.

  python train.py --config=configs/digit_scenes.py --workdir=runs/scenes
  python train.py --config=configs/digit_scenes.py:aw_conv=false ...

1,000 images to train on and 200 to test on, of about 96 x 128 pixels, made of
what comes with scikit-learn: nothing is downloaded. Nothing leaks: the digits
of the test are of other scans, on other parts of the photographs.

Expected: AP 62 to 68 and AP50 88 to 93 after 7 minutes on two cores, with AW
or without; docs/detection.md has the runs.
"""

import ml_collections

from awconv_jax.train import settings


def get_config(
    *,
    model: str = 'resnet18',
    attention: str | None = None,
    aw_conv: bool = True,
) -> ml_collections.ConfigDict:
  """Returns the config; `model` is the backbone."""
  return settings.complete(
      dict(
          num_epochs=20.0,
          batch_size=16,
          eval_batch_size=16,
          ema_decay=0.99,
          log_every_steps=20,
          eval_every_epochs=5.0,
          checkpoint_every_epochs=5.0,
          data=dict(
              name='digit_scenes',
              canvas=(96, 128),
              short_side=96,
              long_side=128,
              train_short_sides=(80, 88, 96),
              flip=0.0,  # A mirrored digit is none.
              max_boxes=8,
          ),
          task=dict(name='detection'),
          model=dict(
              name='faster_rcnn',
              num_classes=10,
              backbone=settings.network(
                  model, attention=attention, aw_conv=aw_conv, width=16
              ),
              norm_train=True,  # Nothing is pretrained.
              pyramid=dict(features=64),
              anchors=dict(scale=6.0),
              anchor_sampler=dict(number=128),
              proposals=dict(
                  train_candidates=256,
                  candidates=256,
                  train_number=128,
                  number=128,
              ),
              roi_sampler=dict(number=64),
              roi_levels=dict(finest=14.0),
              head=dict(features=128),
              detections=dict(number=32),
          ),
          optimizer=dict(
              learning_rate=0.03,
              base_batch_size=16,
              weight_decay=1e-4,
              clip_norm=10.0,
              warmup_epochs=1.0,
              warmup_start_fraction=0.01,
          ),
      )
  )
