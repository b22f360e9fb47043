"""The fused AW-convolution's three kernels, in Pallas for Triton (GPU).

Each is an implicit matrix product: a program computes one tile of a result and
goes through the kernel's taps and blocks of channels, where a tile of the
shared kernel K is scaled by (1 + A[n]) in registers on its way to the matrix
unit. So neither patches nor a sample's own kernel ever lie in device memory.

  forward          O[n]  = sum over taps t of  I[n] seen by t  @  Kn[t]
  input_gradient   dI[n] = sum over taps t of  G[n] seen back by t  @  Kn[t]^T
  kernel_gradient  dKn[t] = (I[n] seen by t)^T @ G[n],  in registers, then
                   dK += dKn * (1 + A[n]),  dA[n] = sum over runs of dKn * K

with Kn = K * (1 + A[n]) and G the gradient of the output. Sums are in float32.
The operands, with positions and taps numbered row by row, are

  x, I: [N, H * W, C]         kernel, K: [taps, C, D], of the dtype of x
  grad, G: [N, H' * W', D]    maps, A: [N, taps, G, D']
"""

import functools
import math
import numbers

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from awconv_jax.ops.aw_conv import tiles
from awconv_jax.ops.aw_conv.tiles import Plan

# So many programs that the last ones do not leave a large GPU half idle.
_PROGRAMS = 1024
_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
# A product of Triton has at least as many rows, columns and terms.
_LEAST = 16


def _largest_power(number, most):
  """Returns the largest power of two, up to `most`, that divides a number."""
  return min(number & -number, most)


def has_tiles(x, kernel, options) -> bool:
  """Tells whether the kernels take operands of `ops.aw_conv.aw_conv`."""
  return (
      options.groups == 1
      and x.dtype in _DTYPES
      and all(channels % _LEAST == 0 for channels in kernel.shape[2:])
      and all(1 in pair for pair in zip(options.strides, options.dilation))  # noqa: B905
      # A size may be symbolic, in what is exported.
      and all(isinstance(size, numbers.Integral) for size in x.shape)
  )


def _rows(positions, most):
  """Returns the rows of a tile for so many positions."""
  return min(most, max(_LEAST, pl.next_power_of_2(positions)))


def _depth(dtype):
  """Returns how many terms of a product a step takes at most: 128 bytes."""
  return 128 // jnp.dtype(dtype).itemsize


def _warps(sums):
  """Returns how many warps a program has for so many sums in registers."""
  return 8 if sums > 128 * 64 else 4


def _samples_together(kernel, maps, positions):
  """Returns how many samples share a loaded tile of K."""
  # At 7x7 a sample has one tile of positions, so that to read all of K for each
  # takes longer than the products. Maps wider than K leave no room for two.
  fits = maps.dtype.itemsize <= kernel.dtype.itemsize and positions <= 64
  return 2 if fits and maps.shape[0] % 2 == 0 else 1


def _call(kernel, operands, results, grid, plan, *, warps):
  """Runs a kernel on whole arrays, of which each program takes its own part."""
  return pl.pallas_call(
      kernel,
      out_shape=results,
      grid=grid,
      interpret=plan.interpret,
      compiler_params=triton.CompilerParams(num_warps=warps, num_stages=3),
      name=kernel.func.__name__.strip('_'),
  )(*operands)


def _add_products(sums, image, shared, maps, first, at, plan, trans_b=False):
  """Adds a step's product to the sums of each sample, which share a tile of K.

  From sample `first` on there are sums [rows, columns]. `at` holds what
  `tiles.read` and `tiles.factors_of` take after array and sample.
  """
  seen, tile = at
  for s in range(len(sums)):
    factors = tiles.factors_of(maps, first + s, *tile, plan.residual)
    sums[s] += triton.dot(
        tiles.read(image, first + s, *seen),
        tiles.scaled(shared, factors),
        trans_b=trans_b,
        precision=plan.precision,
    )
  return sums


