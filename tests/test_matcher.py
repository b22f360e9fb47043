"""Which ground truth an anchor is given, in both manners, against loops."""

import functools

import jax
import jax.numpy as jnp
import naive_detection as naive
import numpy as np
import pytest

from awconv_jax.ops.matcher import match_boxes

RPN = dict(positive=0.7, negative=0.3, min_positive=0.3)
RULES = {
    'mmdet': dict(RPN, low_quality='gt'),
    'torchvision': dict(RPN, min_positive=0.0, low_quality='own'),
    'roi': dict(positive=0.5, negative=0.5),
}
ROWS = 6  # Of ground truth, with its padding.


def intervals(*ends):
  """Boxes one pixel high, so that their overlaps can be told by hand."""
  return np.float32([(low, 0, high, 1) for low, high in ends])


def problem(seed):
  """Whole pixels, so that many overlaps tie, also at the thresholds.

  The rows of padding may be anything, also what an anchor is exactly.
  """
  rng = np.random.default_rng(seed)
  anchors = intervals(*np.sort(rng.integers(0, 14, (40, 2))))
  gt_boxes = anchors[rng.integers(0, 40, ROWS)]
  gt_boxes[:, 2] += rng.integers(0, 4, ROWS)
  return gt_boxes, rng.random(ROWS) < (seed % 5) / 4, anchors


def naive_match(gt_boxes, gt_valid, anchors, **options):
  overlaps = naive.ious(gt_boxes[gt_valid], anchors)
  overlaps = overlaps.reshape(-1, len(anchors)).astype(np.float32)
  index, label = naive.match(overlaps, **options)
  return np.append(np.flatnonzero(gt_valid), 0)[index], label


def assert_matched(got, want):
  index, label = map(np.asarray, got)
  assert index.dtype == np.int32 and label.dtype == np.int8
  np.testing.assert_array_equal(label, want[1])
  np.testing.assert_array_equal(index[label == 1], want[0][label == 1])


@pytest.mark.parametrize('rule', RULES)
def test_equals_the_loop_whatever_the_padding_is(rule):
  options = RULES[rule]
  match = jax.jit(functools.partial(match_boxes, **options))
  seen = set()
  for seed in range(40):
    rows = problem(seed)
    want = naive_match(*rows, **options)
    assert_matched(match(*rows), want)
    seen |= set(want[1])
  assert seen == ({0, 1} if rule == 'roi' else {-1, 0, 1})
  # And for the images of a batch.
  gt_boxes, gt_valid, _ = (
      np.stack(x) for x in zip(*map(problem, range(4)), strict=True)
  )
  anchors = problem(3)[2]
  each = jax.vmap(functools.partial(match_boxes, **options), (0, 0, None))
  index, label = each(gt_boxes, gt_valid, anchors)
  for n in range(4):
    want = naive_match(gt_boxes[n], gt_valid[n], anchors, **options)
    assert_matched((index[n], label[n]), want)


def test_the_two_manners_by_hand():
  # Anchor 0 overlaps ground truth 0 most, by 0.8, and is the best that 1 has.
  gt_boxes = intervals((0, 10), (7, 10))
  anchors = intervals((2, 10), (0, 9), (20, 30), (0, 5))
  valid = np.ones(2, bool)
  for rule, wanted in (('mmdet', [1, 0]), ('torchvision', [0, 0])):
    index, label = match_boxes(gt_boxes, valid, anchors, **RULES[rule])
    assert index[:2].tolist() == wanted and label.tolist() == [1, 1, 0, -1]
  # The best of both, which overlap it equally: the first, or the last.
  gt_boxes, anchors = intervals((0, 10), (0, 10)), intervals((0, 5), (0, 1))
  for rule, wanted in (('torchvision', 0), ('mmdet', 1)):
    index, label = match_boxes(gt_boxes, valid, anchors, **RULES[rule])
    assert (index[0], label.tolist()) == (wanted, [1, 0])


def test_the_least_iou_of_a_low_quality_match():
  gt_boxes, valid = intervals((0, 100)), np.ones(1, bool)
  anchors = intervals((0, 29), (0, 20), (71, 100))
  for least, want in ((0.3, [0, 0, 0]), (0.29, [1, 0, 1]), (0.0, [1, 0, 1])):
    options = RPN | dict(min_positive=least)
    _, label = match_boxes(gt_boxes, valid, anchors, **options)
    assert label.tolist() == want
  # Nothing overlaps it: not everything is its best.
  _, label = match_boxes(gt_boxes + 200, valid, anchors, **options)
  assert label.tolist() == [0, 0, 0]


@pytest.mark.parametrize('rule', RULES)
def test_anchors_that_take_no_part_are_nobodys_best(rule):
  match = jax.jit(functools.partial(match_boxes, **RULES[rule]))
  for seed in range(20):
    gt_boxes, gt_valid, anchors = problem(seed)
    part = np.random.default_rng(seed).random(len(anchors)) < 0.5
    got = match(gt_boxes, gt_valid, anchors, anchor_valid=part)
    index, label = map(np.asarray, got)
    np.testing.assert_array_equal(label[~part], -1)
    want = naive_match(gt_boxes, gt_valid, anchors[part], **RULES[rule])
    assert_matched((index[part], label[part]), want)


def test_no_gradient_comes_back():
  boxes = np.float32([[0, 0, 9, 9], [2, 2, 6, 9]])

  def loss(anchors):
    index, label = match_boxes(boxes, np.ones(2, bool), anchors, **RPN)
    return jnp.where(label == 1, jnp.abs(boxes[0] - anchors).sum(1), 0).sum()

  gradient = jax.jit(jax.grad(loss))(boxes + 1)
  np.testing.assert_array_equal(np.abs(gradient), [[1] * 4, [1] * 4])


def test_memory_does_not_grow_with_all_pairs():
  """268,569 anchors and 100 objects are 107 MB as a matrix."""
  anchors = jax.ShapeDtypeStruct((268_569, 4), jnp.float32)
  boxes = jax.ShapeDtypeStruct((100, 4), jnp.float32)
  valid = jax.ShapeDtypeStruct((100,), bool)
  match = jax.jit(functools.partial(match_boxes, **RPN))
  memory = match.lower(boxes, valid, anchors).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 12e6


def test_what_does_not_fit_is_refused():
  rows = problem(0)
  with pytest.raises(ValueError, match='negative=0.6 above positive=0.5'):
    match_boxes(*rows, positive=0.5, negative=0.6)
  with pytest.raises(ValueError, match="unknown low_quality 'all'.*gt, own"):
    match_boxes(*rows, **RPN, low_quality='all')
  with pytest.raises(ValueError, match=r'gt_valid \(3,\), anchors \(40, 4\)'):
    match_boxes(rows[0], np.ones(3, bool), rows[2], **RPN)
  with pytest.raises(ValueError, match=r'anchor_valid \(6,\) do not fit'):
    match_boxes(*rows, anchor_valid=rows[1], **RPN)
