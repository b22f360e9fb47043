"""Anchors, the ground truth that they are given, and samples of them."""

import collections
import functools

import jax
import jax.numpy as jnp
import naive_detection as naive
import numpy as np
import pytest
from scipy import stats

from awconv_jax.ops import sampler
from awconv_jax.ops.anchors import Anchors
from awconv_jax.ops.matcher import match_boxes

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def test_a_few_by_hand():
  levels = Anchors().pyramid((800, 1344))
  assert [len(a) for a in levels] == [201600, 50400, 12600, 3150, 819]
  assert all(a.dtype == np.float32 for a in levels)
  # 32 pixels at stride 4: 32 * sqrt(2) = 45.2548 by 22.6274, and the square.
  want = [[-22.62742, -11.31371, 22.62742, 11.31371], [-16, -16, 16, 16]]
  np.testing.assert_allclose(levels[0][:2], want, rtol=1e-6)
  # The last one: row 12 and column 20 at stride 64, 512 pixels, upright.
  want = 1280 - 181.01934, 768 - 362.03867, 1280 + 181.01934, 768 + 362.03867
  np.testing.assert_allclose(levels[4][-1], want, rtol=1e-6)


@pytest.mark.parametrize('rounded', [False, True])
@pytest.mark.parametrize('canvas', [(64, 128), (70, 33)])
@pytest.mark.parametrize(
    'options', [{}, dict(scale=4.3, strides=(8, 16), ratios=(0.3, 1.0, 1.7))]
)
def test_equal_the_loop(canvas, rounded, options):
  made = Anchors(rounded=rounded, **options)
  sizes = [made.scale * stride for stride in made.strides]
  places = canvas, made.strides, sizes, made.ratios
  want = naive.anchors(*places, rounded=rounded)
  got = np.concatenate(made.pyramid(canvas))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


RPN = dict(positive=0.7, negative=0.3, min_positive=0.3)
RULES = {
    'mmdet': dict(RPN, low_quality='gt'),
    'torchvision': dict(RPN, min_positive=0.0, low_quality='own'),
    'roi': dict(positive=0.5, negative=0.5),
}
ROWS, ANCHORS = 6, 40  # Of ground truth, with its padding.


def problem(seed):
  """Whole pixels, so that many overlaps tie, also at the thresholds.

  The rows of padding may be anything, also what an anchor is exactly; and half
  of the anchors take no part, for odd seeds.
  """
  rng = np.random.default_rng(seed)
  ends = np.sort(rng.integers(0, 14, (ANCHORS, 2)))
  anchors = np.insert(ends, [1, 2], [0, 1], 1).astype(np.float32)
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
  match = functools.partial(match_boxes, **RPN)
  compiled = jax.jit(match).lower(*rows).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 12e6


def test_what_does_not_fit_is_refused():
  rows = problem(0)
  with pytest.raises(ValueError, match='negative=0.6 above positive=0.5'):
    match_boxes(*rows, positive=0.5, negative=0.6)
  with pytest.raises(ValueError, match="unknown low_quality 'all'.*gt, own"):
    match_boxes(*rows, **RPN, low_quality='all')
  with pytest.raises(ValueError, match=r'want .G, 4.*\(40, 4\), \(6,\)'):
    match_boxes(*rows[:3], rows[1], **RPN)


def draw(labels, number, fraction, *, seed=0, draws=1):
  """Samples of the same labels by as many keys, as NumPy arrays."""
  sample = functools.partial(sampler.sample, number=number, fraction=fraction)
  keys = jax.random.split(jax.random.key(seed), draws)
  drawn = jax.jit(jax.vmap(sample, (None, 0)))(np.int8(labels), keys)
  return [np.asarray(x) for x in drawn]


@pytest.mark.parametrize('positives', [1, 8, 9, 40])
@pytest.mark.parametrize(
    'negatives, rest', [(0, 50), (8, 50), (60, 50), (3, 0)]
)
def test_counts_are_exact(positives, negatives, rest):
  """Up to 8 positives of 16, and negatives for the rest, as far as they go."""
  labels = np.repeat([1, 0, -1], [positives, negatives, rest])
  labels = np.random.default_rng(0).permutation(labels)
  indices, positive, valid = draw(labels, 16, 0.5, draws=5)
  assert indices.shape == (5, 16) and indices.dtype == np.int32
  assert ((indices >= 0) & (indices < len(labels))).all()
  taken = min(positives, 8)
  want = [1] * taken + [0] * min(negatives, 16 - taken)  # The positives first.
  for rows in indices:
    assert labels[rows[: len(want)]].tolist() == want
    assert len(set(rows[: len(want)])) == len(want)  # Each at most once.
  assert (valid == (np.arange(16) < len(want))).all()
  assert (positive == (np.arange(16) < taken)).all()


@pytest.mark.parametrize(
    'number, fraction, most', [(512, 0.25, 128), (7, 0.5, 3), (5, 1.0, 5)]
)
def test_positives_are_at_most_their_share(number, fraction, most):
  _, positive, valid = draw([1] * 600 + [0] * 600, number, fraction)
  assert positive.sum() == most and valid.all()


def test_all_subsets_are_equally_likely():
  """Two of 4 positives with two of 5 negatives: 60 samples, 100 of each."""
  labels = np.array([0, 1, -1, 1, 0, 0, 1, 0, 1, 0])
  indices, _, valid = draw(labels, 4, 0.5, draws=6000)
  counts = collections.Counter(tuple(sorted(row)) for row in indices)
  assert valid.all() and len(counts) == 60
  assert stats.chisquare([*counts.values()]).pvalue > 1e-3


def test_every_row_is_equally_likely_among_many():
  """Ten bins of 100,000 rows; 256 draws by each of 40 keys."""
  indices, _, valid = draw([0] * 100_000, 256, 0.5, draws=40)
  counts, _ = np.histogram(indices, 10, (0, 100_000))
  assert valid.all() and stats.chisquare(counts).pvalue > 1e-3


def test_the_key_decides():
  labels = np.random.default_rng(0).integers(-1, 2, 300)
  a, b, other = (draw(labels, 32, 0.25, seed=s)[0].tolist() for s in (1, 1, 2))
  assert a == b != other
