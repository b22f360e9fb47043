"""RoIAlign over the levels of a feature pyramid, of one image.

"Mask R-CNN", https://arxiv.org/abs/1703.06870, section 3; the levels are those
of "Feature Pyramid Networks", https://arxiv.org/abs/1612.03144, equation 1. A
region is cut into P x P bins, with n x n samples at even distances in each:

  out[p] = 1 / n^2 * sum_s bilinear(F[level], y[p, s], x[p, s])

Sample s of bin p, along one axis, and the share of the pixel q in it:

  y[p, s] = start + p step + (s + 0.5) step / n        max(0, 1 - |y[p, s] - q|)

A sample counts if -1 <= y <= H; where it is beside the pixels 0 to H - 1, as
the nearest one. One further out adds zero, and is counted in the average. The
paper leaves this open; it is what the public implementations do.
"""

from collections.abc import Sequence
import functools
from typing import Annotated, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import look_up
from awconv_jax.ops.boxes import as_boxes, sides
from awconv_jax.ops.valid_area import as_valid_size
from awconv_jax.options import OneOf, PositiveFloat, PositiveInt

# What is added against rounding, by rule: before and after the logarithm.
_SLACK = {'mmdet': (1e-6, 0.0), 'torchvision': (0.0, 1e-6)}


def assign_levels(
    rois: jax.Array,
    number: int,
    *,
    finest: PositiveFloat = 56.0,
    rule: Annotated[str, OneOf(_SLACK)] = 'mmdet',
) -> jax.Array:
  """Returns the level of the pyramid that each region is pooled from.

  'mmdet' is floor(log2(s / finest + 1e-6)) and 'torchvision'
  floor(log2(s / finest) + 1e-6), with s = sqrt(w h), both clipped to the levels
  that there are. The latter's scale 224 on its level 4 is 56 on its finest.

  Args:
    rois: [..., 4], xyxy in pixels of the canvas.
    number: of levels.
    finest: s from which on, up to twice as much, a region is on level 0, to
      which smaller ones belong, too.
    rule: 'mmdet' or 'torchvision'.

  Returns:
    int32 [...], 0 for the finest level; also for regions without an area.
  """
  before, after = look_up('rule', rule, _SLACK)
  size = jnp.maximum(sides(rois), 0).astype(jnp.float32)
  scale = jnp.sqrt(size[..., 0] * size[..., 1]) / finest + before
  # Counts the powers of 2 below: a logarithm is not exact there.
  least = (2.0 ** (np.arange(1, number) - after)).astype(np.float32)
  return jnp.sum(scale[..., None] >= least, axis=-1, dtype=jnp.int32)


def roi_align(
    features: Sequence[jax.Array],
    rois: jax.Array,
    levels: jax.Array,
    valid_sizes: Sequence[jax.Array | None],
    *,
    strides: Sequence[int],
    output: PositiveInt = 7,
    sampling: PositiveInt = 2,
    adaptive: bool = False,
    aligned: bool = True,
) -> jax.Array:
  """Pools a fixed number of bins from each region of one image.

  Only the features have a gradient, in reverse mode and of first order. Time
  grows with sampling^2, and memory does not: that of the result, once, is all
  the gradient takes.

  Args:
    features: maps of the image, each [H, W, C], the finest first.
    rois: float [K, 4], xyxy in pixels of the canvas.
    levels: int [K], index of the map that each is pooled from, as of
      `assign_levels`.
    valid_sizes: int [2] of each map, see `ops.valid_area`; nothing beyond it is
      read. None is all of a map.
    strides: of each map, in pixels of the canvas.
    output: P, bins along each axis.
    sampling: n, samples of a bin along each axis.
    adaptive: n is a region's size in positions over P, rounded up, along each
      axis by itself, and at most `sampling`. Square regions on their level want
      2 to 4. All take the time of the largest.
    aligned: whether position 0 is the centre of the first pixel, at half a
      stride. Otherwise it is its corner, as in the first implementations, and
      a region is at least one position in size.

  Returns:
    [K, P, P, C] in the features' dtype, computed in float32 at least. Zeros for
    regions without an area (such as padding) or a level, or that are not
    finite.

  Raises:
    ValueError: shapes do not fit together.
  """
  rois = as_boxes(rois, 'rois')
  shapes = tuple(jax.ShapeDtypeStruct(f.shape, f.dtype) for f in features)
  if (
      {len(s.shape) for s in shapes} != {3}
      or len({(s.shape[2], s.dtype) for s in shapes}) > 1
      or {len(strides), len(valid_sizes)} != {len(shapes)}
      or rois.shape != (*levels.shape, 4)
      or rois.ndim != 2
  ):
    raise ValueError(
        f'features {shapes}, strides {tuple(strides)}, rois {rois.shape} and '
        f'levels {levels.shape} do not fit: want maps [H, W, C] of one image '
        'and dtype, a stride and a valid size for each, [K, 4] and [K]'
    )
  sizes = map(as_valid_size, valid_sizes, (s.shape for s in shapes))
  widths = [s.shape[1] for s in shapes]
  grid = _create_grid(
      rois, levels, sizes, widths, strides, output, sampling, adaptive, aligned
  )
  return _pool(list(features), grid, shapes, output, sampling)


