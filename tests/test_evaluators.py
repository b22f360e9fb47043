"""Top-k over masked batches."""

import numpy as np
import pytest

from awconv_jax.evaluators.top_k import TopK


def outputs(logits, label, mask=None, loss=None):
  n = len(label)
  return {
      'logits': np.array(logits, np.float32),
      'label': np.array(label),
      'mask': np.ones(n, bool) if mask is None else np.array(mask),
      'loss': np.ones(n, np.float32) if loss is None else np.array(loss),
  }


def test_hits_and_loss_against_sorting():
  rng = np.random.default_rng(0)
  logits, label = rng.normal(size=(50, 10)), rng.integers(10, size=50)
  loss, mask = rng.random(50).astype(np.float32), rng.random(50) < 0.7
  evaluator = TopK((1, 3))
  for part in (slice(0, 20), slice(20, 50)):
    evaluator.update(outputs(logits[part], label[part], mask[part], loss[part]))
  order = np.argsort(-logits, axis=1)[mask]
  own = label[mask][:, None]
  metrics = evaluator.compute()
  assert metrics['num_examples'] == mask.sum()
  assert metrics['top1'] == (order[:, :1] == own).any(1).mean()
  assert metrics['top3'] == (order[:, :3] == own).any(1).mean()
  assert metrics['loss'] == pytest.approx(loss[mask].mean(), rel=1e-6)


def test_equals_count_as_argmax_does_and_nan_is_no_hit():
  evaluator = TopK((1,))
  logits = [[1, 1], [1, 1], [np.nan, 0], [np.nan, np.nan]]
  mask, loss = [True, True, True, False], [1.0, 1.0, 1.0, np.nan]
  evaluator.update(outputs(logits, [0, 1, 0, 0], mask, loss))
  assert evaluator.compute() == {'top1': 1 / 3, 'loss': 1.0, 'num_examples': 3}


def test_a_hit_is_any_of_several_right_classes():
  rng = np.random.default_rng(1)
  logits, label = rng.normal(size=(60, 12)), np.full((60, 4), -1)
  for row, number in zip(label, rng.integers(1, 5, 60), strict=True):
    row[:number] = rng.choice(12, number, replace=False)
  evaluator = TopK((1, 3))
  evaluator.update(outputs(logits, label))
  order, metrics = np.argsort(-logits, axis=1), evaluator.compute()
  for k in (1, 3):
    hits = (order[:, :k, None] == label[:, None]).any((1, 2))
    assert metrics[f'top{k}'] == hits.mean()


def test_padding_is_never_a_hit_and_rows_of_it_are_masked():
  evaluator = TopK((1, 5))
  # The last class, which an index of -1 means in numpy, is the best one; and
  # of few classes not all are hits.
  logits = [[0, 1], [0, 1], [0, 1], [np.nan, 0]]
  label = [[0, -1], [-1, 1], [-1, -1], [0, -1]]
  evaluator.update(outputs(logits, label, [True, True, False, True]))
  want = {'top1': 1 / 3, 'top5': 2 / 3, 'loss': 1.0, 'num_examples': 3}
  assert evaluator.compute() == want


def test_nothing_to_count_is_an_error():
  with pytest.raises(ValueError, match='no image of the evaluation counts'):
    TopK().compute()
