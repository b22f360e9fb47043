"""Non-maximum suppression against the greedy loop, for any threshold."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import naive_detection as naive
import numpy as np
import pytest

from awconv_jax.ops import nms as nms_ops

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


def test_what_is_absent_suppresses_nothing():
  """Such as what is behind the end of a top-k."""
  boxes, _, valid = problem(clustered, 5, 0)
  scores = np.where(valid, 0.5, -np.inf)
  want = naive.nms(boxes[valid], scores[valid], valid[valid], 0.5)
  np.testing.assert_array_equal(nms(boxes, scores, valid, 0.5)[valid], want)


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
  for arrays in ((boxes, scores[:4], valid), (boxes[None], scores, valid)):
    with pytest.raises(ValueError, match='want .N, 4. and thrice .N. of one'):
      nms_ops.nms(*arrays, 0.5)
