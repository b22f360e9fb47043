"""What the fused AW-convolution's kernels share: where taps look, and tiles.

All of it works inside of a Pallas kernel for Triton.
Positions of an image are numbered row by row; taps of a kernel, too.
"""

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp


def divide(number, by):
  """Returns quotient and remainder of a number that is not negative."""
  return lax.div(number, by), lax.rem(number, by)


def span(start, size):
  """Returns the numbers of the start-th run of so many."""
  return start * size + jnp.arange(size)


def spans(start, sizes):
  """Returns the numbers of the start-th run of so many, in parts."""
  base, parts = start * sum(sizes), []
  for size in sizes:
    parts.append(base + jnp.arange(size))
    base += size
  return parts


def largest_power(number, most):
  """Returns the largest power of two, up to `most`, that divides a number."""
  return min(number & -number, most)


def runs_of(tile, size, run):
  """Returns which runs of channels a tile meets, and how many of it each has.

  Args:
    tile: its number.
    size: its channels, a power of two.
    run: channels that share a value of the maps.
  """
  each = largest_power(run, size)
  first = tile * size + each * jnp.arange(size // each)
  return lax.div(first, run), each


def values_of(maps, at, outer, inner, axis):
  """Returns the maps' values of a tile, one of each run that it meets.

  Args:
    maps: [N, taps, G, D'].
    at: sample and tap.
    outer, inner: of `runs_of`, for the tile's rows and columns.
    axis: 1 where the rows are inputs, 0 where they are outputs.
  """
  pair = outer[0][:, None], inner[0][None, :]
  return triton.load(maps.at[*at, *(pair if axis else pair[::-1])])


def _spread(values, outer, inner):
  """Returns the values of runs for all channels of a tile."""
  for axis, (_, each) in enumerate((outer, inner)):
    if each > 1:
      shape = list(values.shape)
      wide = shape[: axis + 1] + [each] + shape[axis + 1 :]
      shape[axis] *= each
      values = jnp.expand_dims(values, axis + 1)
      values = jnp.broadcast_to(values, wide).reshape(shape)
  return values


def factors_of(values, outer, inner, residual):
  """Returns what a tile of the kernel is multiplied by, in float32.

  Args:
    values: of `values_of`.
    outer, inner: of `runs_of`, as there.
    residual: whether for K * (1 + A), or for K * A.
  """
  values = values.astype(jnp.float32)
  return _spread(1 + values if residual else values, outer, inner)


def multiply_add(a, b, c, plan):
  """Returns a * b + c in float32, in one instruction, which XLA makes two."""
  if plan.interpret:
    return a * b + c
  (result,) = triton.elementwise_inline_asm(
      'fma.rn.f32 $0, $1, $2, $3;',
      args=[a, b, c],
      constraints='=f,f,f,f',
      pack=1,
      result_shape_dtypes=[jax.ShapeDtypeStruct(c.shape, c.dtype)],
  )
  return result


# One instruction for two numbers.
_PAIRS = {
    ('bfloat16', True): 'fma.rn.bf16x2 $0, $1, $2, $1;',
    ('float16', True): 'fma.rn.f16x2 $0, $1, $2, $1;',
}


def scaled(shared, maps, at, outer, inner, axis, plan):
  """Returns K * (1 + A) or K * A of a sample, rounded once.

  shared is a tile of K; for the others see `values_of`.
  """
  kind = shared.dtype.name, plan.residual
  values = values_of(maps, at, outer, inner, axis)
  if kind in _PAIRS and maps.dtype == shared.dtype and not plan.interpret:
    values = _spread(values, outer, inner)
    (own,) = triton.elementwise_inline_asm(
        _PAIRS[kind],
        args=[shared, values],
        constraints='=r,r,r',
        pack=2,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shared.shape, shared.dtype)],
    )
    return own
  factors = factors_of(values, outer, inner, plan.residual)
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


def positions_of(plan, phase, numbers):
  """Returns a phase's positions as rows and columns, as places, and if valid.

  Positions of the input that leave the same remainders by the strides see the
  same taps. They are a phase; a program takes positions of one.
  """
  row, column = divide(numbers, pl.cdiv(plan.size[1], plan.strides[1]))
  down, right = plan.strides
  where = row * down + phase[0], column * right + phase[1]
  return where, *place_of(*where, plan.size, True)


def taps_of(plan, phase):
  """Returns the first tap that a phase sees, and how many: every stride-th.

  Both are pairs, vertical and horizontal.
  """

  def one(offset, stride, before, size):
    first = lax.rem(offset + before, stride)
    most = jnp.maximum(size - first + stride - 1, 0)
    return first, lax.div(most, stride)

  axes = map(one, phase, plan.strides, plan.before, plan.kernel_size)
  return tuple(zip(*axes, strict=True))


def seen_back(plan, places, taps, valid):
  """Returns which outputs see positions of the input by a tap of a phase."""

  def move(place, stride, tap, gap, before):
    # A multiple of the stride, by the choice of the taps.
    return lax.div(place + before - tap * gap, stride)

  steps = plan.strides, taps, plan.dilation, plan.before
  return place_of(*map(move, places, *steps), plan.output, valid)
