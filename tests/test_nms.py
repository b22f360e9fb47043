"""Non-maximum suppression against the greedy loop, for any threshold."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import naive_detection as naive
import numpy as np
import pytest

from awconv_jax.ops import nms as nms_ops

THRESHOLDS = [0.3, 0.5, 0.7]
# The threshold is an argument, so that there is one compilation for all.
nms = jax.jit(nms_ops.nms)


def scattered(rng, n):
  """Boxes anywhere, of any size, some empty or inside out."""
  return rng.integers(-4, 30, (n, 4))


def clustered(rng, n):
  """Boxes that differ by a few pixels from few: long chains of overlaps."""
  centres = rng.integers(0, 40, (max(n // 30, 1), 2))
  corner = centres[rng.integers(0, len(centres), n)] + rng.integers(
      0, 5, (n, 2)
  )
  return np.concatenate([corner, corner + rng.integers(6, 11, (n, 2))], -1)


def stairs(rng, n):
  """Each overlaps its neighbours alone: every second one stays."""
  corner = np.stack([4 * np.arange(n), np.zeros(n)], -1)
  return np.concatenate([corner, corner + 10], -1)


KINDS = {f.__name__: f for f in (scattered, clustered, stairs)}


def problem(kind, n, levels, seed, size=None):
  """Boxes of whole pixels, so that IoUs are exact at the thresholds too."""
  rng = np.random.default_rng(seed)
  size = size or n
  boxes = KINDS[kind](rng, size).astype(np.float32)
  scores = np.float32(rng.integers(0, levels, size) / levels)
  if kind == 'stairs':
    scores = np.sort(scores)[::-1]
  valid = (rng.random(size) < 0.8) & (np.arange(size) < n)
  return boxes, scores, valid


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([*KINDS]),
    n=st.integers(1, 300),
    levels=st.sampled_from([1, 3, 40, 100_000]),
    threshold=st.sampled_from(THRESHOLDS),
    seed=st.integers(0, 10**6),
)
def test_equals_the_greedy_loop(kind, n, levels, threshold, seed):
  """With ties and masks; up to 300 boxes among as many places."""
  given = problem(kind, n, levels, seed, size=300)
  want = naive.nms(*given, threshold)
  np.testing.assert_array_equal(nms(*given, threshold), want)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 6)] * 4), min_size=5, max_size=5),
    scores=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    valid=st.lists(st.booleans(), min_size=5, max_size=5),
    threshold=st.sampled_from([0.0, *THRESHOLDS, 1.0]),
)
def test_equals_the_greedy_loop_for_few_boxes(boxes, scores, valid, threshold):
  given = np.float32(boxes), np.float32(scores), np.array(valid)
  want = naive.nms(*given, threshold)
  np.testing.assert_array_equal(nms(*given, threshold), want)


def test_by_hand():
  boxes = np.float32(
      [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 8], [20, 20, 30, 30]]
  )
  scores, valid = np.float32([0.9, 0.8, 0.7, 0.1]), np.ones(4, bool)
  # 5 / 10 is not above 0.5, and 8 / 10 is.
  assert nms(boxes, scores, valid, 0.5).tolist() == [True, True, False, True]
  # One that is suppressed suppresses nothing: 5 / 8 with the second.
  assert nms(boxes, scores, valid, 0.4).tolist() == [True, False, False, True]
  # One that is not there neither.
  absent = np.array([False, True, True, True])
  assert nms(boxes, scores, absent, 0.7).tolist() == [False, True, True, True]
  # Of equals the first.
  equal = nms(np.stack([boxes[0]] * 3), np.ones(3), np.ones(3, bool), 0.5)
  assert equal.tolist() == [True, False, False]


def test_a_long_chain_is_followed_to_its_end():
  boxes, _, valid = problem('stairs', 300, 9, 0)
  keep = nms(boxes, -np.arange(300.0), np.ones_like(valid), 0.3)
  np.testing.assert_array_equal(keep, np.arange(300) % 2 == 0)


@pytest.mark.parametrize('threshold', THRESHOLDS)
def test_empty_boxes_and_missing_scores(threshold):
  boxes = np.float32([[5, 5, 5, 9], [5, 5, 5, 9], [0, 0, 9, 9], [0, 0, 9, 8]])
  # Empty boxes overlap nothing, also not each other.
  scores, valid = np.float32([4, 3, 2, 1]), np.ones(4, bool)
  assert nms(boxes, scores, valid, threshold).tolist() == [1, 1, 1, 0]
  # Rows behind the end of a top-k.
  scores = np.float32([-np.inf, -np.inf, 2, -np.inf])
  got = nms(boxes, scores, scores > -np.inf, threshold)
  assert got.tolist() == [0, 0, 1, 0]
  assert not nms(boxes, scores, np.zeros(4, bool), threshold).any()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([*KINDS]),
    count=st.integers(1, 90),
    threshold=st.sampled_from(THRESHOLDS),
    seed=st.integers(0, 10**6),
)
def test_groups_equal_a_loop_for_each(kind, count, threshold, seed):
  boxes, scores, valid = problem(kind, 200, 7, seed)
  groups = np.random.default_rng(seed).integers(0, count, 200)
  got = nms(boxes, scores, valid, threshold, groups)
  want = np.zeros(200, bool)
  for group in range(count):
    its = np.flatnonzero(groups == group)
    want[its] = naive.nms(boxes[its], scores[its], valid[its], threshold)
  np.testing.assert_array_equal(got, want)


def test_images_of_a_batch_do_not_meet():
  given = [problem(k, 60, 5, s) for s, k in enumerate(KINDS)]
  run = functools.partial(nms_ops.nms, threshold=0.5)
  got = jax.jit(jax.vmap(run))(*map(np.stack, zip(*given, strict=True)))
  for keep, one in zip(got, given, strict=True):
    np.testing.assert_array_equal(keep, naive.nms(*one, 0.5))


def test_scores_may_be_bfloat16_and_losses_go_through():
  boxes, _, valid = problem('clustered', 300, 5, 0)
  scores = jnp.asarray(np.random.default_rng(0).random(300), jnp.bfloat16)
  want = naive.nms(boxes, np.float32(scores), valid, 0.5)
  np.testing.assert_array_equal(nms(boxes, scores, valid, 0.5), want)

  def loss(boxes, scores):
    return jnp.where(nms(boxes, scores, valid, 0.5), scores**2, 0).sum()

  scores = np.float32(scores)
  gradient = jax.grad(loss, 1)(boxes, scores)
  np.testing.assert_allclose(gradient, np.where(want, 2 * scores, 0))


def test_arrays_that_do_not_fit_are_refused():
  boxes, scores, valid = problem('stairs', 5, 5, 0)
  with pytest.raises(ValueError, match=r'scores \(4,\), groups \(5,\)'):
    nms_ops.nms(boxes, scores[:4], valid, 0.5)
  with pytest.raises(ValueError, match='of one image'):
    nms_ops.nms(boxes[None], scores[None], valid[None], 0.5)
