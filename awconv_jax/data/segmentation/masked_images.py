"""Batches of images with masks; `data.segmentation` says what is in them."""

import dataclasses

import numpy as np

from awconv_jax.data import batches, canvases
from awconv_jax.data.decode import EncodedImage, UnreadableError
from awconv_jax.data.order import PORTRAIT, groups
from awconv_jax.data.segmentation import masks
from awconv_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedImages(canvases.Geometry, batches.Reader):
  """Reads images with masks, each batch of one orientation."""

  def create(self) -> batches.TrainBatches | batches.EvalBatches:
    """Returns the batches; InputError if the data cannot be used."""
    split = self.train_split if self.train else self.eval_split
    source = self.open_split(self.dir, split)
    masks.check_number(source.class_names, f'split {split!r}')
    faulty, most = source.faulty, self.max_bad_fraction * len(source)
    if len(faulty) > most:
      lines = [f'{source.place(i)}: {fault}' for i, fault in faulty.items()]
      raise InputError(
          f'{len(faulty)} of {len(source)} images or masks of split {split!r} '
          f'cannot be read, more than the {int(most)} that config.data.'
          f'max_bad_fraction allows; mend them or raise it: {"; ".join(lines)}'
      )
    examples = groups(source.sizes)
    return batches.by_groups(self, source, examples)

  def row(self, source, index: int, group: int, rng: batches.Rng) -> dict:
    """Makes a row; see `batches`."""
    # If blank, of one pixel, as an image without any divides by zero.
    pixels, size = np.zeros((1, 1, 3), np.uint8), (1, 1)
    mask = masks.Mask(np.full(size, masks.IGNORE, np.uint8))
    if index != batches.NONE:
      record = source[index]
      pixels = EncodedImage(record['image'], 3).pixels()
      height, width = size = pixels.shape[:2]
      mask = source.mask_of(index, record, size)
      # As its header had it, unless the file has changed since.
      if (height > width) != (group == PORTRAIT):
        raise UnreadableError(
            f'its {width} x {height} pixels are others than before'
        )
      if rng is not None:
        pixels, mask = self.augmented(pixels, mask, group, rng)
      else:
        pixels, mask = self.plain(pixels, mask)
    canvas = self.canvas_of(group)
    return {
        'image': canvases.paste(pixels, canvas),
        'image_size': np.int32(pixels.shape[:2]),
        'original_size': np.int32(size),
        'gt_classes': mask.on(canvas),
        'index': np.int32(index),
        'mask': np.bool_(index != batches.NONE),
    }
