"""Normalisation of images on the device."""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp

from awconv_jax.errors import InputError

# Of ImageNet's training images, in units of 0..255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class Normalize:
  """`(images - mean) / std`, in float32.

  Attributes:
    mean, std: per channel (one value serves all), in units of 0..255.
  """

  mean: Sequence[float]
  std: Sequence[float]

  def check(self, channels: int) -> None:
    """Raises InputError unless the values fit the images' channels."""
    for name, values in (('mean', self.mean), ('std', self.std)):
      if len(values) not in (1, channels):
        raise InputError(
            f'config.task.{name}={tuple(values)}: the images have {channels} '
            'channel(s); give one value for all or one for each'
        )

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns images [B, H, W, C] of any type, normalised."""
    mean = jnp.array(self.mean, jnp.float32)
    std = jnp.array(self.std, jnp.float32)
    return (images.astype(jnp.float32) - mean) / std
