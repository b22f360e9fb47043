"""Boxes: areas, overlaps, and the deltas that lead from one box to another.

"Rich feature hierarchies for accurate object detection and semantic
segmentation" (R-CNN), https://arxiv.org/abs/1311.2524, appendix C. For an
anchor with the centre x_a, y_a and the sides w_a, h_a:

  d_x = (x - x_a) / w_a    d_y = (y - y_a) / h_a
  d_w = log(w / w_a)       d_h = log(h / h_a)

A box is x1, y1, x2, y2 in pixels of the canvas, and its sides are x2 - x1 and
y2 - y1. Boxes are float32, as neighbouring numbers of bfloat16 are 4 pixels
apart from 512 on. All here raise ValueError for boxes in half precision, and
for what is not 4 long.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp

from awconv_jax.options import PositiveFloat

_Four = tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]
# Of d_w and d_h: an anchor grows at most from 16 pixels to 1000.
MAX_LOG_RATIO = math.log(1000 / 16)


def as_boxes(boxes: jax.Array, name: str = 'boxes') -> jax.Array:
  """Returns boxes [..., 4] of any kind as an array of at least float32."""
  boxes = jnp.asarray(boxes)
  if boxes.shape[-1:] != (4,) or boxes.dtype in (jnp.bfloat16, jnp.float16):
    raise ValueError(
        f'{name} are {boxes.dtype} {boxes.shape}: want x1, y1, x2, y2 in '
        'float32, as half precision is too coarse for pixels'
    )
  return boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))


def sides(boxes: jax.Array) -> jax.Array:
  """Returns width and height in pixels, float32 [..., 2], of boxes [..., 4]."""
  boxes = as_boxes(boxes)
  return boxes[..., 2:] - boxes[..., :2]


def area(boxes: jax.Array) -> jax.Array:
  """Returns the area in square pixels, float32 [...], of boxes [..., 4].

  It is 0 where a side is not positive.
  """
  return jnp.maximum(sides(boxes), 0).prod(-1)


def paired_iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns the intersection over union of each a with its b.

  float32 [...], from 0 to 1, for [..., 4] each, which may broadcast; 0 where a
  box is empty.
  """
  a, b = as_boxes(a), as_boxes(b)

  def overlap(low, high):
    stop = jnp.minimum(a[..., high], b[..., high])
    return jnp.maximum(stop - jnp.maximum(a[..., low], b[..., low]), 0)

  both = overlap(0, 2) * overlap(1, 3)
  # Far below what a box measures: only keeps 0 / 0 finite, as its gradient.
  return both / jnp.maximum(area(a) + area(b) - both, 1e-9)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns `paired_iou` of all pairs, [N, M], for a [N, 4] and b [M, 4]."""
  return paired_iou(jnp.asarray(a)[:, None], b)


def clip(boxes: jax.Array, size: jax.Array | Sequence) -> jax.Array:
  """Returns boxes [..., 4] cut off at the borders of their image, in float32.

  Size is [2], height and width of the image on the canvas. What lay outside is
  empty.
  """
  boxes = as_boxes(boxes)
  height, width = (jnp.asarray(s, boxes.dtype) for s in size)
  return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]))


def is_large(boxes: jax.Array, min_size: float) -> jax.Array:
  """Returns which boxes [..., 4] have sides above 0 and of so many pixels."""
  shorter = sides(boxes).min(-1)
  return (shorter > 0) & (shorter >= min_size)


def flip(boxes: jax.Array, width: jax.Array | float) -> jax.Array:
  """Returns boxes [..., 4] of the mirrored image, in float32.

  The width is that of the image without its padding. Empty boxes stay empty.
  """
  x1, y1, x2, y2 = jnp.moveaxis(as_boxes(boxes), -1, 0)
  return jnp.stack([width - x2, y1, width - x1, y2], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coder:
  """Deltas of boxes, and boxes of deltas.

  Attributes:
    weights: what d_x, d_y, d_w and d_h are multiplied by.
    clamp: largest d_w and d_h that are decoded.
    clamp_below: whether they are at least -clamp, too, as in mmdetection;
      torchvision and detectron2 bound them above only.
  """

  weights: _Four = (1.0, 1.0, 1.0, 1.0)
  clamp: PositiveFloat = MAX_LOG_RATIO
  clamp_below: bool = True

  def encode(self, boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """Returns the deltas that lead from the anchors to the boxes.

    float32 [..., 4], d_x, d_y, d_w, d_h, for [..., 4] each. Sides that are not
    positive count as 1 pixel. What comes of such a box, as of padding, means
    nothing; but it is finite, as is its gradient, so that a mask over the loss
    removes it.
    """
    boxes, anchors = as_boxes(boxes), as_boxes(anchors, 'anchors')
    size, size_a = sides(boxes), sides(anchors)
    shift = boxes[..., :2] + 0.5 * size - (anchors[..., :2] + 0.5 * size_a)
    # Before the division and the logarithm: a choice after them would still
    # multiply an infinite derivative by zero.
    size, size_a = (jnp.where(s > 0, s, 1) for s in (size, size_a))
    deltas = jnp.concatenate([shift / size_a, jnp.log(size / size_a)], -1)
    return deltas * jnp.asarray(self.weights, deltas.dtype)

  def decode(self, deltas: jax.Array, anchors: jax.Array) -> jax.Array:
    """Returns the boxes that the deltas lead to, the inverse of `encode`.

    Args:
      deltas: [..., 4] of any dtype. For several of an anchor, as one for each
        class, [..., C, 4] and anchors [..., 1, 4].
      anchors: [..., 4], anchors or proposals.

    Returns:
      float32 [..., 4], not clipped to the image.
    """
    anchors = as_boxes(anchors, 'anchors')
    deltas = jnp.asarray(deltas).astype(anchors.dtype)
    deltas = deltas / jnp.asarray(self.weights, anchors.dtype)
    low = -self.clamp if self.clamp_below else None
    growth = jnp.exp(jnp.clip(deltas[..., 2:], low, self.clamp))
    size_a = sides(anchors)
    centre = deltas[..., :2] * size_a + anchors[..., :2] + 0.5 * size_a
    half = 0.5 * growth * size_a
    return jnp.concatenate([centre - half, centre + half], -1)
