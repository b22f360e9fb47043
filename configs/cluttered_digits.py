"""Digits among fragments of digits: small, on two cores, and not saturated.

  python train.py --config=configs/cluttered_digits.py --workdir=runs/clutter
  python train.py --config=configs/cluttered_digits.py:aw_conv=true ...

6,000 images to train on and 2,000 to test on, made of what comes with
scikit-learn: nothing is downloaded. The network is a small one, without
attention unless it is asked for: it is to compare attentions on.
"""

import ml_collections

from awconv_jax.train import settings


def get_config(
    *,
    model: str = 'resnet18',
    attention: str | None = None,
    aw_conv: bool = False,
) -> ml_collections.ConfigDict:
  """Returns the config; the network has one block in each of three stages."""
  return settings.complete(
      dict(
          num_epochs=10.0,
          batch_size=64,
          eval_batch_size=250,
          ema_decay=0.98,
          log_every_steps=94,
          eval_every_epochs=2.0,
          checkpoint_every_epochs=5.0,
          data=dict(
              name='cluttered_digits',
              image_size=48,
              eval_image_size=48,
              augment=(('pad_crop', dict(padding=4)),),
          ),
          task=dict(name='classification', label_smoothing=0.1),
          model=settings.network(
              model,
              num_classes=10,
              attention=attention,
              aw_conv=aw_conv,
              stage_sizes=(1, 1, 1),
              width=16,
              # SE, CBAM and CoordAtt lost 7 to 26 points on branches that
              # start at zero: see docs/results.md.
              zero_init_residual=False,
          ),
          optimizer=dict(
              name='sgd',
              learning_rate=0.1,
              base_batch_size=64,
              weight_decay=5e-4,
              schedule='cosine',
              warmup_epochs=2.0,
          ),
      )
  )
