"""The gradients of kernel and maps of the AW-convolution, in Pallas for TPU.

For a sample n and a tap t, P = (I[n] seen by t)^T @ (gradient of O[n]) is that
of the sample's own kernel, [C, D]. dK[t] sums P * (1 + A[n]) over all samples,
and dA[n, t] sums P * K over runs of 16 input channels.

The product contracts positions of the image: those of a phase by the strides
(`views.backward`), at the pitch of the gradient's plane, whose view by each tap
is one run of its places. The image's side, transposed, is streamed through the
matrix unit; the gradient's, as it lies, is stationary.

The rows of a product, 128 channels, come in the order of `_arrange_kernel`:
eight rows, a vector register, hold the same channel of eight runs. So eight
rows of the maps, as they lie, are the factors of all of them, and the sums over
runs are sums of registers.
"""

import functools
import itertools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from awconv_jax.ops.aw_conv.tpu import planes as planes_lib
from awconv_jax.ops.aw_conv.tpu.planes import (
    LANES,
    PAIRS,
    RUN,
    SAMPLES,
    STRAIGHT,
    TOGETHER,
)
from awconv_jax.ops.aw_conv.tpu.views import Part, Views

_ROWS = 8  # Of a vector register; and the runs in 128 channels.
_TERMS = 128  # How many positions a tile of a product contracts.


def _terms(run):
  """Returns how many positions the products of so many contract."""
  # Masks of what a second tile lacks cost more than its zeros.
  whole = SAMPLES if run <= _TERMS else _TERMS
  return pl.cdiv(run, whole) * whole


def _rows(row):
  """Returns where the 8 channels from a row of K on are, arranged."""
  tile, inside = divmod(row, LANES)
  run, first = divmod(inside, RUN)
  start = tile * LANES + first * _ROWS + run
  return pl.ds(start, _ROWS, stride=_ROWS)


