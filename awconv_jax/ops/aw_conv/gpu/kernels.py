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
The operands, with taps numbered row by row, are

  x, I: [N, H, W, C]        kernel, K: [taps, C, D], of the dtype of x
  grad, G: [N, H', W', D]   maps, A: [N, taps, G, D']

Inside, an image's positions are numbered row by row, too: [N, H * W, C].
"""

import functools
import math
import numbers

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from awconv_jax.ops.aw_conv.gpu import tiles
from awconv_jax.ops.aw_conv.plan import Plan

# Multiprocessors of the GPU that the sums over samples are divided for (H100).
_CORES = 132
# To write and add up the sums of a program takes as long as so many products.
_BLOCKS_OF_SUMS = 5
_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
# Shared memory of a block in bytes, of JAX's devices; cards of data centres
# (A100, H100, B200) have it, others (L4, T4, RTX) less.
_ROOM, _LEAST_ROOM = 'shared_memory_per_block_optin', 160 * 2**10
# Cards whose sums and factors share the registers: tiles are smaller there.
_AMPERE = ('A100', 'A800', 'A30')
# A product of Triton has at least as many rows, columns and terms.
_LEAST = 16


def has_tiles(x, kernel, attention, options) -> bool:
  """Tells whether the kernels take operands of `ops.aw_conv.aw_conv`."""
  del attention  # Any will do.
  return (
      _has_room()
      and options.groups == 1
      and x.dtype in _DTYPES
      and all(channels % _LEAST == 0 for channels in kernel.shape[2:])
      and all(1 in pair for pair in zip(options.strides, options.dilation))  # noqa: B905
      # A size may be symbolic, in what is exported.
      and all(isinstance(size, numbers.Integral) for size in x.shape)
  )


def _gpu():
  """Returns the GPU of the machine, or what is known of one elsewhere."""
  try:
    return jax.local_devices(backend='gpu')[0]
  except RuntimeError:
    return jax.sharding.get_abstract_mesh().abstract_device


def _has_room():
  """Tells whether a block has the shared memory that all of the kernels need.

  So it has where there is no GPU, and a program is for one elsewhere.
  """
  return getattr(_gpu(), _ROOM, _LEAST_ROOM) >= _LEAST_ROOM


def _has_few_registers():
  """Tells whether the matrix unit takes all factors from registers."""
  kind = getattr(_gpu(), 'device_kind', '')
  return any(name in kind for name in _AMPERE)


def _flat(images):
  """Returns images [N, H, W, C] as [N, H * W, C]."""
  return images.reshape(images.shape[0], -1, images.shape[3])


def _parts(positions, most=256):
  """Returns the rows of a program's tiles: powers of two, up to so many in all.

  196 positions are 128 + 64 + 16 rows, which waste less than 256 would.
  """
  if positions > most:
    return (most // 2,)
  rows = -(-positions // _LEAST) * _LEAST
  parts = [1 << bit for bit in range(rows.bit_length()) if rows >> bit & 1]
  # Few positions take one tile, where products of 16 rows would be slow.
  return (pl.next_power_of_2(rows),) if rows <= 64 else tuple(parts[::-1])


def _depth(dtype, step=128):
  """Returns how many terms of a product are so many bytes."""
  return step // jnp.dtype(dtype).itemsize


def _channels(dtype):
  """Returns how many channels a step adds to an output or to dI at most."""
  return _depth(dtype, 64 if _has_few_registers() else 128)


def _warps(sums):
  """Returns how many warps a program has for so many sums in registers."""
  return 8 if sums > 128 * 128 else 4


def _samples_together(kernel, maps, positions):
  """Returns how many samples share a loaded tile of K."""
  # At 7x7 a sample has one tile of positions, so that to read all of K for each
  # takes longer than the products. Maps wider than K leave no room for two.
  fits = maps.dtype.itemsize <= kernel.dtype.itemsize and positions <= 64
  return 2 if fits and maps.shape[0] % 2 == 0 else 1


def _call(kernel, operands, results, programs, plan, *, warps):
  """Runs a kernel on whole arrays, of which each program takes its own part."""
  # One axis, since a GPU has at most 65535 programs on the others.
  return pl.pallas_call(
      kernel,
      out_shape=results,
      grid=(programs,),
      interpret=plan.interpret,
      compiler_params=triton.CompilerParams(num_warps=warps, num_stages=3),
      name=kernel.func.__name__.strip('_'),
  )(*operands)


def _program(*counts):
  """Returns this program's numbers on some axes, the last one the fastest."""
  numbers, rest = [], pl.program_id(0)
  for count in counts[::-1]:
    rest, number = tiles.divide(rest, count)
    numbers.append(number)
  return [rest, *numbers[::-1]]


def _add_products(program, seen_by, steps, operands, out, plan, tile):
  """Sums up, and writes, the tiles of an output or of a gradient dI.

  They are transposed, [channels, positions], so that the scaled kernel is the
  factor that the matrix unit takes from registers.

  Args:
    program: numbers of the first sample, and of the tile of channels.
    seen_by: gives the tap of a step, and for each part of the positions where
      it looks in the image and whether that is inside.
    steps: how many taps there are.
    operands: the image [N, positions, terms], K [taps, channels, terms], and
      for maps [N, taps, G, D'] their axis that goes along with the terms.
    out: the array [N, positions, channels], and for each part of the positions
      where it lies there and whether that is inside.
    plan, tile: the plan; channels and terms of a tile, parts, and samples.
  """
  image, kernel, maps, axis = operands
  columns, depth, parts, samples = tile
  channels, terms = kernel.shape[1:]
  first, column_tile = program
  here = pl.ds(column_tile * columns, columns)
  runs = maps.shape[2:] if axis else maps.shape[:1:-1]
  outer = tiles.runs_of(column_tile, columns, channels // runs[0])
  blocks = terms // depth

  def add(step, sums):
    index, block = tiles.divide(step, blocks)
    tap, places = seen_by(index)
    inputs, now = tiles.span(block, depth), pl.ds(block * depth, depth)
    shared = triton.load(kernel.at[tap, here, now])
    inner = tiles.runs_of(block, depth, terms // runs[1])
    for s in range(samples):
      own = tiles.scaled(
          shared, maps, (first + s, tap), outer, inner, axis, plan
      )
      for i, where in enumerate(places):
        sums[s * len(parts) + i] += triton.dot(
            own,
            tiles.read(image, first + s, *where, inputs),
            trans_b=True,
            precision=plan.precision,
        )
    return sums

  zeros = [jnp.zeros((columns, rows), jnp.float32) for rows in parts]
  sums = lax.fori_loop(0, steps * blocks, add, zeros * samples)
  written, places = out
  for i, total in enumerate(sums):
    sample, part = divmod(i, len(parts))
    where = first + sample, *places[part], tiles.span(column_tile, columns)
    tiles.write(written, *where, total.T)


def _forward(x, kernel, maps, out, *, plan, tile):
  columns, _, parts, samples = tile
  positions = math.prod(plan.output)
  row_tiles = pl.cdiv(positions, sum(parts))
  counts = row_tiles, kernel.shape[1] // columns
  group, row_tile, column_tile = _program(*counts)
  places = [(r, r < positions) for r in tiles.spans(row_tile, parts)]

  def seen_by(tap):
    return tap, [
        tiles.seen(plan, *tiles.divide(rows, plan.output[1]), tap, valid)
        for rows, valid in places
    ]

  program, steps = (group * samples, column_tile), math.prod(plan.kernel_size)
  operands = x, kernel, maps, 0
  _add_products(program, seen_by, steps, operands, (out, places), plan, tile)


def forward(x, kernel, maps, plan: Plan):
  """Returns O, [N, H', W', D]."""
  x, number, (_, c, d) = _flat(x), x.shape[0], kernel.shape
  positions = math.prod(plan.output)
  samples, parts = _samples_together(kernel, maps, positions), _parts(positions)
  columns = tiles.largest_power(d, 128)
  tile = columns, tiles.largest_power(c, _channels(x.dtype)), parts, samples
  programs = d // columns * pl.cdiv(positions, sum(parts)) * number // samples
  out = _call(
      functools.partial(_forward, plan=plan, tile=tile),
      (x, kernel.transpose(0, 2, 1), maps),
      jax.ShapeDtypeStruct((number, positions, d), x.dtype),
      programs,
      plan,
      warps=_warps(sum(parts) * columns * samples),
  )
  return out.reshape(number, *plan.output, d)


def _input_gradient(grad, kernel, maps, out, *, plan, tile):
  columns, _, parts, samples = tile
  row_tiles = pl.cdiv(plan.positions_of_phase, sum(parts))
  counts = math.prod(plan.strides), row_tiles, kernel.shape[1] // columns
  group, phase, row_tile, column_tile = _program(*counts)
  phase = tiles.divide(phase, plan.strides[1])
  firsts, taps = tiles.taps_of(plan, phase)
  spans = tiles.spans(row_tile, parts)
  places = [tiles.positions_of(plan, phase, rows) for rows in spans]

  def seen_by(index):
    turns = tiles.divide(index, taps[1])
    here = [f + t * s for f, t, s in zip(firsts, turns, plan.strides)]  # noqa: B905
    seen = [tiles.seen_back(plan, p, here, valid) for p, _, valid in places]
    return here[0] * plan.kernel_size[1] + here[1], seen

  # Beyond the image, so that no two rows of the tile name one position.
  end = math.prod(plan.size)
  written = [(jnp.where(valid, p, end), valid) for _, p, valid in places]
  program, steps = (group * samples, column_tile), taps[0] * taps[1]
  operands = grad, kernel, maps, 1
  _add_products(program, seen_by, steps, operands, (out, written), plan, tile)


def input_gradient(grad, kernel, maps, plan: Plan):
  """Returns dI, [N, H, W, C]."""
  grad, number, (_, c, d) = _flat(grad), grad.shape[0], kernel.shape
  positions = plan.positions_of_phase
  samples, parts = _samples_together(kernel, maps, positions), _parts(positions)
  columns = tiles.largest_power(c, 128)
  tile = columns, tiles.largest_power(d, _channels(grad.dtype)), parts, samples
  row_tiles = pl.cdiv(positions, sum(parts)) * math.prod(plan.strides)
  image = _call(
      functools.partial(_input_gradient, plan=plan, tile=tile),
      (grad, kernel, maps),
      jax.ShapeDtypeStruct((number, math.prod(plan.size), c), grad.dtype),
      c // columns * row_tiles * number // samples,
      plan,
      warps=_warps(sum(parts) * columns * samples),
  )
  return image.reshape(number, *plan.size, c)


def _kernel_gradient(
    x, kernel, maps, grad, kernel_grad, maps_grad, *, plan, tile
):
  """A program sums over the samples of one group; the last may be smaller.

  Its tiles are transposed, [D, C]: a run of input channels then lies in few
  threads, which sum it up.
  """
  rows, columns, depth, samples, run, part = tile
  c, d = kernel.shape[1:]
  counts = c // rows, d // columns, math.prod(plan.kernel_size)
  group, row_tile, column_tile, tap = _program(*counts)
  inputs, outputs = tiles.span(row_tile, rows), tiles.span(column_tile, columns)
  here_in = pl.ds(row_tile * rows, rows)
  here_out = pl.ds(column_tile * columns, columns)
  here_runs = pl.ds(row_tile * (rows // run), rows // run)
  here_parts = pl.ds(column_tile * (columns // part), columns // part)
  runs = (
      tiles.runs_of(column_tile, columns, d // maps.shape[3]),
      tiles.runs_of(row_tile, rows, c // maps.shape[2]),
  )
  number = math.prod(plan.output)
  blocks = pl.cdiv(number, depth)
  first, end = group * samples, x.shape[0]
  shared = triton.load(kernel.at[tap, here_in, here_out]).T.astype(jnp.float32)
  zeros = jnp.zeros((columns, rows), jnp.float32)

  def values_of(sample):
    return tiles.values_of(maps, (sample, tap), *runs, 0)

  def add_sample(index, carry):
    total, values = carry
    sample = first + index

    def add(block, sums):
      positions = tiles.span(block, depth)
      valid = positions < number
      row, column = tiles.divide(positions, plan.output[1])
      place, inside = tiles.seen(plan, row, column, tap, valid)
      source = jnp.where(valid, positions, 0)
      return sums + triton.dot(
          tiles.read(grad, sample, source, valid, outputs),
          tiles.read(x, sample, place, inside, inputs),
          trans_a=True,
          precision=plan.precision,
      )

    # Only an innermost loop loads ahead: with one block that is the samples'.
    products = (
        add(0, zeros) if blocks == 1 else lax.fori_loop(0, blocks, add, zeros)
    )
    following = values_of(jnp.minimum(sample + 1, end - 1))  # Is on its way.
    by_runs = products * shared
    if part > 1:
      by_runs = by_runs.reshape(columns // part, part, rows).sum(1)
    by_runs = by_runs.reshape(columns // part, rows // run, run).sum(2).T
    here = maps_grad.at[sample, tap, here_runs, here_parts]
    triton.store(here, by_runs.astype(maps_grad.dtype))
    factors = tiles.factors_of(values, *runs, plan.residual)
    return tiles.multiply_add(products, factors, total, plan), following

  count = jnp.minimum(samples, end - first)
  total, _ = lax.fori_loop(0, count, add_sample, (zeros, values_of(first)))
  here = kernel_grad.at[group, tap, here_in, here_out]
  triton.store(here, total.T.astype(kernel_grad.dtype))


def _samples_of_group(number, blocks, programs):
  """Returns how many samples a program sums up, so that all take least time.

  Args:
    number: samples.
    blocks: products of a sample.
    programs: how many there are for a group of samples.
  """

  def time(groups):
    turns = pl.cdiv(programs * groups, _CORES)
    return turns * (pl.cdiv(number, groups) * blocks + _BLOCKS_OF_SUMS)

  return pl.cdiv(number, min(range(1, number + 1), key=time))


def kernel_gradient(x, kernel, maps, grad, plan: Plan):
  """Returns dK [taps, C, D] and dA [N, taps, G, D'], in their dtypes."""
  number, (taps, c, d) = x.shape[0], kernel.shape
  runs, parts = maps.shape[2:]
  most = 64 if _has_few_registers() else 128
  rows, columns = tiles.largest_power(c, most), tiles.largest_power(d, most)
  # Where the terms are positions.
  positions = math.prod(plan.output)
  depth = min(_depth(x.dtype), _parts(positions)[0])
  # Groups of samples, summed afterwards, where the tiles alone are too few.
  programs = taps * (c // rows) * (d // columns)
  samples = _samples_of_group(number, pl.cdiv(positions, depth), programs)
  groups = pl.cdiv(number, samples)
  # Runs of input and output channels as far as a tile can sum them up.
  run = tiles.largest_power(c // runs, rows)
  part = tiles.largest_power(d // parts, columns)
  whole = run * runs == c and part * parts == d
  tile = rows, columns, depth, samples, run, part
  wide, maps_shape = jnp.float32, (number, taps, c // run, d // part)
  kernel_grad, maps_grad = _call(
      functools.partial(_kernel_gradient, plan=plan, tile=tile),
      (_flat(x), kernel, maps, _flat(grad)),
      (
          jax.ShapeDtypeStruct((groups, taps, c, d), wide),
          jax.ShapeDtypeStruct(maps_shape, maps.dtype if whole else wide),
      ),
      programs * groups,
      plan,
      warps=_warps(2 * rows * columns),  # Of a sample, and of all.
  )
  if not whole:
    split = (number, taps, runs, c // run // runs, parts, d // part // parts)
    maps_grad = maps_grad.reshape(split).sum((3, 5)).astype(maps.dtype)
  return kernel_grad.sum(0).astype(kernel.dtype), maps_grad
