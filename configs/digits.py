"""Scanned digits: the embedded data set, to try everything on two cores.

  python train.py --config=configs/digits.py --workdir=runs/digits
  python train.py --config=configs/digits.py:model=resnet34,aw_conv=false ...

1,437 scans to train on and 360 to test on, mostly of other writers; they come
with scikit-learn, so nothing is downloaded.
"""

import ml_collections

from awconv_jax.train import settings


def get_config(
    *,
    model: str = 'resnet18',
    attention: str | None = None,
    aw_conv: bool = True,
    optimizer: str = 'sgd',
    schedule: str = 'cosine',
) -> ml_collections.ConfigDict:
  """Returns the config; `optimizer` and `schedule` are names of `optim`'s."""
  affine = dict(rotation=12.0, translation=0.08, scale=(0.85, 1.15), shear=8.0)
  return settings.complete(
      dict(
          num_epochs=18.0,
          batch_size=64,
          eval_batch_size=72,
          ema_decay=0.98,
          log_every_steps=20,
          eval_every_epochs=3.0,
          checkpoint_every_epochs=3.0,
          data=dict(
              name='digits',
              image_size=16,  # The scans were 8x8 to begin with.
              eval_image_size=16,
              augment=(('random_affine', affine),),
          ),
          task=dict(
              name='classification',
              label_smoothing=0.1,
              mean=(78.0,),
              std=(96.0,),
          ),
          model=settings.network(
              model,
              num_classes=10,
              attention=attention,
              aw_conv=aw_conv,
              width=16,
              stem='cifar',
          ),
          optimizer=dict(
              name=optimizer,
              learning_rate=0.1 if optimizer == 'sgd' else 3e-3,
              base_batch_size=64,
              weight_decay=5e-4,
              schedule=schedule,
              warmup_epochs=2.0,
          ),
      )
  )
