"""The AW-convolution's output, and its input's gradient, in Pallas for TPU.

A step of the grid has a block of 16 samples. Two at a time their planes are
pulled out of it (`planes`); for each 256 channels of the target, what every two
taps see of 128 channels, or one tap of 256, is multiplied by their tiles of
K * (1 + A), which are formed in registers on their way to the matrix unit; and
the sums are put where they belong.
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
    own_tile,
)
from awconv_jax.ops.aw_conv.tpu.views import Views

_PLACES = 224  # Whose sums take 28 of 64 registers, or 56 for 256 channels.


def _kernel(*refs, views: Views, size, transpose, residual):
  *sources, kernel, maps, target = refs[:-6]
  words_in, words_out, planes, sums, shared, factors = refs[-6:]
  outputs, several = shared.shape[0], sums.shape[0]  # Tiles of 128.

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

  def product(sample, terms, tile, start, count):
    """Returns what some taps see of some inputs, by their own kernels."""
    inner, outer = (0, 1) if transpose else (1, 0)
    seen, own = [], []
    for view, other in terms:
      copy, word = views.place(view)
      here = pl.ds(word + start // 2, count // 2)
      seen.append(planes[other, sample, copy, here])
      tiles = []
      for index in range(several):
        one = tile + index
        inputs, output = (one, other) if transpose else (other, one)
        at = output, view.tap
        first = inputs * (LANES // RUN)
        tiles.append(
            own_tile(shared.at[at], factors.at[sample, *at], first, LANES)
        )
      own.append(jnp.concatenate(tiles, axis=inner))
    return lax.dot_general(
        pltpu.bitcast(jnp.concatenate(seen, axis=1), jnp.bfloat16),
        jnp.concatenate(own, axis=outer),
        (((1,), (outer,)), ((), ())),
        precision=lax.Precision.DEFAULT,  # Exact in bfloat16.
        preferred_element_type=jnp.float32,
    )

  def add(sample, tile):
    """Sums up what several tiles of the target get, part by part."""
    offset = 0
    for part in views.parts:
      terms = [*itertools.product(part.views, range(len(sources)))]
      for start in range(0, views.run(part), _PLACES):
        count = min(_PLACES, views.run(part) - start)
        total = jnp.zeros((count, several * LANES), jnp.float32)
        for first in range(0, len(terms), TOGETHER):
          some = terms[first : first + TOGETHER]
          total += product(sample, some, tile, start, count)
        here = pl.ds(offset + start, count)
        for index in range(several):
          lanes = slice(index * LANES, (index + 1) * LANES)
          sums[index, sample, here] = total[:, lanes]
      offset += views.run(part)

  def do_pair(pair, _):
    for tile in range(len(sources)):
      planes_lib.pull(words_in.at[tile], pair, planes.at[tile], views)
    for sample in range(2):
      for tile in range(outputs):
        own = maps[2 * pair + sample, :, :, pl.ds(tile * LANES, LANES)]
        factors[sample, tile] = residual + own.astype(jnp.float32)

    def do_tiles(index, _):
      tile = index * several
      for sample in range(2):  # They fill each other's waits.
        add(sample, tile)
      for which in range(several):
        out = words_out.at[tile + which]
        planes_lib.push(sums.at[which], out, pair, views, size)

    trips = words_out.shape[0] // several
    lax.fori_loop(0, trips, do_tiles, None, unroll=trips <= STRAIGHT)

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
  several = math.gcd(target // LANES, TOGETHER)
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
          pltpu.VMEM((several, 2, positions, LANES), jnp.float32),
          pltpu.VMEM((outputs, taps, c, LANES), jnp.float32),
          pltpu.VMEM((2, outputs, taps, c // RUN, LANES), jnp.float32),
      ],
      compiler_params=pltpu.CompilerParams(vmem_limit_bytes=planes_lib.MEMORY),
      interpret=interpret,
      name='aw_conv_input' if transpose else 'aw_conv',
  )(*[source] * inputs, kernel, maps)
