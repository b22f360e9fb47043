"""Mixup and CutMix of a batch, one choice of numbers for all of it.

mixup, https://arxiv.org/abs/1710.09412, section 2; CutMix,
https://arxiv.org/abs/1905.04899, equations 1 and 2:

  x[n] = M * x[n] + (1 - M) * x[B - 1 - n]
  y[n] = s * y[n] + (1 - s) * y[B - 1 - n]

M is s everywhere for mixup; for CutMix it is 0 in a box and 1 outside of it,
and s is its mean. The partner of a row is the row as far from the other end of
the batch, as the order is random to begin with.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mix(NamedTuple):
  """How a batch is mixed."""

  weights: jax.Array  # M, float [H, W, 1], share of a row's pixel that stays.
  share: jax.Array  # s, float [], share of a row's target that stays.


def draw(
    rng: jax.Array,
    size: tuple[int, int],
    *,
    mixup: float,
    cutmix: float,
    probability: float,
    switch_probability: float,
) -> Mix:
  """Draws how to mix; s ~ Beta(alpha, alpha).

  Args:
    rng: key of all that is drawn here.
    size: height and width of the images, in pixels.
    mixup: alpha of mixup; 0 is never mixup.
    cutmix: alpha of CutMix; 0 is never CutMix.
    probability: chance that the batch is mixed at all.
    switch_probability: chance that it is by CutMix, where both are on.

  Returns:
    A mix; all ones where the batch stays as it is.
  """
  if not (mixup or cutmix):  # Beta(0, 0) is nothing.
    return Mix(jnp.ones((*size, 1)), jnp.ones(()))
  mixes, cuts, ratio, place = jax.random.split(rng, 4)
  chance = switch_probability if mixup and cutmix else float(cutmix > 0)
  is_cut = jax.random.bernoulli(cuts, chance)
  alpha = jnp.where(is_cut, cutmix, mixup).astype(float)
  share = jax.random.beta(ratio, alpha, alpha)
  centre = jax.random.randint(place, (2,), 0, jnp.array(size))
  box = cut_box(size, share, centre)
  # One of the two by value: both are cheap beside a copy of the batch.
  weights = jnp.where(is_cut, 1 - box, share)
  share = jnp.where(is_cut, 1 - box.mean(), share)
  is_mixed = jax.random.bernoulli(mixes, probability)
  weights, share = (jnp.where(is_mixed, m, 1.0) for m in (weights, share))
  return Mix(weights[..., None], share)


def cut_box(
    size: tuple[int, int], share: jax.Array, centre: jax.Array
) -> jax.Array:
  """Returns the box of CutMix, which gets the partner's pixels.

  Its sides are sqrt(1 - s) of the image's, rounded down to even numbers as by
  the authors' code. What sticks out of the image is lost.

  Args:
    size: height and width of the images, H and W, in pixels.
    share: s, float [], share of the image wanted outside of the box.
    centre: int [2], row and column.

  Returns:
    float [H, W], 1 in the box and 0 outside of it.
  """
  inside = []
  for length, middle in zip(size, centre, strict=True):
    half = jnp.int32(length * jnp.sqrt(1 - share)) // 2
    position = jnp.arange(length)
    inside.append((position >= middle - half) & (position < middle + half))
  rows, columns = inside
  return (rows[:, None] & columns[None, :]).astype(float)


def mix_images(images: jax.Array, mix: Mix) -> jax.Array:
  """Returns images [B, H, W, C] mixed with their partners, in JAX's float.

  Before or after normalising is the same, as that is affine per channel and the
  weights of a pixel sum to 1. Of a batch sharded over devices, rows move: of
  uint8, a quarter of the traffic.
  """
  first, other = (jnp.asarray(x, float) for x in (images, images[::-1]))
  return mix.weights * first + (1 - mix.weights) * other


def mix_targets(targets: jax.Array, mix: Mix) -> jax.Array:
  """Returns targets, float [B, classes], mixed with their partners'."""
  targets = jnp.asarray(targets, float)
  return mix.share * targets + (1 - mix.share) * targets[::-1]
