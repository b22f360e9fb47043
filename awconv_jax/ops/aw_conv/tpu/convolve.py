"""The AW-convolution's output, and its input's gradient, in Pallas for TPU.

A step of the grid has a block of 16 samples. Two at a time their planes are
pulled out of it (`planes`); for each 128 channels of the target, every tap's
view is multiplied by that tap's tile of K * (1 + A), which is formed in
registers on its way to the matrix unit; and the sums are put where they belong.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from awconv_jax.ops.aw_conv.tpu import planes as planes_lib
from awconv_jax.ops.aw_conv.tpu.planes import LANES, PAIRS, RUN, SAMPLES
from awconv_jax.ops.aw_conv.tpu.views import Views

_PLACES = 224  # Whose sums stay in registers: 28 of 64.
_FEW = 64  # Of which two samples' do.


def _own(shared, factors, tile):
  """Returns a tile of K * (1 + A), [128, 128], rounded once.

  Args:
    shared: K of a tap and 128 outputs, [C, 128].
    factors: 1 + A of them, [C / 16, 128].
    tile: which 128 inputs.
  """
  pieces = []
  for index in range(LANES // RUN):
    run = tile * (LANES // RUN) + index
    pieces.append(shared[pl.ds(run * RUN, RUN)] * factors[pl.ds(run, 1)])
  return jnp.concatenate(pieces).astype(jnp.bfloat16)


def _kernel(*refs, views: Views, size, transpose, residual):
  *sources, kernel, maps, target = refs[:-6]
  words_in, words_out, planes, sums, shared, factors = refs[-6:]
  outputs = shared.shape[0]  # Tiles of 128.

  @pl.when(pl.program_id(0) == 0)
  def _():
    planes[...] = jnp.zeros_like(planes)

    def split_tap(tap, _):  # So that all of a tile is near in memory.
      for tile in range(outputs):
        own = kernel[tap, :, pl.ds(tile * LANES, LANES)]
        shared[tile, tap] = own.astype(jnp.float32)

    lax.fori_loop(0, kernel.shape[0], split_tap, None)

  for tile, source in enumerate(sources):
    planes_lib.read_words(source, words_in.at[tile])

  def add(sample, tile):
    """Sums up what a tile of the target gets, part by part."""
    offset = 0
    for part in views.parts:
      for start in range(0, views.run(part), _PLACES):
        count = min(_PLACES, views.run(part) - start)
        total = jnp.zeros((count, LANES), jnp.float32)
        for view in part.views:
          copy, word = views.place(view)
          here = pl.ds(word + start // 2, count // 2)
          for other in range(len(sources)):
            inputs, output = (tile, other) if transpose else (other, tile)
            total += lax.dot_general(
                pltpu.bitcast(planes[other, sample, copy, here], jnp.bfloat16),
                _own(
                    shared.at[output, view.tap],
                    factors.at[sample, output, view.tap],
                    inputs,
                ),
                (((1,), (1 if transpose else 0,)), ((), ())),
                precision=lax.Precision.DEFAULT,  # Exact in bfloat16.
                preferred_element_type=jnp.float32,
            )
        sums[sample, pl.ds(offset + start, count)] = total
      offset += views.run(part)

  few = sums.shape[1] <= _FEW

  def do_pair(pair, _):
    for tile in range(len(sources)):
      planes_lib.pull(words_in.at[tile], pair, planes.at[tile], views)
    for sample in range(2):
      for tile in range(outputs):
        own = maps[2 * pair + sample, :, :, pl.ds(tile * LANES, LANES)]
        factors[sample, tile] = residual + own.astype(jnp.float32)

    def do_tile(tile, _):
      # Few places: two samples fill each other's waits. With more, registers
      # would not do.
      lax.fori_loop(0, 2, lambda sample, _: add(sample, tile), None, unroll=few)
      planes_lib.push(sums, words_out.at[tile], pair, views, size)

    lax.fori_loop(0, words_out.shape[0], do_tile, None)

  lax.fori_loop(0, PAIRS, do_pair, None)
  for tile in range(words_out.shape[0]):
    here = pl.ds(tile * LANES, LANES)
    planes_lib.write_words(words_out.at[tile], target.at[..., here])


def convolve(
    source: jax.Array,
    kernel: jax.Array,
    maps: jax.Array,
    views: Views,
    size: tuple[int, int],
    *,
    transpose: bool,
    residual: bool,
    interpret: bool,
) -> jax.Array:
  """Returns a target [*size, N, .] in the dtype of the source.

  Args:
    source: the image or, where transposed, the output's gradient: bfloat16
      [H, W, N, .], where 16 divides N and 128 the channels.
    kernel: K, [taps, C, D].
    maps: A, [N, taps, C / 16, D].
    views: what the target's positions see of the source.
    size: rows and columns of the target.
    transpose: whether from outputs to inputs.
    residual: whether for K * (1 + A), or for K * A.
    interpret: whether in Pallas' interpreter.
  """
  *source_size, number, channels = source.shape
  taps, c, d = kernel.shape
  inputs, outputs = channels // LANES, d // LANES
  target = c if transpose else d
  positions = sum(map(views.run, views.parts))

  def image(tile, i):
    return 0, 0, i, tile

  return pl.pallas_call(
      functools.partial(
          _kernel,
          views=views,
          size=size,
          transpose=transpose,
          residual=int(residual),
      ),
      out_shape=jax.ShapeDtypeStruct((*size, number, target), source.dtype),
      grid=(number // SAMPLES,),
      in_specs=[
          *(
              pl.BlockSpec(
                  (*source_size, SAMPLES, LANES), functools.partial(image, tile)
              )
              for tile in range(inputs)
          ),
          pl.BlockSpec(
              kernel.shape,
              lambda i: (0, 0, 0),
              pipeline_mode=pl.Buffered(1),
          ),
          pl.BlockSpec((SAMPLES, *maps.shape[1:]), lambda i: (i, 0, 0, 0)),
      ],
      out_specs=pl.BlockSpec(
          (*size, SAMPLES, target), functools.partial(image, 0)
      ),
      scratch_shapes=[
          planes_lib.words_of(inputs, source_size),
          planes_lib.words_of(target // LANES, size),
          planes_lib.planes_of(views, inputs, 2),
          pltpu.VMEM((2, positions, LANES), jnp.float32),
          pltpu.VMEM((outputs, taps, c, LANES), jnp.float32),
          pltpu.VMEM((2, outputs, taps, c // RUN, LANES), jnp.float32),
      ],
      compiler_params=pltpu.CompilerParams(vmem_limit_bytes=planes_lib.MEMORY),
      interpret=interpret,
      name='aw_conv_input' if transpose else 'aw_conv',
  )(*[source] * inputs, kernel, maps)
