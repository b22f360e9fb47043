"""Normalisation of images on the device."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from awconv_jax.errors import InputError
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import Number, PositiveFloat

Mean, Std = Sequence[Number], Sequence[PositiveFloat]
# Of ImageNet's training images, in units of 0..255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """Returns (images - mean) / std, in JAX's float, for images [B, H, W, C].

  Mean and std are per channel (one value serves all), in units of the images;
  InputError for another number of them.
  """
  for name, values in (('mean', mean), ('std', std)):
    if len(values) not in (1, images.shape[-1]):
      raise InputError(
          f'config.task.{name}={tuple(values)}, but the images have '
          f'{images.shape[-1]} channel(s); give one value, or one for each'
      )
  # float32, or with JAX_ENABLE_X64=1 float64.
  images, mean, std = (jnp.asarray(x, float) for x in (images, mean, std))
  return (images - mean) / std


def on_canvas(
    batch: Mapping[str, jax.Array], mean: Sequence[float], std: Sequence[float]
) -> tuple[jax.Array, jax.Array]:
  """Returns normalised images, 0 beyond their area, and the sizes of these.

  The sizes int [B, 2] are the batch's 'image_size'; all of the images without.
  """
  images, size = batch['image'], batch.get('image_size')
  if size is None:
    size = jnp.tile(jnp.array(images.shape[1:3]), (images.shape[0], 1))
  # Padded after normalising: 0 is the mean colour there, not black.
  return mask_padding(normalize(images, mean, std), size), size
