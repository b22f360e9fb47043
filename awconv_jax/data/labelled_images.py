"""Batches of images with labels; `data` says what is in them."""

from collections.abc import Sequence
import dataclasses
from typing import Annotated, Any

import numpy as np

from awconv_jax.data import batches, decode
from awconv_jax.data.augment import CROPS, STEPS, augmented
from awconv_jax.data.order import ShuffledOrder
from awconv_jax.errors import InputError, look_up
from awconv_jax.options import OneOf, PositiveInt, Share, Side, Steps

# What an augmentation is given beside its options.
_GIVEN = ('image', 'encoded', 'rng', 'size')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledImages(batches.Reader):
  """Reads images with labels.

  Attributes:
    image_size, eval_image_size: pixels of an image's side in training and in
      evaluation.
    augment: (name, options) pairs; applied in order.
    repeats: rows in succession that show the same example, in training.
    eval_crop: side of the central square that is evaluated, over the image's
      shorter side.
    eval_interpolation: a key of `decode.INTERPOLATIONS`.
    eval_resize: 'crop' for these two; 'torchvision' for its Resize, to the size
      over `eval_crop`, bilinear, and CenterCrop, pixel by pixel: published
      weights were measured so.
  """

  image_size: Side
  eval_image_size: Side
  augment: Annotated[
      Sequence[tuple[str, dict[str, Any]]], Steps(STEPS, 'augmentation', _GIVEN)
  ] = ()
  repeats: PositiveInt = 1
  eval_crop: Share = 1.0
  eval_interpolation: Annotated[str, OneOf(decode.INTERPOLATIONS)] = 'area'
  eval_resize: Annotated[str, OneOf(decode.CENTRES)] = 'crop'

  def create(self) -> batches.TrainBatches | batches.EvalBatches:
    """Returns the batches; InputError if the data cannot be used."""
    split = self.train_split if self.train else self.eval_split
    source = self.open_split(self.dir, split)
    for place, (name, _) in enumerate(self.augment):
      look_up('augmentation', name, STEPS)
      if place and name in CROPS:
        raise InputError(f'augmentation {name!r} must come first in augment')
    if not self.train:
      examples = [range(len(source))]
      return batches.EvalBatches(self, source, examples, self.row)
    if source.label_shape:
      raise InputError(
          f'the images of split {split!r} have several labels each, to be '
          'evaluated with, not to be trained on'
      )
    order = ShuffledOrder(len(source), self.seed, self.repeats)
    # The second of two, the first of which `order` uses.
    seed = np.random.SeedSequence(self.seed).generate_state(2)[1]
    return batches.TrainBatches(self, source, order, self.row, seed)

  def row(self, source, index: int, group: int, rng: batches.Rng) -> dict:
    """Makes a row; see `batches`."""
    del group
    size = self.image_size if self.train else self.eval_image_size
    if index == batches.NONE:
      return dict(
          image=np.zeros((size, size, source.channels), np.uint8),
          label=np.zeros(source.label_shape, np.int32),
          index=np.int32(index),
          mask=np.bool_(False),
      )
    record = source[index]
    encoded = decode.EncodedImage(record['image'], source.channels)
    if rng is not None:
      how = dict(steps=self.augment, size=size)
      image = augmented(encoded, rng, **how)
    else:
      image = decode.center_crop(
          encoded.pixels(),
          size=size,
          share=self.eval_crop,
          interpolation=self.eval_interpolation,
          how=self.eval_resize,
      )
    label = np.int32(record['label'])
    # Of several labels, those that are right, padded with -1.
    mask = np.any(label >= 0)
    return dict(image=image, label=label, index=np.int32(index), mask=mask)
