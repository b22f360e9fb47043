"""Samples of anchors: exact counts, uniform draws, and what a key decides."""

import collections
import functools

import jax
import numpy as np
import pytest
from scipy import stats

from awconv_jax.ops import sampler

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def draw(labels, number, fraction, *, seed=0, draws=1):
  """Samples of the same labels by as many keys, as NumPy arrays."""
  sample = functools.partial(sampler.sample, number=number, fraction=fraction)
  keys = jax.random.split(jax.random.key(seed), draws)
  drawn = jax.jit(jax.vmap(sample, (None, 0)))(np.int8(labels), keys)
  return [np.asarray(x) for x in drawn]


@pytest.mark.parametrize('positives', [0, 7, 8, 9, 40])
@pytest.mark.parametrize('negatives', [0, 8, 9, 60])
def test_counts_are_exact(positives, negatives):
  """Up to 8 positives of 16, and negatives for the rest, as far as they go."""
  labels = [1] * positives + [0] * negatives + [-1] * (110 - positives)
  labels += [2] * (90 - negatives)
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
    'number, fraction, most',
    [(256, 0.5, 128), (512, 0.25, 128), (7, 0.5, 3), (9, 0.0, 0), (5, 1.0, 5)],
)
def test_positives_are_at_most_their_share(number, fraction, most):
  _, positive, valid = draw([1] * 600 + [0] * 600, number, fraction)
  assert positive.sum() == most and valid.all()
  # Of positives alone there are no more of them, and nothing else.
  _, positive, valid = draw([1] * 600, number, fraction)
  assert positive.sum() == valid.sum() == most


def test_more_wanted_than_there_are_rows():
  indices, positive, valid = draw([0, 1, -1], 8, 0.5)
  assert indices[valid].tolist() == [1, 0] and positive.sum() == 1
  assert ((indices >= 0) & (indices < 3)).all()


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
  one, again, other = (
      draw(labels, 32, 0.25, seed=s)[0].tolist() for s in (1, 1, 2)
  )
  assert one == again != other
