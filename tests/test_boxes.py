"""Areas, overlaps, clipping, flipping and deltas of boxes, and their traps."""

import math

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import naive_detection as naive
import numpy as np
import pytest

from awconv_jax.ops import boxes as box_ops
from awconv_jax.ops.boxes import Coder

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

EMPTY = [[0, 0, 0, 0], [5, 5, 5, 9], [5, 5, 9, 5], [9, 9, 5, 5], [7, 2, 3, 8]]
EMPTY = np.array(EMPTY, np.float32)


def random_boxes(n, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  corner = rng.uniform(-20, 80, (n, 2))
  size = rng.uniform(0.5, 60, (n, 2))
  return np.concatenate([corner, corner + size], -1).astype(dtype)


def test_area_and_iou_equal_the_loop_and_are_0_of_empty_boxes():
  a = np.concatenate([random_boxes(12), EMPTY])
  b = np.concatenate([random_boxes(8, 1), a[:3], EMPTY])
  areas = [naive.area(box) for box in a]
  np.testing.assert_allclose(box_ops.area(a), areas, rtol=1e-5)
  got, want = jax.jit(box_ops.iou)(a, b), naive.ious(a, b)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
  assert (np.diag(got[:3, 8:11]) == 1).all()
  assert (got[12:] == 0).all() and (got[:, 11:] == 0).all()
  assert areas[12:] == [0] * 5 and np.count_nonzero(want) > 25
  # A hundredth of a pixel is a box, also far out.
  boxes = np.float32([[1, 1, 1.01, 1.01], [1300, 700, 1300.5, 701]])
  np.testing.assert_allclose(box_ops.iou(boxes, boxes), np.eye(2), rtol=1e-5)


def test_clip_to_the_image_on_the_canvas():
  given = np.float32([[-5, -6, 30, 90], [10, 60, 45, 70], [3, 4, 5, 6]])
  want = [[0, 0, 30, 50], [10, 50, 40, 50], [3, 4, 5, 6]]
  sizes = np.int32([[50, 40], [20, 10]])
  got = jax.jit(jax.vmap(box_ops.clip, (None, 0)))(given, sizes)
  np.testing.assert_array_equal(got[0], want)
  assert got[1, :, 2].max() == 10 and got[1, :, 3].max() == 20


def test_flip_is_that_of_the_image():
  image, box = np.zeros((6, 9)), np.float32([2, 1, 7, 4])
  image[1:4, 2:7] = 1
  x1, y1, x2, y2 = np.int32(box_ops.flip(box, 9))
  want = np.zeros_like(image)
  want[y1:y2, x1:x2] = 1
  np.testing.assert_array_equal(image[:, ::-1], want)
  assert not box_ops.area(box_ops.flip(EMPTY, 64)).any()


@pytest.mark.parametrize('below', [False, True])
@pytest.mark.parametrize('weights', [(1.0,) * 4, (10.0, 10.0, 5.0, 5.0)])
def test_deltas_equal_the_loop_lead_back_and_are_clamped(weights, below):
  boxes, anchors = random_boxes(40), random_boxes(40, 1)
  coder = Coder(weights=weights, clamp_below=below)
  deltas = jax.jit(coder.encode)(boxes, anchors)
  pairs = list(zip(boxes, anchors, strict=True))
  want = [naive.encode(b, a, weights) for b, a in pairs]
  np.testing.assert_allclose(deltas, want, rtol=1e-4, atol=1e-5)
  wide = Coder(weights=weights, clamp=10.0)
  np.testing.assert_allclose(wide.decode(deltas, anchors), boxes, atol=1e-3)
  # And deltas that are too large for any box.
  rng = np.random.default_rng(2)
  deltas = np.float32(rng.normal(0, 6, (40, 4)) * weights)
  limit = math.log(1000 / 16)
  limits = -limit if below else -math.inf, limit
  want = [
      naive.decode(d, a, weights, *limits)
      for d, a in zip(deltas, anchors, strict=True)
  ]
  got = coder.decode(deltas, anchors)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-2)
  growth = np.asarray(box_ops.sides(got) / box_ops.sides(anchors))
  assert growth.max() == pytest.approx(62.5, rel=1e-3)
  assert (growth.min() > 0.0159) == below


def masked_sums(boxes, anchors):
  """A loss in which the empty boxes of the padding have no part."""
  real = (box_ops.area(boxes) > 0) & (box_ops.area(anchors) > 0)
  deltas = jnp.where(real[:, None], Coder().encode(boxes, anchors), 0)
  back = jnp.where(real[:, None], Coder().decode(boxes, anchors), 0)
  overlaps = jnp.where(real, box_ops.paired_iou(boxes, anchors), 0)
  return (jnp.abs(deltas).sum(1) + back.sum(1) * 1e-3 + overlaps).sum()


def test_values_and_gradients_of_empty_boxes_are_finite_and_masked():
  real = random_boxes(len(EMPTY))
  boxes = np.concatenate([real, EMPTY, EMPTY])
  anchors = np.concatenate([real + 1, real, EMPTY])
  for function in (Coder().encode, Coder().decode, box_ops.paired_iou):
    assert np.isfinite(function(boxes, anchors)).all()
  gradient = jax.jit(jax.grad(masked_sums, (0, 1)))
  alone = gradient(real, real + 1)
  for got, want in zip(gradient(boxes, anchors), alone, strict=True):
    assert np.abs(want).min(1).all()
    np.testing.assert_allclose(got[: len(real)], want, rtol=1e-5)
    np.testing.assert_array_equal(got[len(real) :], 0)


@pytest.mark.parametrize('name', ['encode', 'decode', 'paired_iou'])
def test_gradients_equal_differences(name):
  with jax.enable_x64(True):
    boxes, anchors = (random_boxes(4, s, np.float64) for s in range(2))
    first = boxes / 50 if name == 'decode' else boxes
    function = getattr(box_ops if name == 'paired_iou' else Coder(), name)
    assert function(first, anchors).dtype == np.float64
    check_grads(function, (first, anchors), 1, ['rev'])


def test_half_precision_is_refused_for_boxes_and_widened_for_deltas():
  boxes = random_boxes(3)
  coarse = jnp.asarray(boxes, jnp.bfloat16)
  for call in (
      lambda: box_ops.iou(boxes, coarse.astype(jnp.float16)),
      lambda: box_ops.clip(coarse, (9, 9)),
      lambda: box_ops.flip(coarse, 9),
      lambda: Coder().encode(coarse, boxes),
      lambda: Coder().decode(coarse, coarse),
      lambda: box_ops.area(np.ones((3, 5))),
  ):
    with pytest.raises(ValueError, match='too coarse for pixels'):
      call()
  deltas = jnp.ones((3, 4), jnp.bfloat16) / 3
  got = Coder().decode(deltas, boxes)
  assert got.dtype == jnp.float32
  want = Coder().decode(deltas.astype(jnp.float32), boxes)
  np.testing.assert_array_equal(got, want)
  assert box_ops.iou(np.int32(boxes), boxes).dtype == jnp.float32
