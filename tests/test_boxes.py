"""Areas, overlaps, deltas and suppression of boxes, and their traps."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import naive_detection as naive
import numpy as np
import pytest

from awconv_jax.ops import boxes as box_ops
from awconv_jax.ops import nms as nms_ops
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
  tiny = np.float32([[1, 1, 1.01, 1.01]])  # A hundredth of a pixel is a box.
  np.testing.assert_allclose(box_ops.iou(tiny, tiny), 1, rtol=1e-5)


def test_clip_to_the_image_on_the_canvas():
  boxes = np.float32([[-5, -6, 30, 90], [10, 60, 45, 70], [3, 4, 5, 6]])
  want = [[0, 0, 30, 50], [10, 50, 40, 50], [3, 4, 5, 6]]
  np.testing.assert_array_equal(box_ops.clip(boxes, np.int32([50, 40])), want)


def test_flip_is_that_of_the_image():
  flipped = box_ops.flip(np.float32([2, 1, 6, 4]), 9)
  np.testing.assert_array_equal(flipped, [3, 1, 7, 4])
  assert not box_ops.area(box_ops.flip(EMPTY, 64)).any()


@pytest.mark.parametrize('below', [False, True])
@pytest.mark.parametrize('weights', [(1.0,) * 4, (10.0, 10.0, 5.0, 5.0)])
def test_deltas_equal_the_loop_lead_back_and_are_clamped(weights, below):
  boxes, anchors = random_boxes(40), random_boxes(40, 1)
  coder = Coder(weights=weights, clamp_below=below)
  deltas = jax.jit(coder.encode)(boxes, anchors)
  want = [naive.encode(boxes[i], anchors[i], weights) for i in range(40)]
  np.testing.assert_allclose(deltas, want, rtol=1e-4, atol=1e-5)
  wide = Coder(weights=weights, clamp=10.0)
  np.testing.assert_allclose(wide.decode(deltas, anchors), boxes, atol=1e-3)
  # And deltas that are too large for any box.
  rng = np.random.default_rng(2)
  deltas = np.float32(rng.normal(0, 6, (40, 4)) * weights)
  limit = math.log(1000 / 16)
  limits = weights, -limit if below else -math.inf, limit
  want = [naive.decode(deltas[i], anchors[i], *limits) for i in range(40)]
  got = coder.decode(deltas, anchors)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-2)


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
  for function, *arguments in (
      (box_ops.iou, boxes, coarse.astype(jnp.float16)),
      (box_ops.clip, coarse, (9, 9)),
      (box_ops.flip, coarse, 9),
      (Coder().encode, coarse, boxes),
      (Coder().decode, coarse, coarse),
      (box_ops.area, np.ones((3, 5))),
  ):
    with pytest.raises(ValueError, match='too coarse for pixels'):
      function(*arguments)
  deltas = jnp.ones((3, 4), jnp.bfloat16) / 3
  got = Coder().decode(deltas, boxes)
  want = Coder().decode(deltas.astype(jnp.float32), boxes)
  np.testing.assert_array_equal(got, want)
  assert got.dtype == box_ops.iou(np.int32(boxes), boxes).dtype == jnp.float32


# The threshold is an argument, so that there is one compilation for all.
nms = jax.jit(nms_ops.nms)
PLACES = 200


def scattered(rng):
  """Boxes anywhere, of any size, some empty or inside out."""
  return rng.integers(-4, 30, (PLACES, 4))


def clustered(rng):
  """Boxes that differ by a few pixels from few: long chains of overlaps."""
  centres = rng.integers(0, 40, (7, 2))[rng.integers(0, 7, PLACES)]
  corner = centres + rng.integers(0, 5, (PLACES, 2))
  return np.concatenate([corner, corner + rng.integers(6, 11, (PLACES, 2))], 1)


def stairs(rng):
  """Each overlaps its neighbours alone: every second one stays."""
  del rng
  corner = np.stack([4 * np.arange(PLACES), np.zeros(PLACES)], 1)
  return np.concatenate([corner, corner + 10], 1)


def problem(kind, levels, seed, number=PLACES):
  """Boxes of whole pixels, so that IoUs are exact at the thresholds too."""
  rng = np.random.default_rng(seed)
  boxes = kind(rng).astype(np.float32)
  scores = np.float32(rng.integers(0, levels, PLACES) / levels)
  if kind is stairs:
    scores = np.sort(scores)[::-1]
  valid = (rng.random(PLACES) < 0.8) & (np.arange(PLACES) < number)
  return boxes, scores, valid


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([scattered, clustered, stairs]),
    levels=st.sampled_from([1, 3, 40, 100_000]),
    seed=st.integers(0, 10**6),
    number=st.integers(1, PLACES),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    groups=st.sampled_from([1, 2, 90]),
)
def test_equals_the_greedy_loop(kind, levels, seed, number, threshold, groups):
  """With ties, masks and groups; of as many places for any number."""
  arrays = *problem(kind, levels, seed, number), threshold
  group = np.random.default_rng(seed).integers(0, groups, PLACES)
  want = naive.nms(*arrays, group)
  np.testing.assert_array_equal(nms(*arrays, group), want)
  if groups == 1:
    np.testing.assert_array_equal(nms(*arrays), want)


def test_scores_may_be_bfloat16_and_losses_go_through():
  boxes, _, valid = problem(clustered, 5, 0)
  scores = jnp.asarray(np.random.default_rng(0).random(PLACES), jnp.bfloat16)
  want = naive.nms(boxes, np.float32(scores), valid, 0.5)
  np.testing.assert_array_equal(nms(boxes, scores, valid, 0.5), want)

  def loss(scores):
    return jnp.where(nms(boxes, scores, valid, 0.5), scores**2, 0).sum()

  scores = np.float32(scores)
  np.testing.assert_allclose(jax.grad(loss)(scores), want * 2 * scores)


def test_arrays_that_do_not_fit_are_refused():
  boxes, scores, valid = problem(stairs, 5, 0)
  with pytest.raises(ValueError, match='want .N, 4. and thrice .N. of one'):
    nms_ops.nms(boxes, scores[:4], valid, 0.5)
