"""Proposals and their losses against loops over anchors."""

import functools

import jax
import jax.numpy as jnp
import naive
import naive_detection
import numpy as np
import pytest

from awconv_jax.models.detection import losses, rpn
from awconv_jax.models.detection.presets import PRESETS
from awconv_jax.ops.anchors import Anchors
from awconv_jax.ops.boxes import Coder

CANVAS, SIZE = (32, 48), np.array([27.0, 41.0], np.float32)
LEVELS = Anchors(strides=(8, 16), scale=2.0).pyramid(CANVAS)
ANCHORS = np.concatenate(LEVELS)
CODER = Coder()
ALL = dict(number=2 * len(ANCHORS), fraction=0.5)
GT = np.array([[3, 4, 20, 19], [18, 6, 40, 26], [0, 0, 0, 0]], np.float32)
VALID = np.array([True, True, False])

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def outputs(seed=0):
  rng = np.random.default_rng(seed)
  logits = [rng.normal(size=len(a)).astype(np.float32) for a in LEVELS]
  deltas = [0.5 * rng.normal(size=(len(a), 4)) for a in LEVELS]
  deltas = [d.astype(np.float32) for d in deltas]
  # Some become far too large, some too thin to be kept.
  deltas[0][:5, 2] = 9
  deltas[0][5:30, 3] = -4
  return logits, deltas, [rng.uniform(size=len(a)) < 0.8 for a in LEVELS]


def proposer(**options):
  return functools.partial(rpn.propose, anchors=LEVELS, coder=CODER, **options)


def naive_proposals(logits, deltas, inside, candidates, number, **options):
  found = []
  for level, anchors in enumerate(LEVELS):
    order = np.argsort(-logits[level], kind='stable')
    order = [i for i in order if inside[level][i]][:candidates]
    found += naive_detection.survivors(
        naive.sigmoid(np.float64(logits[level][order])),
        *(deltas[level][order], anchors[order], np.ones(len(order), bool)),
        *(CODER, SIZE),
        **options,
    )
  return sorted(found, key=lambda row: -row[0])[:number]


@pytest.mark.parametrize('number, min_size', [(20, 0.0), (500, 4.0)])
def test_proposals_are_those_of_the_loops(number, min_size):
  arrays = outputs()
  options = dict(candidates=40, number=number, threshold=0.4, min_size=min_size)
  propose = proposer(train=False, **options)
  boxes, valid = jax.jit(propose)(*arrays, SIZE)
  want = naive_proposals(*arrays, **options)
  # Level two has fewer anchors than candidates.
  assert len(boxes) == min(number, 40 + len(LEVELS[1]))
  assert valid.tolist() == [i < len(want) for i in range(len(boxes))]
  assert 0 < len(want) < 76
  want = [box for _, box in want]
  np.testing.assert_allclose(boxes[: len(want)], want, atol=1e-3)


def test_no_gradient_flows_through_proposals():
  logits, deltas, inside = outputs()
  propose = proposer(train=True, train_candidates=9, train_number=9)

  def total(logits, deltas):
    boxes, _ = propose(logits, deltas, inside, SIZE)
    assert len(boxes) == 9
    return boxes.sum()

  value, grads = jax.jit(jax.value_and_grad(total, (0, 1)))(logits, deltas)
  assert value > 0 and all(not np.any(g) for g in jax.tree.leaves(grads))


def matching(preset):
  options = PRESETS[preset]
  matcher = rpn.match_anchors.keywords | options.get('anchor_matcher', {})
  return matcher, options.get('beta', 0.0)


def loss_of(deltas, logits, inside, valid, preset):
  matcher, beta = matching(preset)
  targets = losses.choose_targets(
      *(ANCHORS, inside, GT, np.arange(3), valid, jax.random.key(0)),
      match=functools.partial(rpn.match_anchors, **matcher),
      sample=functools.partial(rpn.sample_anchors, **ALL),
      coder=CODER,
  )
  return rpn.rpn_loss(jnp.asarray(logits), deltas, targets, beta=beta)


def naive_loss(deltas, logits, inside, valid, preset):
  """Sums over all anchors that are labelled, and their number."""
  matcher, beta = matching(preset)
  overlaps = naive_detection.ious(GT[valid], ANCHORS).reshape(-1, len(ANCHORS))
  # Thresholds may be hit exactly: as in float32.
  index, label = naive_detection.match(np.float32(overlaps * inside), **matcher)
  positive = inside & (label == 1)
  rows = inside & (label >= 0)
  sign = np.where(label[rows] == 1, -1, 1)
  classes = np.log1p(np.exp(sign * np.float64(logits[rows]))).sum()
  targets = [
      naive_detection.encode(GT[index[a]], ANCHORS[a], [1] * 4)
      for a in np.flatnonzero(positive)
  ]
  found = np.reshape(deltas[positive], (-1, 4))
  boxes = naive_detection.box_losses(found, np.reshape(targets, (-1, 4)), beta)
  assert (positive.sum() >= 2) == valid.any()
  return classes, boxes, rows.sum()


@pytest.mark.parametrize('valid', [VALID, ~VALID & False], ids=['two', 'none'])
@pytest.mark.parametrize('preset', sorted(PRESETS))
def test_losses_are_those_of_the_loops(preset, valid):
  logits, deltas, inside = (np.concatenate(x) for x in outputs())
  arrays = jnp.asarray(deltas), logits, inside, valid, preset
  want = naive_loss(*arrays)
  np.testing.assert_allclose(loss_of(*arrays), want, rtol=1e-4)


def test_the_head_gives_rows_columns_and_then_anchors():
  rng = np.random.default_rng(0)
  x, sizes = rng.normal(size=(2, 3, 4, 5)), jnp.array([[1, 2], [3, 4]])
  x = x.astype(np.float32)
  head = rpn.RPNHead(anchors=3, features=6)
  params = jax.jit(head.init)(jax.random.key(0), x)
  params = jax.tree.map(lambda p: p + 0.1, params)  # Biases, too.
  logits, deltas, inside = head.apply(params, x, sizes)
  x[0, 1:], x[0, :, 2:] = 0, 0
  conv, params = naive_detection.conv, params['params']
  hidden = np.maximum(conv(params['shared_conv'], x), 0)
  want = conv(params['cls_logits'], hidden).reshape(2, 36)
  np.testing.assert_allclose(logits, want, rtol=1e-4)
  want = conv(params['bbox_pred'], hidden).reshape(2, 36, 4)
  np.testing.assert_allclose(deltas, want, rtol=1e-4)
  # Of the first image one row and two columns are no padding.
  cells = inside.reshape(2, 3, 4, 3)
  assert cells[1].all() and cells[0, 0, :2].all() and cells[0].sum() == 6
