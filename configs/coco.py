"""COCO 2017: Faster R-CNN with FPN, as in the paper's experiments.

  python train.py --config=configs/coco.py --workdir=runs/coco \\
      --config.init_from=runs/aw_resnet50
  python train.py --config=configs/coco.py:aw_conv=false --workdir=runs/plain \\
      --config.init_from=resnet50.safetensors
  python train.py --config=configs/coco.py:model=resnet101,aw_conv=false ...
  python train.py --config=configs/coco.py:schedule=3x ...
  python train.py --config=configs/coco.py:data=coco_json:owls,num_classes=5 ...

The settings are mmdetection's (1906.07155, faster-rcnn_r50_fpn_1x_coco): 16
images a step, 0.02 with momentum 0.9, a tenth of it at 8 and 11 of 12 epochs,
500 steps of warm-up, the stem and the first stage frozen, batch norm's
statistics frozen. Its R50 reaches 37.4 AP and its R101 39.4, without attention,
from ImageNet weights; runs differ by about 0.2. schedule=3x is 36 epochs with
steps at 28 and 34 and short sides of 640 to 800, after detectron2's. THIS
PROJECT HAS NOT RUN IT: no result of its own is known, and the tests take a few
small steps.

A network for classification gives its weights to the backbone. That of an AW
one should be an AW network (a run of configs/imagenet.py): what a plain one
lacks would keep its random values in the frozen first stage.

Where we differ: images lie on one of two canvases, so that shapes are static,
and what is computed of an image does not see the padding (mask_padding);
RoIAlign takes 2x2 samples, which are 2x2 to 4x4 there.

The numbers of the network are the defaults of the detector. preset=torchvision
has that library's, for its weights (91 classes, of which one is the background:
num_classes=90; aw_conv=false; sides of the canvas are multiples of 64; those it
publishes want --config.model.backbone.norm_epsilon=0.0).
"""

import ml_collections

from awconv_jax.errors import look_up
from awconv_jax.models.detection import presets
from awconv_jax.train import settings

SCHEDULES = {
    '1x': dict(
        num_epochs=12.0, boundaries_epochs=(8.0, 11.0), train_short_sides=(800,)
    ),
    '3x': dict(
        num_epochs=36.0,
        boundaries_epochs=(28.0, 34.0),
        train_short_sides=(640, 672, 704, 736, 768, 800),
    ),
}


def get_config(
    *,
    model: str = 'resnet50',
    attention: str | None = None,
    aw_conv: bool = True,
    schedule: str = '1x',
    preset: str = presets.DEFAULT,
    data: str = 'coco/2017',
    num_classes: int = 80,
) -> ml_collections.ConfigDict:
  """Returns the config; `preset` is mmdet or torchvision."""
  how = look_up('schedule', schedule, SCHEDULES)
  return settings.complete(
      dict(
          num_epochs=how['num_epochs'],
          batch_size=16,
          eval_batch_size=16,
          log_every_steps=50,
          data=dict(
              name=data,
              eval_split='validation',
              # Of 4:3 images little is padding; the longest are 1333. Sides
              # that are multiples of 64 fit the strides.
              canvas=(832 if preset == 'torchvision' else 800, 1344),
              short_side=800,
              long_side=1333,
              train_short_sides=how['train_short_sides'],
              max_bad_fraction=0.001,
              num_workers=8,
              num_threads=2,
              prefetch=2,
          ),
          task=dict(name='detection'),
          model=dict(
              name='faster_rcnn',
              backbone=dict(name=model, attention=attention, aw_conv=aw_conv),
              **presets.with_preset(preset, num_classes=num_classes),
          ),
          optimizer=dict(
              options=dict(nesterov=False),
              learning_rate=0.02,
              base_batch_size=16,
              weight_decay=1e-4,
              decay_mask='all',
              frozen=('backbone/stem_*', 'backbone/stage1_*'),
              schedule='step',
              schedule_options=dict(boundaries_epochs=how['boundaries_epochs']),
              warmup_steps=500,
              warmup_start_fraction=0.001,
          ),
      )
  )