def _forward(x, kernel, maps, out, *, plan, tile):
  rows, columns, depth, samples = tile
  shape = kernel.shape[1:]
  positions = tiles.span(pl.program_id(1), rows)
  valid = positions < math.prod(plan.output)
  row, column = tiles.divide(positions, plan.output[1])
  outputs = tiles.span(pl.program_id(0), columns)
  here = pl.ds(pl.program_id(0) * columns, columns)
  first = pl.program_id(2) * samples
  blocks = shape[0] // depth

  def add(step, sums):
    tap, block = tiles.divide(step, blocks)
    place, inside = tiles.seen(plan, row, column, tap, valid)
    inputs, now = tiles.span(block, depth), pl.ds(block * depth, depth)
    shared = triton.load(kernel.at[tap, now, here])
    at = (place, inside, inputs), (tap, inputs, outputs, shape)
    return _add_products(sums, x, shared, maps, first, at, plan)

  zeros = jnp.zeros((rows, columns), jnp.float32)
  steps = math.prod(plan.kernel_size) * blocks
  sums = lax.fori_loop(0, steps, add, [zeros] * samples)
  for s in range(samples):
    tiles.write(out, first + s, positions, valid, outputs, sums[s])


def forward(x, kernel, maps, plan: Plan):
  """Returns O, [N, H' * W', D]."""
  number, (_, c, d) = x.shape[0], kernel.shape
  positions = math.prod(plan.output)
  samples = _samples_together(kernel, maps, positions)
  rows, columns = _rows(positions, 128), _largest_power(d, 128)
  tile = rows, columns, _largest_power(c, _depth(x.dtype)), samples
  return _call(
      functools.partial(_forward, plan=plan, tile=tile),
      (x, kernel, maps),
      jax.ShapeDtypeStruct((number, positions, d), x.dtype),
      (d // columns, pl.cdiv(positions, rows), number // samples),
      plan,
      warps=_warps(rows * columns * samples),
  )


def _input_gradient(grad, kernel, maps, out, *, plan, tile):
  rows, columns, depth, samples = tile
  shape = kernel.shape[1:]
  phase, places = tiles.phase_of(plan, rows)
  place, valid = tiles.place_of(*places, plan.size, True)
  firsts, counts = tiles.taps_of(plan, phase)
  inputs = tiles.span(pl.program_id(0), columns)
  here = pl.ds(pl.program_id(0) * columns, columns)
  first_sample = pl.program_id(2) * samples
  blocks = shape[1] // depth

  def add(step, sums):
    index, block = tiles.divide(step, blocks)
    turns = lax.div(index, counts[1]), lax.rem(index, counts[1])
    taps = [f + t * s for f, t, s in zip(firsts, turns, plan.strides)]  # noqa: B905
    tap = taps[0] * plan.kernel_size[1] + taps[1]
    source, inside = tiles.seen_back(plan, places, taps, valid)
    outputs, now = tiles.span(block, depth), pl.ds(block * depth, depth)
    shared = triton.load(kernel.at[tap, here, now])
    at = (source, inside, outputs), (tap, inputs, outputs, shape)
    return _add_products(
        sums, grad, shared, maps, first_sample, at, plan, trans_b=True
    )

  zeros = jnp.zeros((rows, columns), jnp.float32)
  steps = counts[0] * counts[1] * blocks
  sums = lax.fori_loop(0, steps, add, [zeros] * samples)
  # Beyond the image, so that no two rows of the tile name one position.
  place = jnp.where(valid, place, math.prod(plan.size))
  for s in range(samples):
    tiles.write(out, first_sample + s, place, valid, inputs, sums[s])


def input_gradient(grad, kernel, maps, plan: Plan):
  """Returns dI, [N, H * W, C]."""
  number, (_, c, d) = grad.shape[0], kernel.shape
  positions = math.prod(map(pl.cdiv, plan.size, plan.strides))
  samples = _samples_together(kernel, maps, positions)
  rows, columns = _rows(positions, 128), _largest_power(c, 128)
  tile = rows, columns, _largest_power(d, _depth(grad.dtype)), samples
  row_tiles = pl.cdiv(positions, rows) * math.prod(plan.strides)
  return _call(
      functools.partial(_input_gradient, plan=plan, tile=tile),
      (grad, kernel, maps),
      jax.ShapeDtypeStruct((number, math.prod(plan.size), c), grad.dtype),
      (c // columns, row_tiles, number // samples),
      plan,
      warps=_warps(rows * columns * samples),
  )


def _kernel_gradient(
    x, kernel, maps, grad, kernel_grad, maps_grad, *, plan, tile
):
  """A program sums over the samples of one group; the last may be smaller."""
  rows, columns, depth, samples, run, part = tile
  shape = kernel.shape[1:]
  tap, group = pl.program_id(0), pl.program_id(2)
  row_tile, column_tile = tiles.divide(pl.program_id(1), shape[1] // columns)
  inputs, outputs = tiles.span(row_tile, rows), tiles.span(column_tile, columns)
  here_in = pl.ds(row_tile * rows, rows)
  here_out = pl.ds(column_tile * columns, columns)
  here_runs = pl.ds(row_tile * (rows // run), rows // run)
  here_parts = pl.ds(column_tile * (columns // part), columns // part)
  number = math.prod(plan.output)
  shared = triton.load(kernel.at[tap, here_in, here_out]).astype(jnp.float32)
  zeros = jnp.zeros((rows, columns), jnp.float32)

  def add_sample(index, total):
    sample = group * samples + index

    def add(block, sums):
      positions = tiles.span(block, depth)
      valid = positions < number
      row, column = tiles.divide(positions, plan.output[1])
      place, inside = tiles.seen(plan, row, column, tap, valid)
      source = jnp.where(valid, positions, 0)
      return sums + triton.dot(
          tiles.read(x, sample, place, inside, inputs),
          tiles.read(grad, sample, source, valid, outputs),
          trans_a=True,
          precision=plan.precision,
      )

    products = lax.fori_loop(0, pl.cdiv(number, depth), add, zeros)
    factors = tiles.factors_of(
        maps, sample, tap, inputs, outputs, shape, plan.residual
    )
    split = rows // run, run, columns // part, part
    by_runs = (products * shared).reshape(split).sum(3).sum(1)
    here = maps_grad.at[sample, tap, here_runs, here_parts]
    triton.store(here, by_runs.astype(maps_grad.dtype))
    return total + products * factors

  count = jnp.minimum(samples, x.shape[0] - group * samples)
  total = lax.fori_loop(0, count, add_sample, zeros)
  here = kernel_grad.at[group, tap, here_in, here_out]
  triton.store(here, total.astype(kernel_grad.dtype))


def kernel_gradient(x, kernel, maps, grad, plan: Plan):
  """Returns dK [taps, C, D] and dA [N, taps, G, D'], in their dtypes."""
  number, (taps, c, d) = x.shape[0], kernel.shape
  runs, parts = maps.shape[2:]
  rows, columns = _largest_power(c, 64), _largest_power(d, 128)
  programs = (c // rows) * (d // columns)
  # Groups of samples, summed afterwards, where the tiles alone are too few.
  groups = 1
  while groups < number and taps * programs * groups < _PROGRAMS:
    groups *= 2
  samples = pl.cdiv(number, groups)
  groups = pl.cdiv(number, samples)
  # Runs of input and output channels as far as a tile can sum them up.
  run = _largest_power(c // runs, rows)
  part = _largest_power(d // parts, columns)
  whole = run * runs == c and part * parts == d
  # Where the terms are positions: what wastes the fewest.
  most, terms = _depth(x.dtype), math.prod(plan.output)
  depth = min((most, most // 2), key=lambda d: pl.cdiv(terms, d) * d)
  tile = rows, columns, depth, samples, run, part
  wide, maps_shape = jnp.float32, (number, taps, c // run, d // part)
  kernel_grad, maps_grad = _call(
      functools.partial(_kernel_gradient, plan=plan, tile=tile),
      (x, kernel, maps, grad),
      (
          jax.ShapeDtypeStruct((groups, taps, c, d), wide),
          jax.ShapeDtypeStruct(maps_shape, maps.dtype if whole else wide),
      ),
      (taps, programs, groups),
      plan,
      warps=_warps(2 * rows * columns),  # Of a sample, and of all.
  )
  if not whole:
    split = (number, taps, runs, c // run // runs, parts, d // part // parts)
    maps_grad = maps_grad.reshape(split).sum((3, 5)).astype(maps.dtype)
  return kernel_grad.sum(0).astype(kernel.dtype), maps_grad
