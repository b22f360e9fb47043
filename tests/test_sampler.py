"""Samples of anchors: exact counts, uniform draws, and what a key decides."""

import collections
import functools

import jax
import numpy as np
import pytest
from scipy import stats

from awconv_jax.ops import sampler

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def draw(labels, *, seed=0, draws=1, **options):
  """Samples of the same labels by as many keys, as NumPy arrays."""
  sample = functools.partial(sampler.sample, **options)
  keys = jax.random.split(jax.random.key(seed), draws)
  drawn = jax.jit(jax.vmap(sample, (None, 0)))(np.int8(labels), keys)
  return [np.asarray(x) for x in drawn]


@pytest.mark.parametrize('positives', [0, 1, 7, 8, 9, 40])
@pytest.mark.parametrize('negatives', [0, 3, 8, 9, 60])
def test_counts_are_exact(positives, negatives):
  """Up to 8 positives of 16, and negatives for the rest, as far as they go."""
  rng = np.random.default_rng(0)
  labels = [1] * positives + [0] * negatives + [-1] * (110 - positives)
  labels = rng.permutation(labels + [2] * (90 - negatives))
  indices, positive, valid = draw(labels, draws=5, number=16, fraction=0.5)
  assert indices.shape == positive.shape == valid.shape == (5, 16)
  assert indices.dtype == np.int32
  assert ((indices >= 0) & (indices < len(labels))).all()
  taken = min(positives, 8)
  filled = min(negatives, 16 - taken)
  for rows, is_positive, is_valid in zip(indices, positive, valid, strict=True):
    got = labels[rows[is_valid]]
    want = [1] * taken + [0] * filled
    assert got.tolist() == want  # The positives first.
    assert is_valid.tolist() == [True] * len(want) + [False] * (16 - len(want))
    np.testing.assert_array_equal(is_positive, np.arange(16) < taken)
    assert len(set(rows[is_valid])) == len(want)  # Each at most once.


@pytest.mark.parametrize(
    'number, fraction, most',
    [(256, 0.5, 128), (512, 0.25, 128), (7, 0.5, 3), (9, 0.0, 0), (5, 1.0, 5)],
)
def test_positives_are_at_most_their_share(number, fraction, most):
  labels = [1] * 600 + [0] * 600
  options = dict(number=number, fraction=fraction)
  _, positive, valid = draw(labels, **options)
  assert positive.sum() == most and valid.all()
  # Of positives alone there are no more of them, and nothing else.
  _, positive, valid = draw([1] * 600, **options)
  assert positive.sum() == valid.sum() == most


def test_more_wanted_than_there_are_rows():
  indices, positive, valid = draw([0, 1, -1], number=8, fraction=0.5)
  assert indices[valid].tolist() == [1, 0]
  assert positive.sum() == 1 and valid.sum() == 2
  assert ((indices >= 0) & (indices < 3)).all()


def test_all_subsets_are_equally_likely():
  """Two of 4 positives with two of 5 negatives: 60 samples, 100 of each."""
  labels = np.array([0, 1, -1, 1, 0, 0, 1, 0, 1, 0])
  indices, _, valid = draw(labels, draws=6000, number=4, fraction=0.5)
  assert valid.all()
  counts = collections.Counter(tuple(sorted(row)) for row in indices)
  assert len(counts) == 60
  assert stats.chisquare([*counts.values()]).pvalue > 1e-3


def test_every_row_is_equally_likely_among_many():
  """Ten bins of 100,000 rows; 256 draws by each of 40 keys."""
  indices, _, valid = draw([0] * 100_000, draws=40, number=256, fraction=0.5)
  assert valid.all()
  counts, _ = np.histogram(indices, 10, (0, 100_000))
  assert stats.chisquare(counts).pvalue > 1e-3


def test_the_key_decides():
  labels = np.random.default_rng(0).integers(-1, 2, 300)
  options = dict(number=32, fraction=0.25)
  one, again, other = (
      draw(labels, seed=s, **options)[0].tolist() for s in (1, 1, 2)
  )
  assert one == again != other
  alone = sampler.sample(
      labels, jax.random.split(jax.random.key(1), 1)[0], **options
  )
  assert alone[0].tolist() == one[0]
