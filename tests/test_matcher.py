"""Which ground truth an anchor is given, in both manners, against loops."""

import functools

import jax
import jax.numpy as jnp
import naive_detection as naive
import numpy as np
import pytest

from awconv_jax.ops import anchors as anchor_ops
from awconv_jax.ops import boxes as box_ops
from awconv_jax.ops import matcher

RPN = dict(positive=0.7, negative=0.3, min_positive=0.3)
RULES = {
    'mmdet': dict(RPN, low_quality='gt'),
    'torchvision': dict(RPN, min_positive=0.0, low_quality='own'),
    'roi': dict(positive=0.5, negative=0.5),
}
ROWS = 6  # Of ground truth, with its padding.


def compiled(rule):
  return jax.jit(functools.partial(matcher.match, **RULES[rule]))


def overlaps(rng, gt, count):
  """Of few values, so that there are many ties, also at the thresholds."""
  return rng.choice(np.float32([0, 0, 0, 0.1, 0.3, 0.5, 0.7, 0.8]), (gt, count))


def padded(rows):
  """Rows among padding whose IoU is anything, also the highest."""
  full = np.full((ROWS, rows.shape[1]), 0.9, np.float32)
  full[: len(rows)] = rows
  return full, np.arange(ROWS) < len(rows)


def assert_matched(got, want):
  index, label = map(np.asarray, got)
  assert index.dtype == np.int32 and label.dtype == np.int8
  np.testing.assert_array_equal(label, want[1])
  np.testing.assert_array_equal(index[label == 1], want[0][label == 1])


@pytest.mark.parametrize('rule', RULES)
def test_equals_the_loop(rule):
  rng, match = np.random.default_rng(0), compiled(rule)
  seen = set()
  for _ in range(60):
    rows = overlaps(rng, rng.integers(0, ROWS + 1), 40)
    want = naive.match(rows, **RULES[rule])
    assert_matched(match(*padded(rows)), want)
    seen |= set(want[1])
  assert seen == ({0, 1} if rule == 'roi' else {-1, 0, 1})


def test_the_two_manners_by_hand():
  # Anchor 0 overlaps ground truth 0 most, and is the best that 1 has.
  iou = np.float32([[0.8, 0.9, 0.0, 0.5], [0.6, 0.0, 0.2, 0.0]])
  valid = np.ones(2, bool)
  index, label = matcher.match(iou, valid, **RULES['mmdet'])
  assert index[:2].tolist() == [1, 0] and label.tolist() == [1, 1, 0, -1]
  index, label = matcher.match(iou, valid, **RULES['torchvision'])
  assert index[:2].tolist() == [0, 0] and label.tolist() == [1, 1, 0, -1]
  # The best of both, which overlap it equally: the first, or the last.
  iou = np.float32([[0.5, 0.1], [0.5, 0.1]])
  for rule, want in (('torchvision', 0), ('mmdet', 1)):
    index, label = matcher.match(iou, valid, **RULES[rule])
    assert (index[0], label.tolist()) == (want, [1, 0])


def test_the_least_iou_of_a_low_quality_match():
  iou, valid = np.float32([[0.29, 0.2, 0.29]]), np.ones(1, bool)
  for least, want in ((0.3, [0, 0, 0]), (0.29, [1, 0, 1]), (0.0, [1, 0, 1])):
    _, label = matcher.match(iou, valid, **RPN | dict(min_positive=least))
    assert label.tolist() == want
  # Nothing overlaps it: not everything is its best.
  _, label = matcher.match(0 * iou, valid, **RPN | dict(min_positive=0.0))
  assert label.tolist() == [0, 0, 0]


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize(
    'padding', [[0, 0, 0, 0], [3, 3, 60, 60], [9, 9, 9, 9]]
)
def test_padded_ground_truth_never_makes_a_positive(rule, padding):
  levels = anchor_ops.pyramid((64, 64), strides=(16, 32), scale=2)
  anchors = np.concatenate(levels)
  real = np.float32([[4, 4, 44, 40], [0, 0, 63, 63]])
  rows = np.concatenate([real, np.tile(np.float32(padding), (3, 1))])
  options = dict(RULES[rule])
  match = jax.jit(functools.partial(matcher.match_boxes, **options))
  none = match(rows, np.zeros(5, bool), anchors)
  np.testing.assert_array_equal(none[1], 0)
  got = match(rows, np.arange(5) < 2, anchors)
  want = matcher.match(box_ops.iou(real, anchors), np.ones(2, bool), **options)
  assert_matched(got, want)
  # Also where the padding is not behind the others.
  index, label = match(rows[::-1], np.arange(5) > 2, anchors)
  np.testing.assert_array_equal(label, want[1])
  assert set(np.asarray(index)[np.asarray(label) == 1]) <= {3, 4}
  assert 1 in label


