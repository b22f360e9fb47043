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
ROWS, ANCHORS = 6, 40  # Of ground truth, with its padding.


def intervals(*ends):
  """Boxes one pixel high, so that their overlaps can be told by hand."""
  return np.float32([(low, 0, high, 1) for low, high in ends])


def problem(seed):
  """Whole pixels, so that many overlaps tie, also at the thresholds.

  The rows of padding may be anything, also what an anchor is exactly; and half
  of the anchors take no part, for odd seeds.
  """
  rng = np.random.default_rng(seed)
  anchors = intervals(*np.sort(rng.integers(0, 14, (ANCHORS, 2))))
  gt_boxes = anchors[rng.integers(0, ANCHORS, ROWS)]
  gt_boxes[:, 2] += rng.integers(0, 4, ROWS)
  part = rng.random(ANCHORS) < (0.5 if seed % 2 else 1)
  return gt_boxes, rng.random(ROWS) < (seed % 5) / 4, anchors, part


def assert_matched(got, rows, options):
  """Compares with the loop; returns the labels that there are."""
  gt_boxes, gt_valid, anchors, part = rows
  index, label = map(np.asarray, got)
  assert index.dtype == np.int32 and label.dtype == np.int8
  assert (label[~part] == -1).all()
  overlaps = naive.ious(gt_boxes[gt_valid], anchors[part])
  overlaps = overlaps.reshape(-1, part.sum()).astype(np.float32)
  own, want = naive.match(overlaps, **options)
  own = np.append(np.flatnonzero(gt_valid), 0)[own]
  np.testing.assert_array_equal(label[part], want)
  np.testing.assert_array_equal(index[part][want == 1], own[want == 1])
  return set(want)


@pytest.mark.parametrize('rule', RULES)
def test_equals_the_loop_whatever_takes_no_part(rule):
  match = functools.partial(match_boxes, **RULES[rule])
  rows = [problem(seed) for seed in range(50)]
  batch = map(np.stack, zip(*rows, strict=True))
  images = zip(*jax.jit(jax.vmap(match))(*batch), strict=True)
  seen = [
      assert_matched(image, row, RULES[rule])
      for image, row in zip(images, rows, strict=True)
  ]
  assert set().union(*seen) == ({0, 1} if rule == 'roi' else {-1, 0, 1})


def test_no_gradient_comes_back():
  boxes, both = np.float32([[0, 0, 9, 9], [2, 2, 6, 9]]), np.ones(2, bool)

  def loss(anchors):
    _, label = match_boxes(boxes, both, anchors, both, **RPN)
    return jnp.where(label == 1, jnp.abs(boxes[0] - anchors).sum(1), 0).sum()

  gradient = jax.jit(jax.grad(loss))(boxes + 1)
  np.testing.assert_array_equal(np.abs(gradient), [[1] * 4, [1] * 4])


def test_memory_does_not_grow_with_all_pairs():
  """268,569 anchors and 100 objects are 107 MB as a matrix."""
  shapes = ((100, 4), 'float32'), ((100,), bool), ((268_569, 4), 'float32')
  rows = [jax.ShapeDtypeStruct(*x) for x in (*shapes, ((268_569,), bool))]
  compiled = (
      jax.jit(functools.partial(match_boxes, **RPN)).lower(*rows).compile()
  )
  assert compiled.memory_analysis().temp_size_in_bytes < 12e6


def test_what_does_not_fit_is_refused():
  rows = problem(0)
  with pytest.raises(ValueError, match='negative=0.6 above positive=0.5'):
    match_boxes(*rows, positive=0.5, negative=0.6)
  with pytest.raises(ValueError, match="unknown low_quality 'all'.*gt, own"):
    match_boxes(*rows, **RPN, low_quality='all')
  with pytest.raises(ValueError, match=r'want .G, 4.*\(40, 4\), \(6,\)'):
    match_boxes(*rows[:3], rows[1], **RPN)
