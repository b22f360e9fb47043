"""Batches of images with labels; `data` says what is in them."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Annotated, Any

import numpy as np

from awconv_jax.data import batches, crops
from awconv_jax.data.augment import Chain
from awconv_jax.data.decode import INTERPOLATIONS, EncodedImage
from awconv_jax.data.order import EvalOrder, ShuffledOrder
from awconv_jax.errors import InputError
from awconv_jax.options import OneOf, PositiveInt, Share


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledImages(batches.Reader):
  """Reads images with labels.

  Attributes:
    image_size, eval_image_size: pixels of an image's side in training and in
      evaluation.
    augment: (name, options) pairs; see `augment.Chain`.
    repeats: rows in succession that show the same example, in training.
    eval_crop: side of the central square that is evaluated, over the image's
      shorter side.
    eval_interpolation: a key of `decode.INTERPOLATIONS`.
  """

  image_size: PositiveInt
  eval_image_size: PositiveInt
  augment: Sequence[tuple[str, dict[str, Any]]] = ()
  repeats: PositiveInt = 1
  eval_crop: Share = 1.0
  eval_interpolation: Annotated[str, OneOf(INTERPOLATIONS)] = 'area'

  def create(self) -> batches.TrainBatches | batches.EvalBatches:
    """Returns the batches; InputError if the data cannot be used."""
    # Made for evaluation too, so that a mistake shows whichever comes first.
    chain = Chain(self.augment, self.image_size)
    split = self.train_split if self.train else self.eval_split
    source = self.open_split(self.dir, split)
    label = np.int32(source[0]['label'])
    if self.train and label.ndim:
      raise InputError(
          f'the images of split {split!r} have several labels each, to be '
          'evaluated with, not to be trained on'
      )
    crop = dict(
        size=self.eval_image_size,
        share=self.eval_crop,
        interpolation=self.eval_interpolation,
    )
    make_row = _MakeRow(source.channels, chain, crop, label.shape)
    if not self.train:
      order = EvalOrder([range(len(source))], self.batch_size)
      return batches.EvalBatches(self, source, order, make_row)
    order = ShuffledOrder(len(source), self.seed, self.repeats)
    # The second of two, the first of which `order` uses.
    seed = np.random.SeedSequence(self.seed).generate_state(2)[1]
    return batches.TrainBatches(self, source, order, make_row, seed)


@dataclasses.dataclass(frozen=True)
class _MakeRow:
  """Record -> row; see `batches`."""

  channels: int
  chain: Chain
  crop: Mapping[str, Any]
  label_shape: tuple[int, ...]

  def __call__(
      self,
      index: int,
      record: Mapping[str, Any],
      group: int,
      rng: np.random.Generator | None,
  ) -> batches.Row:
    del group
    encoded = EncodedImage(record['image'], self.channels)
    if rng is not None:
      image = self.chain(encoded, rng)
    else:
      image = crops.center_crop(encoded.pixels(), **self.crop)
    label = np.int32(record['label'])
    # Of several labels, those that are right, padded with -1.
    mask = np.any(label >= 0)
    return dict(image=image, label=label, index=np.int32(index), mask=mask)

  def blank(self, group: int) -> batches.Row:
    del group
    shape = (self.crop['size'], self.crop['size'], self.channels)
    return {
        'image': np.zeros(shape, np.uint8),
        'label': np.zeros(self.label_shape, np.int32),
        'index': np.int32(batches.NONE),
        'mask': np.bool_(False),
    }
