"""Normalisation of images on the device."""

from collections.abc import Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp

from awconv_jax import errors


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
      finite = all(math.isfinite(v) for v in values)
      positive = name == 'mean' or all(v > 0 for v in values)
      if len(values) not in (1, channels) or not finite or not positive:
        raise errors.InputError(
            f'config.task.{name}={tuple(values)}: the images have {channels} '
            'channel(s); give one value for all or one for each, finite'
            + (' and above 0' if name == 'std' else '')
        )

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns images [B, H, W, C] of any type, normalised."""
    mean = jnp.array(self.mean, jnp.float32)
    std = jnp.array(self.std, jnp.float32)
    return (images.astype(jnp.float32) - mean) / std