@pytest.mark.parametrize('rule', RULES)
def test_boxes_are_matched_as_by_their_overlaps(rule):
  """Whole pixels, so that many tie, in one program and in two."""
  rng = np.random.default_rng(1)
  anchors = np.float32(rng.integers(0, 12, (300, 4)))
  anchors[:, 2:] += anchors[:, :2]
  gt_boxes = anchors[rng.integers(0, 300, (4, ROWS))]
  gt_boxes[:, 2:] += rng.integers(0, 2, (4, 2, 4))[:, :1]
  gt_valid = rng.random((4, ROWS)) < 0.7

  def match(boxes, valid):
    return matcher.match_boxes(boxes, valid, anchors, **RULES[rule])

  got = jax.jit(jax.vmap(match))(gt_boxes, gt_valid)
  for n in range(4):
    own = naive.ious(gt_boxes[n], anchors).astype(np.float32)
    index, label = naive.match(own[gt_valid[n]], **RULES[rule])
    index = np.flatnonzero(gt_valid[n])[index]
    assert_matched((got[0][n], got[1][n]), (index, label))


@pytest.mark.parametrize('rule', RULES)
def test_anchors_that_take_no_part_are_nobodys_best(rule):
  rng = np.random.default_rng(2)
  match = compiled(rule)
  for _ in range(20):
    rows, valid = padded(overlaps(rng, 4, 40))
    part = rng.random(40) < 0.5
    index, label = map(np.asarray, match(rows, valid, anchor_valid=part))
    np.testing.assert_array_equal(label[~part], -1)
    want = naive.match(rows[:4, part], **RULES[rule])
    assert_matched((index[part], label[part]), want)


def test_no_gradient_comes_back():
  boxes = np.float32([[0, 0, 9, 9], [2, 2, 6, 9]])

  def loss(anchors):
    index, label = matcher.match_boxes(boxes, [True, True], anchors, **RPN)
    return jnp.where(label == 1, jnp.abs(boxes[0] - anchors).sum(1), 0).sum()

  gradient = jax.jit(jax.grad(loss))(boxes + 1)
  np.testing.assert_array_equal(np.abs(gradient), [[1] * 4, [1] * 4])


def test_memory_does_not_grow_with_all_pairs():
  """268,569 anchors and 100 objects are 107 MB as a matrix."""
  anchors = jax.ShapeDtypeStruct((268_569, 4), jnp.float32)
  boxes = jax.ShapeDtypeStruct((100, 4), jnp.float32)
  valid = jax.ShapeDtypeStruct((100,), bool)
  match = jax.jit(functools.partial(matcher.match_boxes, **RPN))
  memory = match.lower(boxes, valid, anchors).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 12e6


def test_bad_options_are_refused():
  iou, valid = np.ones((2, 3)), np.ones(2, bool)
  options = dict(positive=0.5, negative=0.5)
  with pytest.raises(ValueError, match='negative=0.6 is above positive=0.5'):
    matcher.match(iou, valid, positive=0.5, negative=0.6)
  with pytest.raises(ValueError, match="low_quality='all': known are own, gt"):
    matcher.match(iou, valid, low_quality='all', **options)
  with pytest.raises(ValueError, match=r'gt_valid \(3,\) do not fit'):
    matcher.match(iou, np.ones(3, bool), **options)
  with pytest.raises(ValueError, match='anchor_valid .* does not fit 3'):
    matcher.match(iou, valid, anchor_valid=valid, **options)
  with pytest.raises(ValueError, match=r'gt_valid \(2,\) and anchors'):
    matcher.match_boxes(np.ones((3, 4)), valid, np.ones((5, 4)), **options)
