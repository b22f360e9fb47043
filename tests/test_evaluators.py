"""Top-k over masked batches."""

import numpy as np
import pytest

from awconv_jax.evaluators.top_k import TopK


def outputs(logits, label, mask, loss):
  values = np.array(logits, np.float32), np.array(label), np.array(mask)
  keys = 'logits', 'label', 'mask', 'loss'
  return dict(zip(keys, (*values, np.float32(loss)), strict=True))


@pytest.mark.parametrize('most', [1, 4])
def test_hits_and_loss_against_sorting(most):
  """One right class, or up to four, filled up with -1: a hit is any of them."""
  rng = np.random.default_rng(most)
  logits, label = rng.normal(size=(60, 12)), np.full((60, most), -1)
  for row, number in enumerate(rng.integers(most == 1, most + 1, 60)):
    label[row, :number] = rng.choice(12, number, replace=False)
  loss, mask = rng.random(60).astype(np.float32), rng.random(60) < 0.7
  given = label if most > 1 else label[:, 0]
  evaluator = TopK((1, 3, 20))
  for part in (slice(0, 20), slice(20, 60)):
    evaluator.update(outputs(logits[part], given[part], mask[part], loss[part]))
  order, metrics = np.argsort(-logits, axis=1)[mask], evaluator.compute()
  assert metrics['num_examples'] == mask.sum()
  for k in (1, 3, 20):
    hits = (order[:, :k, None] == label[mask][:, None]).any((1, 2))
    assert metrics[f'top{k}'] == hits.mean()
  assert metrics['loss'] == pytest.approx(loss[mask].mean(), rel=1e-6)


def test_equals_count_as_argmax_does_and_nan_is_no_hit():
  evaluator = TopK((1,))
  logits = [[1, 1], [1, 1], [np.nan, 0], [np.nan, np.nan]]
  mask, loss = [True, True, True, False], [1.0, 1.0, 1.0, np.nan]
  evaluator.update(outputs(logits, [0, 1, 0, 0], mask, loss))
  assert evaluator.compute() == {'top1': 1 / 3, 'loss': 1.0, 'num_examples': 3}


def test_nothing_to_count_is_an_error():
  with pytest.raises(ValueError, match='no image of the evaluation counts'):
    TopK().compute()
