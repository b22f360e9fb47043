"""Top-k accuracy and mean loss over every example, counted once."""

from collections.abc import Mapping, Sequence

import numpy as np

from awconv_jax.errors import InputError

# The rank of what is no hit for any k, more than the classes included.
_NEVER = np.iinfo(np.int64).max


class TopK:
  """Accumulates top-k hits and losses; padded rows are left out.

  Args:
    ks: the k of each accuracy.
  """

  def __init__(self, ks: Sequence[int] = (1, 5)):
    self._hits = dict.fromkeys(ks, 0)
    self._loss = 0.0
    self._count = 0

  def update(self, outputs: Mapping[str, np.ndarray]) -> None:
    """Adds a batch.

    Outputs are logits float [B, classes], label int [B], or [B, L] where
    several are right, filled up with -1 (a hit is any of them), loss float [B],
    and mask bool [B], False for rows that do not count.
    """
    mask = np.asarray(outputs['mask'], bool)
    logits = np.asarray(outputs['logits'])[mask]
    label = np.asarray(outputs['label'])[mask]
    if label.ndim == 1:
      label = label[:, None]
    rank = np.min([_rank(logits, column) for column in label.T], axis=0)
    for k in self._hits:
      self._hits[k] += int(np.sum(rank < k))
    self._loss += float(np.sum(outputs['loss'], where=mask, dtype=np.float64))
    self._count += int(mask.sum())

  def compute(self) -> dict[str, float]:
    """Returns 'top1' ... as fractions, the mean 'loss' and 'num_examples'.

    Raises:
      InputError: nothing was added.
    """
    if not self._count:
      raise InputError(
          'no image of the evaluation counts: all are unreadable or without a '
          'label'
      )
    metrics = {f'top{k}': hits / self._count for k, hits in self._hits.items()}
    loss = self._loss / self._count
    return metrics | {'loss': loss, 'num_examples': self._count}


def _rank(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Returns how many classes come before the label's, int [B].

  Equal logits are ranked by class, as argmax does; a NaN, or a label of -1,
  is behind all.
  """
  logit = np.take_along_axis(logits, label[:, None], axis=1)
  before = np.arange(logits.shape[1]) < label[:, None]
  rank = np.sum((logits > logit) | ((logits == logit) & before), axis=1)
  rank[~np.isfinite(logits).all(axis=1) | (label < 0)] = _NEVER
  return rank
