"""AW-convolution's kernels for TPU where a layer has 64 channels.

64 channels fill half of the 128 lanes, so two neighbouring pixels of a row
stand side by side in them: a *pair*. A 3x3 kernel's row of taps is then two
products of 128 x 128 for two pixels (three quarters of them full), in place of
three of 64 x 64 for each pixel, which cost as much as those of 128 x 128.

Operands stay as XLA keeps them on TPU, [H, W, N, 64], and are paired in here: a
block of 16 samples is read as 32-bit words of two neighbouring samples each,
two pixels of it are joined in the lanes, and strided loads then give all pairs
of a row for two samples. Shifts and masks make of them words of two
neighbouring *pairs* of one sample, which is how the matrix unit wants its
operands. Results go the same way back.

Only 3x3 kernels of stride 1 with one zero around, images of any size that
`needed` bytes hold.
"""

import functools
import itertools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from awconv_jax.ops.aw_conv.tpu.planes import (
    LANES,
    MEMORY,
    PAIRS,
    RUN,
    SAMPLES,
    joined,
    own_tile,
    packed,
)

CHANNELS = 64
_TAPS = 9
_GROUPS = CHANNELS // RUN
_TOGETHER = 4  # Rows that are taken apart at once.
_CHUNK = 256  # Pairs whose sums stay in registers.
_TILE = 128  # Pairs that one product of the kernel's gradient sums over.

# Which pixels a row's pair r holds: 2r + first and 2r + second.
_OWN = (0, 1)
_SEEN = (-1, 0)  # With pair r + 1: all that pixels 2r and 2r + 1 see.
_AROUND = (-1, 2)


