"""Positions of single samples, out of and into blocks of several samples.

XLA keeps activations on a TPU with the samples next to the channels, whatever
their logical order: as [H, W, N, C]. So a block of them is read with no copy
outside of the kernels. But a product takes positions of one sample. They are
moved as words of 32 bits: in a block a word holds two neighbouring samples, in
the planes of `views` two neighbouring positions. Strided loads and stores do
what would be a transposition.
"""

import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from awconv_jax.ops.aw_conv.tpu.views import Views

LANES = 128
SAMPLES = 16  # Of a block: their words fill a register.
PAIRS = SAMPLES // 2
RUN = 16  # Input channels that share a value of the maps.
# Tiles of 128 that are one product's: matrix units of v6e take 256 x 256. Of
# others it is several products, which lose nothing by it.
TOGETHER = 2
STRAIGHT = 2  # Turns of a loop that stand one after the other: they fill waits.
MEMORY = 100 * 2**20  # The most that a kernel takes, in bytes.
_LOW, _HIGH = 0xFFFF, -0x10000


def own_tile(shared, factors, first: int | jax.Array, channels: int):
  """Returns K * (1 + A) of one sample, [channels, D], rounded once.

  Args:
    shared: K of a tap, [C, D].
    factors: 1 + A of it, float32 [C / 16, D].
    first: the first run of 16 input channels.
    channels: how many input channels.
  """
  pieces = [
      shared[pl.ds(run * RUN, RUN)].astype(jnp.float32) * factors[pl.ds(run, 1)]
      for run in (first + index for index in range(channels // RUN))
  ]
  return jnp.concatenate(pieces).astype(jnp.bfloat16)


def words_of(tiles, size):
  """Returns scratch for the words of so many blocks [H, W, 16, 128]."""
  return pltpu.VMEM((tiles, math.prod(size) * PAIRS, LANES), jnp.int32)


def planes_of(views: Views, *leading: int, words: int = 0):
  """Returns scratch for planes, [*leading, copies, words or more, 128]."""
  words = -(-max(words, views.places // 2 + 1) // 8) * 8
  return pltpu.VMEM((*leading, views.copies, words, LANES), jnp.int32)


def read_words(block, words) -> None:
  """Copies a block [H, W, 16, 128] to words."""
  words[...] = pltpu.bitcast(block[...].reshape(-1, LANES), jnp.int32)


def write_words(words, block) -> None:
  """Copies words to a block [H, W, 16, 128]."""
  block[...] = pltpu.bitcast(words[...], block.dtype).reshape(block.shape)


def _with_zero(words: jax.Array, *, before: bool = False) -> jax.Array:
  zero = jnp.zeros((1, LANES), words.dtype)
  return jnp.concatenate([zero, words] if before else [words, zero])


def _of_neighbours(even, odd, columns, shift):
  """Returns words of the columns 2r - shift and 2r - shift + 1 of a row.

  Args:
    even, odd: words of two samples, of its even and its odd columns.
    columns: how many it has.
    shift: 0 or 1.

  Returns:
    Those of the one sample, and those of the other.
  """
  first, second = even, odd
  if shift:
    first, second = _with_zero(odd, before=True), even
  if columns % 2 != shift:
    second = _with_zero(second)
  return joined(first, second)


def joined(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns words of the low halves of two arrays, and of their high halves."""
  low = (first & _LOW) | (second << 16)
  high = lax.shift_right_logical(first, 16) | (second & _HIGH)
  return low, high


def pull(words, pair, planes, views: Views) -> None:
  """Writes the planes of two samples.

  Args:
    words: of a block.
    pair: which samples of it, maybe traced.
    planes: [2, copies, words, 128], zero where no position lies.
    views: what is seen of the image.
  """
  down, along = views.strides
  for plane, slots in views.slots.items():
    rows, columns = views.plane_size(plane)
    for row in range(rows):
      place = (row * down + plane[0]) * views.size[1] + plane[1]
      even, odd = (
          words[pl.ds(at * PAIRS + pair, n, stride=2 * along * PAIRS)]
          if n
          else jnp.zeros((0, LANES), jnp.int32)
          for at, n in (
              (place, -(-columns // 2)),
              (place + along, columns // 2),
          )
      )
      at = (views.origin + row * views.pitch) // 2
      for shift, slot in slots.items():
        both = _of_neighbours(even, odd, columns, shift)
        for sample, values in enumerate(both):
          planes[sample, slot, pl.ds(at, values.shape[0])] = values


def push(sums, words, pair, views: Views, size) -> None:
  """Writes what was summed up for two samples.

  Args:
    sums: float32 [2, places, 128], of one part of the target after the other.
    words: of a block of the target.
    pair: which samples of it, maybe traced.
    views: whose parts they are.
    size: rows and columns of the target.
  """
  down, along = views.step
  offset = 0
  for part in views.parts:
    for row in range(part.size[0]):
      here = pl.ds(offset + row * views.pitch, part.size[1])
      place = (row * down + part.first[0]) * size[1] + part.first[1]
      there = pl.ds(place * PAIRS + pair, part.size[1], stride=along * PAIRS)
      words[there] = packed(sums[0, here], sums[1, here])
    offset += views.run(part)


def packed(low: jax.Array, high: jax.Array) -> jax.Array:
  """Returns words of two float32 arrays, rounded to bfloat16."""
  low, high = (
      pltpu.bitcast(values.astype(jnp.bfloat16).astype(jnp.float32), jnp.int32)
      for values in (low, high)
  )
  return lax.shift_right_logical(low, 16) | (high & _HIGH)
