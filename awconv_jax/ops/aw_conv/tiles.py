"""What the fused AW-convolution's kernels share: where taps look, and tiles.

All but `Plan` works inside of a Pallas kernel for Triton.
Positions of an image are numbered row by row; taps of a kernel, too.
"""

import dataclasses
import math

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from awconv_jax.ops.aw_conv.forms import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Options):
  """The options, of whose strides and dilation one is 1 on each axis."""

  size: tuple[int, int]  # (H, W) of the input.
  kernel_size: tuple[int, int]
  interpret: bool  # Whether in Pallas' interpreter, on any device.

  @property
  def output(self) -> tuple[int, int]:
    """(H', W')."""
    return self.output_size(self.size, self.kernel_size)

  @property
  def before(self) -> tuple[int, int]:
    """Zeros before the first row and column."""
    return self.padding[0][0], self.padding[1][0]


def divide(number, by):
  """Returns quotient and remainder of a number that is not negative."""
  # Where `jax_enable_x64` is on, the index of a loop is wider.
  number, by = jnp.int32(number), jnp.int32(by)
  return lax.div(number, by), lax.rem(number, by)


def span(start, size):
  """Returns the numbers of the start-th run of so many."""
  return jnp.int32(start) * size + jnp.arange(size, dtype=jnp.int32)


def factors_of(maps, sample, tap, inputs, outputs, shape, residual):
  """Returns what a tile of the kernel is multiplied by, in float32.

  inputs and outputs are the tile's channels, shape is (C, D) of the kernel.
  """
  runs = lax.div(inputs, jnp.int32(shape[0] // maps.shape[2]))
  parts = lax.div(outputs, jnp.int32(shape[1] // maps.shape[3]))
  here = sample, tap, runs[:, None], parts[None, :]
  factors = triton.load(maps.at[here]).astype(jnp.float32)
  return 1 + factors if residual else factors


def scaled(shared, factors):
  """Returns K * (1 + A), formed in float32 and rounded once."""
  return (shared.astype(jnp.float32) * factors).astype(shared.dtype)


def place_of(row, column, size, valid):
  """Returns the numbers of positions, 0 beyond the image, and which are in."""
  inside = valid & (row >= 0) & (row < size[0])
  inside &= (column >= 0) & (column < size[1])
  return jnp.where(inside, row * size[1] + column, 0), inside


def read(image, sample, place, inside, channels):
  """Returns an image's values [positions, channels], 0 where not inside."""
  values = image.at[sample, place[:, None], channels[None, :]]
  return triton.load(values, mask=inside[:, None], other=0)


def write(image, sample, place, inside, channels, values):
  """Writes an image's values [positions, channels] where inside.

  Other positions must lie beyond the image: no two may be the same.
  """
  here = image.at[sample, place[:, None], channels[None, :]]
  triton.store(here, values.astype(image.dtype), mask=inside[:, None])


def seen(plan, row, column, tap, valid):
  """Returns where a tap sees the input, for positions of the output."""

  def move(place, stride, index, gap, before):
    return place * stride + index * gap - before

  steps = plan.strides, divide(tap, plan.kernel_size[1]), plan.dilation
  moved = map(move, (row, column), *steps, plan.before)
  return place_of(*moved, plan.size, valid)


def phase_of(plan, rows):
  """Returns this program's phase, and the rows and columns of its positions.

  Positions of the input that leave the same remainders by the strides see the
  same taps. They are a phase; a program takes positions of one.
  """
  tiles = pl.num_programs(1) // math.prod(plan.strides)
  phase, tile = divide(pl.program_id(1), tiles)
  phase = divide(phase, plan.strides[1])
  across = pl.cdiv(plan.size[1], plan.strides[1])
  row, column = divide(span(tile, rows), across)
  down, right = plan.strides
  return phase, (row * down + phase[0], column * right + phase[1])


def taps_of(plan, phase):
  """Returns the first tap that a phase sees, and how many: every stride-th.

  Both are pairs, vertical and horizontal.
  """

  def one(offset, stride, before, size):
    first = lax.rem(offset + before, jnp.int32(stride))
    most = jnp.maximum(size - first + stride - 1, 0)
    return first, lax.div(most, jnp.int32(stride))

  axes = map(one, phase, plan.strides, plan.before, plan.kernel_size)
  return tuple(zip(*axes, strict=True))


def seen_back(plan, places, taps, valid):
  """Returns which outputs see positions of the input by a tap of a phase."""

  def move(place, stride, tap, gap, before):
    # A multiple of the stride, by the choice of the taps.
    return lax.div(place + before - tap * gap, jnp.int32(stride))

  steps = plan.strides, taps, plan.dilation, plan.before
  return place_of(*map(move, places, *steps), plan.output, valid)