def _even(count: int) -> int:
  return -(-count // 2) * 2


def _whole(count: int) -> int:
  """Returns a count of pairs, filled up to whole tiles of 16."""
  return -(-count // 16) * 16


class _Rows:
  """Some rows of a block of images as words of two samples each."""

  def __init__(self, block):
    self._block = block
    self._height, self.width, _, _ = block.shape

  def load(self, row, column):
    """Returns a pixel of all samples, [8, 64]; zeros outside of a row."""
    if not 0 <= column < self.width:
      return jnp.zeros((PAIRS, CHANNELS), jnp.int32)
    return pltpu.bitcast(self._block[row, column], jnp.int32)

  def store(self, row, column, words):
    """Writes a pixel of all samples, [8, 64]."""
    self._block[row, column] = pltpu.bitcast(words, self._block.dtype)

  def each(self, *steps):
    """Does steps for every row, each step for some rows before the next one.

    So rows fill each other's waits. A step is given a row's place among those
    it is done for together, and the row.
    """

    def do_rows(index, _):
      for step in steps:
        for place in range(_TOGETHER):
          step(place, jnp.minimum(index * _TOGETHER + place, self._height - 1))
      return 0

    lax.fori_loop(0, -(-self._height // _TOGETHER), do_rows, 0)


def _pull(block, lines, planes, slots, pitch):
  """Writes pairs of a block's pixels to planes, sample by sample.

  Args:
    block: [H, W, 16, 64].
    lines: scratch, words of some rows' pairs: [rows, (pitch + 2) * 8, 128].
    planes: [16, slots, words, 128], words of two neighbouring pairs. The first
      row of pairs stays zero, rows follow each other at the pitch.
    slots: for each slot which pixels its pairs hold, and by how many pairs it
      is shifted to the left (0 or 1).
    pitch: pairs from a row to the next, even.
  """
  rows = _Rows(block)
  half = pitch // 2

  def place(pair):  # Even ones first: a short stride needs fewer loads.
    return (pair // 2 + pair % 2 * (half + 1)) * PAIRS

  for pixels in dict.fromkeys(pixels for pixels, _ in slots):

    def join(line, row, pixels=pixels):
      for pair in range(pitch + 1):
        both = [rows.load(row, 2 * pair + pixel) for pixel in pixels]
        lines[line, pl.ds(place(pair), PAIRS)] = jnp.concatenate(both, axis=1)

    def separate(line, row, pixels=pixels):
      here = pl.ds((row + 1) * half, half)
      for (slot, (form, shift)), word in itertools.product(
          enumerate(slots), range(PAIRS)
      ):
        if form == pixels:
          first, second = (
              lines.at[line][pl.ds(place(start) + word, half, stride=PAIRS), :]
              for start in (shift, shift + 1)
          )
          both = joined(first, second)
          planes[2 * word, slot, here], planes[2 * word + 1, slot, here] = both

    rows.each(join, separate)


def _push(sums, lines, block, pitch):
  """Writes sums of pairs of own pixels, [16, pairs, 128], to a block."""
  rows = _Rows(block)
  pairs = -(-rows.width // 2)

  def join(line, row):
    here = pl.ds(row * pitch, pairs)
    for word in range(PAIRS):
      lines.at[line][pl.ds(word, pairs, stride=PAIRS), :] = packed(
          sums[2 * word, here], sums[2 * word + 1, here]
      )

  def separate(line, row):
    for column in range(rows.width):
      pair, side = divmod(column, 2)
      words = lines[line, pl.ds(pair * PAIRS, PAIRS)]
      rows.store(row, column, words[:, side * CHANNELS :][:, :CHANNELS])

  rows.each(join, separate)


def _pair_kernels(kernel, factors, transpose):
  """Yields what two neighbouring pairs seen are multiplied by, row by row.

  Pair r is pixels (2r - 1, 2r), the result's (2r, 2r + 1). Each kernel is
  [128, 128]: pixel of the pair times input, pixel of the result times output;
  the other way round where transposed.
  """
  nothing = jnp.zeros((CHANNELS, CHANNELS), jnp.bfloat16)
  for row in range(3):
    row = 2 - row if transpose else row
    own = [
        own_tile(kernel.at[tap], factors.at[tap], 0, CHANNELS)
        for tap in range(3 * row, 3 * row + 3)
    ]
    a, b, c = own[::-1] if transpose else own
    for seen, see in (((a, nothing), (b, a)), ((c, b), (nothing, c))):
      inner, outer = (0, 1) if transpose else (1, 0)
      yield jnp.concatenate(
          [jnp.concatenate(part, axis=inner) for part in (seen, see)],
          axis=outer,
      )


def _convolve_kernel(
    source,
    kernel,
    maps,
    target,
    lines,
    planes,
    factors,
    kernels,
    sums,
    *,
    pitch,
    transpose,
    residual,
):
  @pl.when(pl.program_id(0) == 0)
  def _():
    planes[...] = jnp.zeros_like(planes)

  _pull(source, lines, planes, ((_SEEN, 0), (_SEEN, 1)), pitch)
  rows, half = sums.shape[1], pitch // 2

  def add_sample(sample, _):
    factors[...] = residual + maps[sample].astype(jnp.float32)
    for index, own in enumerate(_pair_kernels(kernel, factors, transpose)):
      kernels[index] = pltpu.bitcast(own, jnp.int32)
    for start in range(0, rows, _CHUNK):
      count = min(_CHUNK, rows - start)
      total = jnp.zeros((count, LANES), jnp.float32)
      for row in range(3):
        for shift in range(2):
          here = pl.ds(row * half + start // 2, count // 2)
          total += lax.dot_general(
              pltpu.bitcast(planes[sample, shift, here], jnp.bfloat16),
              pltpu.bitcast(kernels[2 * row + shift], jnp.bfloat16),
              (((1,), (1 if transpose else 0,)), ((), ())),
              precision=lax.Precision.DEFAULT,
              preferred_element_type=jnp.float32,
          )
      sums[sample, pl.ds(start, count)] = total
    return 0

  lax.fori_loop(0, SAMPLES, add_sample, 0)
  _push(sums, lines, target, pitch)


def _image(height, width):
  return pl.BlockSpec(
      (height, width, SAMPLES, CHANNELS), lambda i: (0, 0, i, 0)
  )


_KERNEL = pl.BlockSpec((_TAPS, CHANNELS, CHANNELS), lambda i: (0, 0, 0))
_MAPS = pl.BlockSpec(
    (SAMPLES, _TAPS, _GROUPS, CHANNELS), lambda i: (i, 0, 0, 0)
)
_FACTORS = pltpu.VMEM((_TAPS, _GROUPS, CHANNELS), jnp.float32)


def _lines(pitch):
  return pltpu.VMEM((_TOGETHER, (pitch + 2) * PAIRS, LANES), jnp.int32)


def convolve(source, kernel, maps, *, transpose, residual, interpret):
  """Returns the output or, where transposed, the input's gradient.

  Args:
    source: images, or the output's gradient: bfloat16 [H, W, N, 64], N a
      multiple of 16.
    kernel: K, [9, 64, 64]: taps, input, output.
    maps: A, [N, 9, 4, 64]: a value for every 16 input channels.
    transpose: whether from outputs to inputs.
    residual: whether for K * (1 + A), or for K * A.
    interpret: whether in Pallas' interpreter.
  """
  height, width, samples, _ = source.shape
  pitch = _even(width // 2 + 1)
  rows = _whole(height * pitch)
  places = _whole(rows + 2 * pitch) // 2
  return pl.pallas_call(
      functools.partial(
          _convolve_kernel,
          pitch=pitch,
          transpose=transpose,
          residual=int(residual),
      ),
      out_shape=jax.ShapeDtypeStruct(source.shape, source.dtype),
      grid=(samples // SAMPLES,),
      in_specs=[_image(height, width), _KERNEL, _MAPS],
      out_specs=_image(height, width),
      scratch_shapes=[
          _lines(pitch),
          pltpu.VMEM((SAMPLES, 2, places, LANES), jnp.int32),
          _FACTORS,
          pltpu.VMEM((6, LANES // 2, LANES), jnp.int32),
          pltpu.VMEM((SAMPLES, rows, LANES), jnp.float32),
      ],
      compiler_params=pltpu.CompilerParams(vmem_limit_bytes=MEMORY),
      interpret=interpret,
      name='aw_conv_pairs_input' if transpose else 'aw_conv_pairs',
  )(source, kernel, maps)


def needed(height: int, width: int) -> int:
  """Returns how many bytes the largest of the kernels takes."""
  pairs = (height + 4) * (_even(width // 2 + 1)) + _TILE
  images = 4 * height * width * LANES * 2  # Two of them, each twice.
  # Two copies of the pairs in bfloat16 and their sums in float32, or three
  # copies, and what does not depend on the images' size.
  return SAMPLES * (images + pairs * LANES * 8) + 4 * 2**20


def _gradient_kernel(
    x,
    grad,
    kernel,
    maps,
    kernel_target,
    maps_target,
    lines,
    seen,
    grads,
    turned,
    factors,
    *,
    pitch,
    residual,
):
  @pl.when(pl.program_id(0) == 0)
  def _():
    for target in (seen, grads, kernel_target):
      target[...] = jnp.zeros_like(target)

  _pull(x, lines, seen, ((_OWN, 0),), pitch)
  _pull(grad, lines, grads, ((_OWN, 0), (_AROUND, 0)), pitch)
  half, tiles = pitch // 2, turned.shape[0]

  def add_sample(sample, _):
    factors[...] = residual + maps[sample].astype(jnp.float32)
    for tile in range(tiles):
      here = pl.ds(half + tile * _TILE // 2, _TILE // 2)
      pairs = pltpu.bitcast(seen[sample, 0, here], jnp.bfloat16)
      turned[tile] = pairs.astype(jnp.float32).T.astype(jnp.bfloat16)

    def product(row, slot):
      total = jnp.zeros((LANES, LANES), jnp.float32)
      for tile in range(tiles):
        here = pl.ds((2 - row) * half + tile * _TILE // 2, _TILE // 2)
        total += jnp.dot(
            turned[tile],
            pltpu.bitcast(grads[sample, slot, here], jnp.bfloat16),
            precision=lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )
      return total

    left, right = slice(None, CHANNELS), slice(CHANNELS, None)
    for row in range(3):
      own, around = product(row, 0), product(row, 1)
      taps = (
          own[left, right] + around[right, right],
          own[left, left] + own[right, right],
          own[right, left] + around[left, left],
      )
      for tap, total in enumerate(taps, 3 * row):
        for group in range(_GROUPS):
          here = slice(group * RUN, (group + 1) * RUN)
          factor = factors[tap, pl.ds(group, 1)]
          kernel_target[tap, here] += total[here] * factor
          maps_target[sample, tap, pl.ds(group, 1)] = jnp.sum(
              total[here] * kernel[tap, here].astype(jnp.float32),
              axis=0,
              keepdims=True,
          )
    return 0

  lax.fori_loop(0, SAMPLES, add_sample, 0)


def kernel_gradient(x, grad, kernel, maps, *, residual, interpret):
  """Returns dK and dA, float32, of operands as `convolve` has them."""
  height, width, samples, _ = x.shape
  pitch = _even(-(-width // 2))
  tiles = -(-height * pitch // _TILE)
  places = (tiles * _TILE + 2 * pitch) // 2
  return pl.pallas_call(
      functools.partial(
          _gradient_kernel,
          pitch=pitch,
          residual=int(residual),
      ),
      out_shape=(
          jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
          jax.ShapeDtypeStruct(maps.shape, jnp.float32),
      ),
      grid=(samples // SAMPLES,),
      in_specs=[_image(height, width), _image(height, width), _KERNEL, _MAPS],
      out_specs=(_KERNEL, _MAPS),
      scratch_shapes=[
          _lines(pitch),
          pltpu.VMEM((SAMPLES, 1, places, LANES), jnp.int32),
          pltpu.VMEM((SAMPLES, 2, places, LANES), jnp.int32),
          pltpu.VMEM((tiles, LANES, _TILE), jnp.bfloat16),
          _FACTORS,
      ],
      compiler_params=pltpu.CompilerParams(vmem_limit_bytes=MEMORY),
      interpret=interpret,
      name='aw_conv_pairs_kernel',
  )(x, grad, kernel, maps)
