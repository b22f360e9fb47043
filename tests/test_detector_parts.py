"""Pyramid, proposals and second stage of a detector against loops."""

import functools

import jax
import jax.numpy as jnp
import naive
import naive_detection
from naive_detection import conv
import numpy as np
import pytest
import random_values

from awconv_jax.models.detection import box_head, fpn, losses, rpn
from awconv_jax.models.detection.presets import PRESETS
from awconv_jax.ops.anchors import Anchors
from awconv_jax.ops.boxes import Coder
from awconv_jax.ops.sampler import sample

KEY = jax.random.key(0)
STAGES = {'c2': (9, 14, 3), 'c3': (5, 7, 4), 'c4': (3, 4, 5)}
PYRAMID, NONE = fpn.FPN(features=6), [None] * 3
CANVAS, SIZE = (32, 48), np.array([27.0, 41.0], np.float32)
LEVELS = Anchors(strides=(8, 16), scale=2.0).pyramid(CANVAS)
PROPOSE = functools.partial(rpn.propose, anchors=LEVELS, coder=Coder())
GT = np.array([[3, 4, 20, 19], [4, 5, 21, 20], [18, 6, 40, 26]], np.float32)
CLASSES, LABELS, VALID = 4, np.array([3, 2, 0]), np.array([True, False, True])

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def draw(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {
      name: rng.normal(size=(2, *shape)).astype(np.float32)
      for name, shape in shapes.items()
  }


@pytest.fixture
def variables():
  init = jax.eval_shape(PYRAMID.init, KEY, draw(STAGES), NONE)
  return random_values.like(init)


def test_levels_are_those_of_the_loops_for_odd_sizes_too(variables):
  stages, params = draw(STAGES), variables['params']
  got = jax.jit(PYRAMID.apply)(variables, stages, NONE)
  want, above = {}, None
  for stage in (4, 3, 2):
    x = conv(params[f'lateral{stage}'], stages[f'c{stage}'])
    if above is not None:
      for i, j in np.ndindex(x.shape[1:3]):
        x[:, i, j] += above[:, i // 2, j // 2]
    above = x
    want[f'p{stage}'] = conv(params[f'output{stage}'], x)
  want['p5'] = want['p4'][:, ::2, ::2]
  assert list(got) == sorted(want)
  for name, level in want.items():
    np.testing.assert_allclose(got[name], level, atol=1e-4)


def test_a_padded_image_has_the_levels_it_has_alone(variables):
  alone = draw({'c2': (6, 9, 3), 'c3': (3, 5, 4), 'c4': (2, 3, 5)})
  # Whatever the padding holds; the second image fills its canvas.
  padded = draw(STAGES, seed=2)
  for name, x in alone.items():
    padded[name][0] = np.nan
    padded[name][0, : x.shape[1], : x.shape[2]] = x[0]
  sizes = [-(-jnp.array([[24, 36], [36, 56]]) // s) for s in (4, 8, 16)]
  want = PYRAMID.apply(variables, alone, NONE)
  got = PYRAMID.apply(variables, padded, sizes)
  full = PYRAMID.apply(variables, {n: x[1:] for n, x in padded.items()}, NONE)
  for name, level in want.items():
    _, height, width, _ = level.shape
    cut = got[name][0, :height, :width]
    np.testing.assert_allclose(cut, level[0], atol=1e-5)
    np.testing.assert_allclose(got[name][1], full[name][0], atol=1e-5)


def test_the_head_gives_rows_columns_and_then_anchors():
  x, sizes = draw({'x': (3, 4, 5)})['x'], jnp.array([[1, 2], [3, 4]])
  head = rpn.RPNHead(anchors=3, features=6)
  params = jax.jit(head.init)(KEY, x)
  params = jax.tree.map(lambda p: p + 0.1, params)  # Biases, too.
  logits, deltas, inside = head.apply(params, x, sizes)
  x[0, 1:], x[0, :, 2:] = 0, 0
  params = params['params']
  hidden = np.maximum(conv(params['shared_conv'], x), 0)
  want = conv(params['cls_logits'], hidden).reshape(2, 36)
  np.testing.assert_allclose(logits, want, rtol=1e-4)
  want = conv(params['bbox_pred'], hidden).reshape(2, 36, 4)
  np.testing.assert_allclose(deltas, want, rtol=1e-4)
  # Of the first image one row and two columns are no padding.
  cells = inside.reshape(2, 3, 4, 3)
  assert cells[1].all() and cells[0, 0, :2].all() and cells[0].sum() == 6


def xavier(*ways):
  return (2 / sum(ways)) ** 0.5


@pytest.mark.parametrize(
    'module, inputs, wanted',
    [
        (
            fpn.FPN(features=24),
            [{'c2': np.ones((1, 1, 1, 60))}, [None]],
            dict(lateral2=xavier(60, 24), output2=xavier(216, 216)),
        ),
        (
            rpn.RPNHead(anchors=3, features=40),
            [np.ones((1, 1, 1, 10))],
            dict(shared_conv=0.01, cls_logits=0.01, bbox_pred=0.01),
        ),
        (
            box_head.BoxHead(features=64),
            [np.ones((1, 2, 2, 6))],
            dict(fc6=xavier(24, 64), fc7=xavier(64, 64)),
        ),
        (
            box_head.BoxPredictor(CLASSES, 'last'),
            [np.ones((1, 100))],
            dict(cls_score=0.01, bbox_pred=0.001),
        ),
    ],
)
def test_first_values_are_as_spread_as_in_mmdetection(module, inputs, wanted):
  params = jax.jit(module.init)(KEY, *inputs)['params']
  spreads = {name: np.std(own['kernel']) for name, own in params.items()}
  assert spreads == pytest.approx(wanted, rel=0.12)
  assert not any(np.any(own['bias']) for own in params.values())


@pytest.mark.parametrize(
    'module',
    [
        box_head.BoxPredictor(CLASSES, 'last', dtype=jnp.bfloat16),
        rpn.RPNHead(anchors=3, features=8, dtype=jnp.bfloat16),
    ],
)
def test_predictions_in_half_precision_are_not_rounded_to_it(module):
  """Else thousands would tie, and the first of them go first."""
  x = jnp.asarray(draw({'x': (5, 6, 4)})['x'], jnp.bfloat16)
  (logits, deltas, *_), _ = module.init_with_output(KEY, x)
  for values in (logits, deltas):
    assert values.dtype == jnp.float32
    rounded = values.astype(jnp.bfloat16).astype(jnp.float32)
    assert np.mean(rounded != values) > 0.9


def of_anchors():
  """Returns logits, deltas and what is inside, by level."""
  rng = np.random.default_rng(0)
  logits = [rng.normal(size=len(a)).astype(np.float32) for a in LEVELS]
  deltas = [0.5 * rng.normal(size=(len(a), 4)) for a in LEVELS]
  deltas = [d.astype(np.float32) for d in deltas]
  # Some become far too large, some too thin to be kept.
  deltas[0][:5, 2] = 9
  deltas[0][5:30, 3] = -4
  return logits, deltas, [rng.uniform(size=len(a)) < 0.8 for a in LEVELS]


def of_regions():
  """Returns logits, deltas, regions near the truth and anywhere, and valid."""
  rng = np.random.default_rng(5)
  corner = rng.uniform(0, 0.6, (27, 2)) * SIZE[::-1]
  boxes = np.concatenate([corner, corner + rng.uniform(4, 20, (27, 2))], 1)
  boxes = np.float32(np.concatenate([GT[[0, 0, 2]] + 2, boxes]))
  logits = 2 * rng.normal(size=(30, CLASSES + 1)).astype(np.float32)
  deltas = rng.normal(size=(30, CLASSES, 4)).astype(np.float32)
  return logits, deltas, boxes, np.arange(30) % 7 != 3


@pytest.mark.parametrize('gt_valid', [VALID, VALID & False])
@pytest.mark.parametrize('preset', sorted(PRESETS))
@pytest.mark.parametrize('stage', ['anchors', 'regions'])
def test_losses_are_those_of_the_loops(stage, preset, gt_valid):
  options = PRESETS[preset]
  if stage == 'anchors':
    logits, deltas, inside = (np.concatenate(x) for x in of_anchors())
    boxes, coder = np.concatenate(LEVELS), Coder()
    match = functools.partial(
        rpn.match_anchors, **options.get('anchor_matcher', {})
    )
  else:
    logits, deltas, boxes, inside = of_regions()
    coder, match = box_head.RegionCoder(), box_head.match_regions
  number, beta = len(boxes), options.get('beta', 0.0)
  targets = losses.choose_targets(
      *(boxes, inside, GT, LABELS, gt_valid, KEY),
      match=match,
      # All of them.
      sample=functools.partial(sample, number=2 * number, fraction=0.5),
      coder=coder,
  )
  truth, labels = GT[gt_valid], LABELS[gt_valid]
  overlaps = naive_detection.ious(truth, boxes).reshape(-1, number) * inside
  # Thresholds may be hit exactly: as in float32.
  index, label = naive_detection.match(np.float32(overlaps), **match.keywords)
  rows = np.flatnonzero(inside & (label >= 0))
  positive = np.flatnonzero(inside & (label == 1))
  assert sorted(targets.index[targets.valid]) == list(rows)
  assert (len(positive) >= 2) == gt_valid.any()
  if stage == 'anchors':
    sign = np.where(label[rows] == 1, -1, 1)
    classes, found = np.log1p(np.exp(sign * np.float64(logits[rows]))), deltas
    got = rpn.rpn_loss(
        jnp.asarray(logits), jnp.asarray(deltas), targets, beta=beta
    )
  else:
    of = np.full(number, CLASSES)
    of[positive] = labels[index[positive]]
    scores = np.exp(np.float64(logits))
    classes = -np.log(scores[rows, of[rows]] / scores[rows].sum(1))
    found = deltas[np.arange(number), of % CLASSES]
    arrays = logits[targets.index], deltas[targets.index], targets
    got = box_head.box_loss(*arrays, beta=beta)
  wanted = [
      naive_detection.encode(truth[index[a]], boxes[a], coder.weights)
      for a in positive
  ]
  wanted = np.reshape(wanted, (-1, 4))
  off = naive_detection.box_losses(found[positive], wanted, beta)
  np.testing.assert_allclose(got, (classes.sum(), off, len(rows)), rtol=1e-4)


@pytest.mark.parametrize('number, min_size', [(20, 0.0), (500, 4.0)])
def test_proposals_are_those_of_the_loops(number, min_size):
  logits, deltas, inside = arrays = of_anchors()
  options = dict(threshold=0.4, min_size=min_size)
  propose = functools.partial(PROPOSE, candidates=40, number=number, **options)
  boxes, valid = jax.jit(functools.partial(propose, train=False))(*arrays, SIZE)
  want = []
  for level, anchors in enumerate(LEVELS):
    order = np.argsort(-logits[level], kind='stable')
    order = [i for i in order if inside[level][i]][:40]
    want += naive_detection.survivors(
        naive.sigmoid(np.float64(logits[level][order])),
        *(deltas[level][order], anchors[order], np.ones(len(order), bool)),
        *(Coder(), SIZE),
        **options,
    )
  want = [box for _, box in sorted(want, key=lambda row: -row[0])[:number]]
  # Level two has fewer anchors than candidates.
  assert len(boxes) == min(number, 40 + len(LEVELS[1]))
  assert valid.tolist() == [i < len(want) for i in range(len(boxes))]
  assert 0 < len(want) < 76
  np.testing.assert_allclose(boxes[: len(want)], want, atol=1e-3)


def test_no_gradient_flows_through_proposals():
  logits, deltas, inside = of_anchors()
  propose = functools.partial(PROPOSE, train_candidates=9, train_number=9)

  def total(logits, deltas):
    boxes, _ = propose(logits, deltas, inside, SIZE, train=True)
    assert len(boxes) == 9
    return boxes.sum()

  value, grads = jax.jit(jax.value_and_grad(total, (0, 1)))(logits, deltas)
  assert value > 0 and all(not np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('number', [0, 10, 200])
def test_detections_are_those_of_the_loops(number):
  logits, deltas, rois, valid = of_regions()
  deltas[:9, :, 2] -= 15  # Too thin.
  valid &= number > 0
  coder, number = box_head.RegionCoder(), number or 10
  options = dict(threshold=0.3, min_size=2.0)
  find = functools.partial(box_head.detections, coder=coder, min_score=0.1)
  find = functools.partial(find, number=number, **options)
  got = jax.jit(find)(logits, deltas, rois, valid, SIZE)
  scores = np.exp(np.float64(logits))
  scores /= scores.sum(-1, keepdims=True)
  want = []
  for c in range(CLASSES):
    some = valid & (scores[:, c] > 0.1)
    arrays = scores[:, c], deltas[:, c], rois, some, coder, SIZE
    rows = naive_detection.survivors(*arrays, **options)
    want += [(score, c, box) for score, box in rows]
  want = sorted(want, key=lambda row: -row[0])[:number]
  count = len(want)
  assert got['valid'].tolist() == [i < count for i in range(number)]
  for n, (score, label, box) in enumerate(want):
    assert got['labels'][n] == label
    np.testing.assert_allclose(got['scores'][n], score, atol=1e-6)
    np.testing.assert_allclose(got['boxes'][n], box, atol=1e-3)
  assert not got['boxes'][count:].any() and not got['scores'][count:].any()
  if number == 200:
    assert 10 < count < 100 and {row[1] for row in want} == set(range(CLASSES))
