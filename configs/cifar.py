"""CIFAR-10 and CIFAR-100: 50,000 images of 32x32 to train on, 10,000 to test.

  python train.py --config=configs/cifar.py:data=cifar10 --workdir=runs/cifar10
  python train.py --config=configs/cifar.py:model=wrn_28_10,aw_conv=false ...
  python train.py --config=configs/cifar.py:data=cifar100,auto_augment=true ...

The recipe is that of Wide ResNets (1605.07146), for all networks: 200 epochs of
128, Nesterov momentum 0.9, the rate 0.1 times 0.2 at epochs 60, 120 and 160, L2
5e-4 on all parameters, crops of the image padded by 4 (by zeros, there by
reflection), and flips; no dropout, and scales that start at 1. AutoAugment is
the policy of 1805.09501, found on CIFAR-10 and used there for CIFAR-100, too,
without the Cutout that follows it there. Mean and std are those of the training
images.

Expected on CIFAR-10: 96.11 % top-1 with the plain WRN-28-10 and dropout 0.3
(1605.07146, --config.model.dropout=0.3). On CIFAR-100: 77.4 to 79.9 % with the
plain ResNet-50 and 81.0 % with the plain WRN-28-10 (public trainings by this
recipe); 81.15 % with WRN-28-10 and dropout 0.3 (1605.07146). THIS PROJECT HAS
NOT RUN THEM YET: the tests take one small step.

Four processes read ahead; a machine of two cores is better off with
--config.data.num_workers=0, where a thread of the training process reads.
"""

import ml_collections

from awconv_jax.errors import look_up
from awconv_jax.train import settings

DATA = {
    'cifar10': dict(
        model='resnet18',
        num_classes=10,
        mean=(125.307, 122.961, 113.8575),  # 255 * (0.4914, 0.4822, 0.4465)
        std=(62.985, 62.0925, 66.708),  # 255 * (0.2470, 0.2435, 0.2616)
    ),
    'cifar100': dict(
        model='resnet50',
        num_classes=100,
        mean=(129.3105, 124.1085, 112.404),  # 255 * (0.5071, 0.4867, 0.4408)
        std=(68.2125, 65.4075, 70.4055),  # 255 * (0.2675, 0.2565, 0.2761)
    ),
}


def get_config(
    *,
    data: str = 'cifar10',
    model: str | None = None,
    attention: str | None = None,
    aw_conv: bool = True,
    auto_augment: bool = False,
) -> ml_collections.ConfigDict:
  """Returns the config; `data` is one of DATA, `model` its network if None."""
  facts = look_up('data', data, DATA)
  augment = (('pad_crop', dict(padding=4)), ('flip', {}))
  if auto_augment:
    augment += (('auto_augment', dict(policy='cifar10')),)
  return settings.complete(
      dict(
          num_epochs=200.0,
          batch_size=128,
          eval_batch_size=1024,
          eval_every_epochs=5.0,
          checkpoint_every_epochs=5.0,
          data=dict(
              name=data,
              image_size=32,
              eval_image_size=32,
              augment=augment,
              max_bad_fraction=0.001,
              num_workers=4,
          ),
          task=dict(
              name='classification', mean=facts['mean'], std=facts['std']
          ),
          model=settings.network(
              model or facts['model'],
              num_classes=facts['num_classes'],
              attention=attention,
              aw_conv=aw_conv,
              stem='cifar',
              zero_init_residual=False,
              dropout=0.0,
          ),
          optimizer=dict(
              learning_rate=0.1,
              base_batch_size=128,
              weight_decay=5e-4,
              decay_mask='all',
              schedule='step',
              schedule_options=dict(
                  boundaries_epochs=(60.0, 120.0, 160.0), factor=0.2
              ),
          ),
      )
  )