def _arrange_kernel(kernel, arranged):
  """Copies K [taps, C, D] to [taps, D / 128, C, 128] with rows arranged.

  Of 128 channels, the v-th one of the r-th run goes to row 8 v + r.
  """
  taps, c, d = kernel.shape

  def arrange_tap(tap, _):
    for q in range(d // LANES):
      for run in range(0, c, RUN):
        values = kernel[tap, pl.ds(run, RUN), pl.ds(q * LANES, LANES)]
        values = values.astype(jnp.float32)
        for row in range(0, RUN, _ROWS):
          there = arranged.at[tap, q]
          there[_rows(run + row), :] = values[row : row + _ROWS]

  lax.fori_loop(0, taps, arrange_tap, None)


def _restore_kernel(arranged, kernel):
  """Copies back what `_arrange_kernel` would arrange, in the dtype of K."""
  taps, c, d = kernel.shape

  def restore_tap(tap, _):
    for q in range(d // LANES):
      for run in range(0, c, RUN):
        here = arranged.at[tap, q]
        both = [here[_rows(run + row), :] for row in range(0, RUN, _ROWS)]
        values = jnp.concatenate(both).astype(kernel.dtype)
        kernel[tap, pl.ds(run, RUN), pl.ds(q * LANES, LANES)] = values

  lax.fori_loop(0, taps, restore_tap, None)


def _halves(words):
  """Returns the two samples of words, in float32."""
  as_float = functools.partial(lax.bitcast_convert_type, new_dtype=jnp.float32)
  return as_float(words << 16), as_float(words & ~0xFFFF)


def _stage(words, staged, part: Part, pair, views: Views, width):
  """Copies a pair's positions of a part, in words, to rows at the pitch."""
  down, along = views.step
  for row in range(part.size[0]):
    place = (part.first[0] + row * down) * width + part.first[1]
    here = pl.ds(place * PAIRS + pair, part.size[1], stride=along * PAIRS)
    staged[pl.ds(row * views.pitch, part.size[1])] = words[here]


def _transpose(staged, turned, image, tile):
  """Writes staged words as the transposed image of both samples.

  Args:
    staged: [places, 128].
    turned: scratch, [places / 128, 128, 128], of zeros: one for each
      transposition, which then wait for none of the others.
    image: [2, places / 128, C, 128].
    tile: which 128 channels they are.
  """
  places = staged.shape[0]
  for index, start in enumerate(range(0, places, _TERMS)):
    aside, count = turned.at[index], min(_TERMS, places - start)
    aside[:, :count] = staged[pl.ds(start, count)].T
    for half in range(RUN // 2):
      rows = pl.ds(tile * LANES + half * 2 * _ROWS, 2 * _ROWS)
      pieces = [
          _halves(aside[pl.ds(2 * half + u, _ROWS, stride=RUN)]) for u in (0, 1)
      ]
      for sample, values in enumerate(zip(*pieces, strict=True)):
        values = jnp.concatenate(values).astype(jnp.bfloat16)
        image[sample, index, rows] = values


def _kernel(*refs, views: Views, inputs, residual):
  """One step of the grid: adds up dK, and writes dA, of 16 samples."""
  *sources, kernel, maps, kernel_grad, maps_grad = refs[:-8]
  words_x, words_grad, planes, staged, turned, image, arranged, total = refs[
      -8:
  ]
  outputs = len(sources) - inputs  # Tiles of 128.
  several = math.gcd(outputs, TOGETHER)
  step, width = pl.program_id(0), sources[0].shape[1]
  parts = [part for part in views.parts if part.views]
  unseen = {*range(maps.shape[1])} - {v.tap for p in parts for v in p.views}

  @pl.when(step == 0)
  def _():
    for ref in (planes, staged, turned, image, total):
      ref[...] = jnp.zeros_like(ref)
    _arrange_kernel(kernel, arranged)

  for tile, source in enumerate(sources):
    of_x = tile < inputs
    words = words_x.at[tile] if of_x else words_grad.at[tile - inputs]
    planes_lib.read_words(source, words)

  def pull(pair):
    for tile in range(outputs):
      planes_lib.pull(words_grad.at[tile], pair, planes.at[tile], views)
    for tile in range(inputs):
      for index, part in enumerate(parts):
        places = pl.cdiv(views.run(part), _ROWS) * _ROWS
        stage = staged.at[tile, index, pl.ds(0, places)]
        _stage(words_x.at[tile], stage, part, pair, views, width)
        _transpose(stage, turned.at[tile, index], image.at[:, index], tile)

  def product(sample, index, columns, tile):
    """Returns P of 128 inputs and several pairs of a view and outputs."""
    total = jnp.zeros((LANES, len(columns) * LANES), jnp.float32)
    terms = _terms(views.run(parts[index]))
    for start in range(0, terms, TOGETHER * _TERMS):
      count = min(TOGETHER * _TERMS, terms - start)
      seen = []
      for view, output in columns:
        copy, word = views.place(view)
        here = pl.ds(word + start // 2, count // 2)
        seen.append(planes[output, sample, copy, here])
      channels = pl.ds(tile * LANES, LANES)
      across = [
          image[sample, index, block, channels]
          for block in range(start // _TERMS, pl.cdiv(start + count, _TERMS))
      ]
      total += jnp.dot(
          jnp.concatenate(across, axis=1)[:, :count],
          pltpu.bitcast(jnp.concatenate(seen, axis=1), jnp.bfloat16),
          precision=lax.Precision.DEFAULT,
          preferred_element_type=jnp.float32,
      )
    return total

  def add(pair, index, columns, tile):
    """Adds what taps see of outputs, for 128 inputs."""
    channels, runs = pl.ds(tile * LANES, LANES), pl.ds(tile * _ROWS, _ROWS)
    products = [product(sample, index, columns, tile) for sample in range(2)]
    for column, (view, output) in enumerate(columns):
      shared = arranged[view.tap, output, channels].reshape(RUN, _ROWS, LANES)
      added = jnp.zeros((RUN, _ROWS, LANES), jnp.float32)
      for sample, product_of in enumerate(products):
        own = product_of[:, column * LANES : (column + 1) * LANES]
        own = own.reshape(added.shape)
        lanes = pl.ds(pl.multiple_of(output * LANES, LANES), LANES)
        at = 2 * pair + sample, view.tap, runs, lanes
        added += own * (residual + maps[at].astype(jnp.float32))
        maps_grad[at] = (own * shared).sum(0).astype(maps_grad.dtype)
      total[view.tap, output, channels] += added.reshape(LANES, LANES)

  def do_pair(pair, _):
    pull(pair)

    def do_outputs(group, _):
      for index, part in enumerate(parts):
        columns = [
            (view, group * several + output)
            for view, output in itertools.product(part.views, range(several))
        ]
        for start in range(0, len(columns), TOGETHER):
          for tile in range(inputs):
            add(pair, index, columns[start : start + TOGETHER], tile)

    trips = outputs // several
    lax.fori_loop(0, trips, do_outputs, None, unroll=trips <= STRAIGHT)
    for tap in unseen:
      here = pl.ds(2 * pair, 2), tap
      maps_grad[here] = jnp.zeros((2, *maps_grad.shape[2:]), maps_grad.dtype)

  lax.fori_loop(0, PAIRS, do_pair, None)

  @pl.when(step == pl.num_programs(0) - 1)
  def _():
    _restore_kernel(total, kernel_grad)


def kernel_gradient(
    x: jax.Array,
    grad: jax.Array,
    kernel: jax.Array,
    maps: jax.Array,
    views: Views,
    *,
    residual: bool,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
  """Returns dK and dA in shape and dtype of kernel and maps.

  Args:
    x: the image, bfloat16 [H, W, N, C].
    grad: of the output, bfloat16 [H', W', N, D].
    kernel: K, [taps, C, D], where 128 divides C and D.
    maps: A, [N, taps, C / 16, D], where 16 divides N.
    views: what the image's positions see of the gradient.
    residual: whether for K * (1 + A), or for K * A.
    interpret: whether in Pallas' interpreter.
  """
  *size, number, c = x.shape
  taps, _, d = kernel.shape
  inputs, outputs = c // LANES, d // LANES
  parts = [part for part in views.parts if part.views]
  blocks = max(pl.cdiv(views.run(part), _TERMS) for part in parts)
  last = max(views.place(v)[1] for part in parts for v in part.views)

  def image(array, tile):
    block = *array.shape[:2], SAMPLES, LANES
    return pl.BlockSpec(block, lambda i: (0, 0, i, tile))

  whole = pl.BlockSpec(
      kernel.shape, lambda i: (0, 0, 0), pipeline_mode=pl.Buffered(1)
  )
  own = pl.BlockSpec((SAMPLES, *maps.shape[1:]), lambda i: (i, 0, 0, 0))
  arranged = pltpu.VMEM((taps, outputs, c, LANES), jnp.float32)
  return pl.pallas_call(
      functools.partial(
          _kernel, views=views, inputs=inputs, residual=int(residual)
      ),
      out_shape=(
          jax.ShapeDtypeStruct(kernel.shape, kernel.dtype),
          jax.ShapeDtypeStruct(maps.shape, maps.dtype),
      ),
      grid=(number // SAMPLES,),
      in_specs=[
          *(image(x, tile) for tile in range(inputs)),
          *(image(grad, tile) for tile in range(outputs)),
          whole,
          own,
      ],
      out_specs=(whole, own),
      scratch_shapes=[
          planes_lib.words_of(inputs, size),
          planes_lib.words_of(outputs, views.size),
          planes_lib.planes_of(
              views, outputs, 2, words=last + blocks * _TERMS // 2
          ),
          pltpu.VMEM((inputs, len(parts), blocks * _TERMS, LANES), jnp.int32),
          pltpu.VMEM((inputs, len(parts), blocks, LANES, _TERMS), jnp.int32),
          pltpu.VMEM((2, len(parts), blocks, c, _TERMS), jnp.bfloat16),
          arranged,
          arranged,
      ],
      compiler_params=pltpu.CompilerParams(vmem_limit_bytes=planes_lib.MEMORY),
      interpret=interpret,
      name='aw_conv_kernel',
  )(*[x] * inputs, *[grad] * outputs, kernel, maps)