class _Grid(NamedTuple):
  """Where samples lie; pairs are of rows and columns, in the map's pixels."""

  level: jax.Array  # int32 [K], which map.
  size: jax.Array  # int32 [K, 2], of the map without its padding.
  width: jax.Array  # int32 [K], of the map with it: from a row to the next.
  start: jax.Array  # float32 [K, 2], of the first bin.
  step: jax.Array  # float32 [K, 2], size of a bin.
  samples: jax.Array  # int32 [K, 2], in a bin.
  valid: jax.Array  # bool [K]; what is not gives zeros.


def _create_grid(
    rois, levels, sizes, widths, strides, output, sampling, adaptive, aligned
):
  rois = lax.stop_gradient(rois).astype(jnp.float32)
  is_level = (levels >= 0) & (levels < len(strides))
  # Without an area is also what holds a NaN, which is not passed on.
  valid = is_level & jnp.all(rois[:, 2:] > rois[:, :2], axis=1)
  rois = jnp.where(valid[:, None], rois, 0)
  level = jnp.where(is_level, levels, 0).astype(jnp.int32)
  corners = rois / jnp.array(strides, jnp.float32)[level, None]
  corners = corners - (0.5 if aligned else 0)
  start, end = corners[:, 1::-1], corners[:, :1:-1]
  extent = end - start if aligned else jnp.maximum(end - start, 1)
  step = extent / output
  samples = jnp.full(step.shape, sampling, jnp.int32)
  if adaptive:
    samples = jnp.clip(jnp.ceil(step), 1, sampling).astype(jnp.int32)
  size = jnp.stack([jnp.asarray(s, jnp.int32) for s in sizes])[level]
  width = jnp.array(widths, jnp.int32)[level]
  return _Grid(level, size, width, start, step, samples, valid)


def _end(grid, axis, end, output):
  """Returns the lower (end = 2 s) or upper (2 s + 1) neighbour of sample s.

  int32 [K, P], always within the map, and float32 weights [K, P].
  """
  size, start, step, samples = (
      a[:, axis, None] for a in (grid.size, grid.start, grid.step, grid.samples)
  )
  sample, is_upper = end // 2, end % 2
  position = start + step * jnp.arange(output)
  position += (sample + 0.5) * (step / samples)
  counts = (position >= -1) & (position <= size) & (sample < samples)
  counts &= grid.valid[:, None]
  # What lies far away, or nowhere, is no integer.
  position = jnp.where(counts, jnp.maximum(position, 0), 0)
  lower = position.astype(jnp.int32)
  far = position - lower
  share = jnp.where(is_upper, far, 1 - far) * counts / samples
  return jnp.minimum(lower + is_upper, size - 1), share


def _tap(grid, number, output, sampling):
  """Returns the `number`-th of the (2 n)^2 pixels that each bin reads.

  As rows of the map as [H * W, C], int32 [K, P, P], and float32 weights.
  """
  row, a = _end(grid, 0, number // (2 * sampling), output)
  column, b = _end(grid, 1, number % (2 * sampling), output)
  place = row[:, :, None] * grid.width[:, None, None] + column[:, None, :]
  return place, a[:, :, None] * b[:, None, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _pool(features, grid, shapes, output, sampling):
  """Returns the averages, [K, P, P, C]; shapes are those of the features."""
  flat = [f.reshape(-1, f.shape[-1]) for f in features]

  def add(number, total):
    place, weight = _tap(grid, number, output, sampling)
    for level, pixels in enumerate(flat):
      # Of the other levels one pixel for all: less than to join the maps.
      here = (grid.level == level)[:, None, None]
      seen = pixels.at[jnp.where(here, place, 0)].get(mode='promise_in_bounds')
      total += jnp.where(here, weight, 0)[..., None] * seen.astype(total.dtype)
    return total

  wide = jnp.promote_types(shapes[0].dtype, jnp.float32)
  total = jnp.zeros((*grid.level.shape, output, output, flat[0].shape[1]), wide)
  taps = (2 * sampling) ** 2
  # Four at a time, so that the sum is written less often.
  total = lax.fori_loop(0, taps, add, total, unroll=4)
  return total.astype(shapes[0].dtype)


def _forward(features, grid, shapes, output, sampling):
  return _pool(features, grid, shapes, output, sampling), grid


def _backward(shapes, output, sampling, grid, grad):
  """Returns the gradient of the features, for that of the averages.

  Regions overlap a hundredfold, so that it is summed in float32; and in place,
  one tap after the other, which derived from `_pool` it would not be.
  """
  grad = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))

  def add(number, totals):
    place, weight = _tap(grid, number, output, sampling)
    update = weight[..., None] * grad
    added = []
    for level, total in enumerate(totals):
      here = (grid.level == level)[:, None, None]
      # Behind the end is nowhere.
      index = jnp.where(here, place, len(total))
      added.append(total.at[index].add(update, mode='drop'))
    return added

  flat = [(s.shape[0] * s.shape[1], s.shape[2]) for s in shapes]
  totals = [jnp.zeros(shape, grad.dtype) for shape in flat]
  totals = lax.fori_loop(0, (2 * sampling) ** 2, add, totals)
  pairs = zip(totals, shapes, strict=True)
  return [t.reshape(s.shape).astype(s.dtype) for t, s in pairs], None


_pool.defvjp(_forward, _backward)
