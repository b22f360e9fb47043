"""RoIAlign over the levels of a feature pyramid, of one image.

"Mask R-CNN", https://arxiv.org/abs/1703.06870, section 3; the levels are those
of "Feature Pyramid Networks", https://arxiv.org/abs/1612.03144, equation 1. A
region is cut into P x P bins, with n x n samples at even distances in each:

  out[p] = 1 / n^2 * sum_s bilinear(F[level], y[p, s], x[p, s])

Where the samples lie, and what becomes of those beside the map, is up to
`ops.roi_samples`.
"""

from collections.abc import Sequence
import functools
from typing import Annotated

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import look_up
from awconv_jax.ops import roi_samples
from awconv_jax.ops.boxes import as_boxes, sides
from awconv_jax.ops.valid_area import as_valid_size
from awconv_jax.options import OneOf, PositiveFloat, PositiveInt

# What is added against rounding, by rule: before and after the logarithm.
_SLACK = {'mmdet': (1e-6, 0.0), 'torchvision': (0.0, 1e-6)}


def assign_levels(
    rois: jax.Array,
    number: int = 4,
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

  Raises:
    ValueError: the rule is unknown, or these are no boxes.
  """
  before, after = look_up('rule', rule, _SLACK)
  size = jnp.maximum(sides(rois), 0).astype(jnp.float32)
  scale = jnp.sqrt(size[..., 0] * size[..., 1]) / finest + before
  # Counts the powers of 2 below: a logarithm is not exact there.
  least = (2.0 ** (np.arange(1, number) - after)).astype(np.float32)
  return jnp.sum(scale[..., None] >= least, axis=-1, dtype=jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _pool(features, grid, shapes, output, sampling):
  """Returns the averages, [K, P, P, C]; shapes are those of the features."""
  flat = [f.reshape(-1, f.shape[-1]) for f in features]

  def add(number, total):
    place, weight = roi_samples.tap(grid, number, output, sampling)
    for level, pixels in enumerate(flat):
      # Of the other levels one pixel for all: less than to join the maps.
      own = (grid.level == level)[:, None, None]
      seen = pixels.at[jnp.where(own, place, 0)].get(mode='promise_in_bounds')
      total += jnp.where(own, weight, 0)[..., None] * seen.astype(total.dtype)
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
    place, weight = roi_samples.tap(grid, number, output, sampling)
    update = weight[..., None] * grad
    added = []
    for level, total in enumerate(totals):
      own = (grid.level == level)[:, None, None]
      # Behind the end is nowhere.
      index = jnp.where(own, place, len(total))
      added.append(total.at[index].add(update, mode='drop'))
    return added

  totals = [
      jnp.zeros((s.shape[0] * s.shape[1], s.shape[2]), grad.dtype)
      for s in shapes
  ]
  totals = lax.fori_loop(0, (2 * sampling) ** 2, add, totals)
  return [
      total.reshape(s.shape).astype(s.dtype)
      for total, s in zip(totals, shapes, strict=True)
  ], None


_pool.defvjp(_forward, _backward)


def _check(features, rois, levels, strides):
  """Raises ValueError for what JAX would take for something else."""
  shapes = [tuple(f.shape) for f in features]
  if not shapes or any(len(s) != 3 or 0 in s for s in shapes):
    raise ValueError(f'features {shapes}: want maps [H, W, C] of one image')
  if len({(s[2], f.dtype) for s, f in zip(shapes, features, strict=True)}) > 1:
    raise ValueError(
        f'features {shapes} differ in their channels or dtypes '
        f'{[str(f.dtype) for f in features]}'
    )
  if len(strides) != len(shapes):
    raise ValueError(
        f'strides {tuple(strides)} do not fit {len(shapes)} features: '
        'want one for each'
    )
  if rois.ndim != 2 or rois.shape[1] != 4 or levels.shape != rois.shape[:1]:
    raise ValueError(
        f'rois {rois.shape} and levels {levels.shape}: want [K, 4] and [K]'
    )


def roi_align(
    features: Sequence[jax.Array],
    rois: jax.Array,
    levels: jax.Array,
    valid_sizes: Sequence[jax.Array | None] | None = None,
    *,
    strides: Sequence[int],
    output: PositiveInt = 7,
    sampling: PositiveInt = 2,
    adaptive: bool = False,
    aligned: bool = True,
) -> jax.Array:
  """Pools a fixed number of bins from each region of one image.

  `jax.vmap` does so for the images of a batch. Only the features have a
  gradient, in reverse mode and of first order. Time grows with sampling^2, and
  memory does not: that of the result, once, is all the gradient takes.

  Args:
    features: maps of the image, each [H, W, C], the finest first.
    rois: float [K, 4], xyxy in pixels of the canvas.
    levels: int [K], index of the map that each is pooled from, as of
      `assign_levels`.
    valid_sizes: int [2] of each map, height and width of its part that is image
      and not padding. Its border is then the map's: nothing behind it is read.
      None is all of a map, or of all maps.
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
    ValueError: the arguments do not fit together.
  """
  rois = as_boxes(rois, 'rois')
  _check(features, rois, levels, strides)
  if valid_sizes is None:
    valid_sizes = [None] * len(features)
  sizes = [
      f.shape[:2] if size is None else as_valid_size(size, f.shape)
      for f, size in zip(features, valid_sizes, strict=True)
  ]
  grid = roi_samples.create_grid(
      rois,
      levels,
      sizes,
      [f.shape[1] for f in features],
      strides,
      output=output,
      sampling=sampling,
      adaptive=adaptive,
      aligned=aligned,
  )
  shapes = tuple(jax.ShapeDtypeStruct(f.shape, f.dtype) for f in features)
  return _pool(list(features), grid, shapes, output, sampling)
