"""Maps between how XLA keeps them on TPU and how the kernels read them.

XLA makes maps [N, taps, G, D] as a product whose columns are runs times
outputs, and keeps that as [taps, N, G * D], samples next to columns. A kernel
reads [G, D] of one sample. XLA's own copies from the one to the other, and back
for the gradient, cost more at 512 channels than a plain convolution does.

As in `planes`, a word of 32 bits holds two neighbouring samples or, of one
sample, two neighbouring runs; strided loads and stores do the rest.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from awconv_jax.ops.aw_conv.tpu.planes import LANES, PAIRS, SAMPLES, joined


def _places(words):
  """Yields for 128 outputs their words, and where they lie in both forms.

  That is which words of all samples are in which columns, run by run, and which
  are those of two samples, of the even and of the odd runs.
  """
  tiles, rows, _ = words.shape
  runs = rows // PAIRS
  for tile in range(tiles):
    columns = [
        (pl.ds(run * PAIRS, PAIRS), pl.ds((run * tiles + tile) * LANES, LANES))
        for run in range(runs)
    ]
    every = functools.partial(pl.ds, size=runs // 2, stride=2 * PAIRS)
    pairs = [(every(pair), every(PAIRS + pair)) for pair in range(PAIRS)]
    yield words.at[tile], pl.ds(tile * LANES, LANES), columns, pairs


def _separate(kept, target, words):
  for own, lanes, columns, pairs in _places(words):
    for here, there in columns:
      own[here] = pltpu.bitcast(kept[0, :, there], jnp.int32)
    for pair, runs in enumerate(pairs):
      both = joined(*(own[here] for here in runs))
      for sample, values in enumerate(both, 2 * pair):
        target[sample, 0, :, lanes] = pltpu.bitcast(values, target.dtype)


def _join(source, kept, words):
  for own, lanes, columns, pairs in _places(words):
    for pair, runs in enumerate(pairs):
      both = joined(
          *(
              pltpu.bitcast(source[2 * pair + sample, 0, :, lanes], jnp.int32)
              for sample in range(2)
          )
      )
      for here, values in zip(runs, both, strict=True):
        own[here] = values
    for here, there in columns:
      kept[0, :, there] = pltpu.bitcast(own[here], kept.dtype)


def _pass(maps, *, to_kernels, interpret):
  """Returns what it is given, in the other form for XLA."""
  number, taps, runs, outputs = maps.shape
  # Few maps cost little, and would not fill registers.
  fits = runs % (2 * PAIRS) == outputs % LANES == 0
  if not fits or maps.dtype != jnp.bfloat16:
    return maps
  kept = taps, number, runs * outputs
  blocks = (
      pl.BlockSpec((1, SAMPLES, kept[2]), lambda i, tap: (tap, i, 0)),
      pl.BlockSpec((SAMPLES, 1, runs, outputs), lambda i, tap: (i, tap, 0, 0)),
  )
  shapes, kernel, name = (kept, maps.shape), _separate, 'aw_conv_maps'
  if to_kernels:
    # In this order XLA sees that nothing moves.
    maps = maps.reshape(number, taps, -1).transpose(1, 0, 2)
  else:
    blocks, shapes = blocks[::-1], shapes[::-1]
    kernel, name = _join, 'aw_conv_maps_gradient'
  maps = pl.pallas_call(
      kernel,
      out_shape=jax.ShapeDtypeStruct(shapes[1], maps.dtype),
      grid=(number // SAMPLES, taps),
      in_specs=blocks[:1],
      out_specs=blocks[1],
      scratch_shapes=[
          pltpu.VMEM((outputs // LANES, runs * PAIRS, LANES), jnp.int32)
      ],
      interpret=interpret,
      name=name,
  )(maps)
  if to_kernels:
    return maps
  return maps.transpose(1, 0, 2).reshape(number, taps, runs, outputs)


def for_kernels(maps: jax.Array, *, interpret: bool) -> jax.Array:
  """Returns maps [N, taps, G, D] as kernels read them; 16 divides N."""
  return _pass(maps, to_kernels=True, interpret=interpret)


def for_xla(maps: jax.Array, *, interpret: bool) -> jax.Array:
  """Returns maps [N, taps, G, D] of a kernel as XLA keeps them."""
  return _pass(maps, to_kernels=False, interpret=interpret)
