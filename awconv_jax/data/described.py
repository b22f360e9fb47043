"""What batches a data set will give, without the data set: sizes and shapes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from awconv_jax.data import batches, cluttered_digits, digits, sources, splits
from awconv_jax.data.detection import digit_scenes

# Examples of the splits, by their publishers; of coco's 118,287 to train
# on, those with objects: the others are left out.
# Channels are 3 where nothing is said.
SPLITS = {
    'imagenet2012': dict(train=1_281_167, validation=50_000),
    'cifar10': dict(train=50_000, test=10_000),
    'cifar100': dict(train=50_000, test=10_000),
    'coco/2017': dict(train=117_266, validation=5_000),
    'digits': dict(
        train=digits.NUM_TRAIN, test=digits.NUM_ALL - digits.NUM_TRAIN
    ),
    'cluttered_digits': dict(
        train=cluttered_digits.NUM_TRAIN, test=cluttered_digits.NUM_TEST
    ),
    'digit_scenes': dict(
        train=digit_scenes.NUM_TRAIN, test=digit_scenes.NUM_TEST
    ),
    'masks:tfds:oxford_iiit_pet': dict(train=3_680, test=3_669),
}
SPLITS['masks:digit_scenes'] = SPLITS['digit_scenes']
_CHANNELS = {'digits': digits.Digits.channels}


class _Source:
  """As much of a source as a blank row is made of."""

  label_shape = ()

  def __init__(self, channels: int):
    self.channels = channels


def num_examples(name: str, split: str) -> int | None:
  """Returns how many examples a split of a data set has, None if unknown.

  Args:
    name: of `config.data`.
    split: name, or a slice of it.
  """
  split, part = splits.parse(split)
  known = SPLITS.get(name, {}).get(split)
  return None if known is None else len(part(range(known)))


def blank_batch(
    options: Mapping[str, Any], *, train: bool, batch_size: int
) -> batches.Batch:
  """Returns a batch of blank rows over all hosts, without its memory.

  Images with boxes or masks lie on the canvas for landscapes; images have 3
  channels but where a data set of `SPLITS` has others.

  Args:
    options: `config.data`.
    train, batch_size: of `batches.Reader`.
  """
  options = dict(options)
  name = options.pop('name')
  make = sources.reader_of(name).func
  reader = make(None, **options, train=train, batch_size=batch_size, seed=0)
  row = reader.row(_Source(_CHANNELS.get(name, 3)), batches.NONE, 0, None)
  arrays = {key: np.asarray(value) for key, value in row.items()}
  return {
      k: np.broadcast_to(v, (batch_size, *v.shape)) for k, v in arrays.items()
  }
