"""Where RoIAlign reads a map: the samples of each bin, and their neighbours.

"Mask R-CNN", https://arxiv.org/abs/1703.06870, section 3. Sample s of the n in
bin p, along one axis, and the share of the pixel q in it:

  y[p, s] = start + p step + (s + 0.5) step / n        max(0, 1 - |y[p, s] - q|)

A sample counts if -1 <= y <= H; where it is beside the pixels 0 to H - 1, as
the nearest one. One further out adds zero, and is counted in the average. The
paper leaves this open; it is what the public implementations do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp


class Grid(NamedTuple):
  """Where samples lie; pairs are of rows and columns, in positions of the map.

  Attributes:
    level: int32 [K], which map.
    size: int32 [K, 2], of the map without its padding.
    width: int32 [K], of the map with it: from a row to the next.
    start: float32 [K, 2], of the first bin.
    step: float32 [K, 2], size of a bin.
    samples: int32 [K, 2], in a bin.
    valid: bool [K]; what is not gives zeros.
  """

  level: jax.Array
  size: jax.Array
  width: jax.Array
  start: jax.Array
  step: jax.Array
  samples: jax.Array
  valid: jax.Array


def create_grid(
    rois: jax.Array,
    levels: jax.Array,
    sizes: Sequence[tuple[int, int] | jax.Array],
    widths: Sequence[int],
    strides: Sequence[int],
    *,
    output: int,
    sampling: int,
    adaptive: bool,
    aligned: bool,
) -> Grid:
  """Returns where the samples lie, for the arguments of `roi_align`.

  Args:
    rois: float [K, 4], xyxy in pixels of the canvas; they get no gradient.
    levels: int [K], of the maps.
    sizes: H and W of each map, or of its part that is not padding.
    widths: of each map with its padding.
    strides: of each map, in pixels of the canvas.
    output: P.
    sampling: n, or the largest one.
    adaptive: whether n is up to the size of a region.
    aligned: whether position 0 is the centre of the first pixel.

  Returns:
    A grid; regions without an area or a level are not valid.
  """
  rois = lax.stop_gradient(rois).astype(jnp.float32)
  is_level = (levels >= 0) & (levels < len(sizes))
  # Without one is also what holds a NaN, which is not passed on.
  has_area = jnp.all(rois[:, 2:] > rois[:, :2], axis=1)
  valid = is_level & has_area
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
  return Grid(level, size, width, start, step, samples, valid)


def _end(grid, axis, end, output):
  """Returns one of the 2 n positions that each bin reads along an axis.

  Args:
    grid: where the samples lie.
    axis: 0 for rows and 1 for columns.
    end: int [], 2 s for the lower and 2 s + 1 for the upper neighbour of the
      sample s.
    output: P.

  Returns:
    Positions, int32 [K, P] and always within the map, and weights, float32
    [K, P], of the average along this axis.
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


def tap(
    grid: Grid, number: int | jax.Array, output: int, sampling: int
) -> tuple[jax.Array, jax.Array]:
  """Returns one of the (2 n)^2 pixels that each bin reads, and its weight.

  Args:
    grid: where the samples lie.
    number: int [], which.
    output: P.
    sampling: n, or the largest one.

  Returns:
    Rows of each region's map as [H * W, C], int32 [K, P, P] and always in it;
    and weights, float32 [K, P, P].
  """
  row, a = _end(grid, 0, number // (2 * sampling), output)
  column, b = _end(grid, 1, number % (2 * sampling), output)
  place = row[:, :, None] * grid.width[:, None, None] + column[:, None, :]
  return place, a[:, :, None] * b[:, None, :]
