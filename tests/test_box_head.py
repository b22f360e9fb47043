"""The second stage against loops: samples, losses, detections, layouts."""

import functools

import jax
import jax.numpy as jnp
import naive_detection
import numpy as np
import pytest

from awconv_jax.models.detection import box_head, fpn, losses, rpn

CODER = box_head.RegionCoder()
CLASSES = 4
SIZE = np.array([40.0, 60.0], np.float32)
GT = np.array([[5, 5, 30, 25], [0, 0, 0, 0], [30, 8, 58, 38]], np.float32)
LABELS = np.array([3, 2, 0])
VALID = np.array([True, False, True])

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def random_boxes(number, seed=0):
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, 1, (number, 2)) * SIZE[::-1] * 0.6
  sides = rng.uniform(4, 24, (number, 2))
  return np.concatenate([corner, corner + sides], 1).astype(np.float32)


def proposals():
  """Near the ground truth and anywhere; some are not valid."""
  boxes = np.concatenate([GT[[0, 0, 2]] + 2, random_boxes(15)])
  return boxes, np.arange(len(boxes)) % 6 != 1


def sample(boxes, gt_valid=VALID):
  """Returns targets of up to 40 regions, which are all there are."""
  draw = functools.partial(
      losses.choose_targets,
      match=box_head.match_regions,
      sample=functools.partial(box_head.sample_labels, number=40, fraction=0.5),
      coder=CODER,
  )
  drawn = jax.jit(draw)(*boxes, GT, LABELS, gt_valid, jax.random.key(0))
  return jax.tree.map(np.asarray, drawn)


def test_regions_are_sampled_with_their_labels_and_deltas():
  boxes, valid = proposals()
  targets = sample((boxes, valid))
  drawn = targets.boxes[targets.valid]
  assert sorted(map(tuple, drawn)) == sorted(map(tuple, boxes[valid]))
  np.testing.assert_array_equal(drawn, boxes[targets.index[targets.valid]])
  for n, box in zip(np.flatnonzero(targets.valid), drawn, strict=True):
    overlaps = [naive_detection.iou(box, gt) for gt in GT]
    best = int(np.argmax(overlaps))
    assert targets.positive[n] == (overlaps[best] >= 0.5)
    if targets.positive[n]:
      assert targets.labels[n] == LABELS[best]
      deltas = naive_detection.encode(GT[best], box, CODER.weights)
      np.testing.assert_allclose(targets.deltas[n], deltas, atol=1e-4)
  assert 2 <= targets.positive.sum() < targets.valid.sum()


XAVIER = {  # Of (ways in, ways out).
    ways: (2 / sum(ways)) ** 0.5
    for ways in ((60, 24), (216, 216), (24, 64), (64, 64))
}


@pytest.mark.parametrize(
    'module, inputs, wanted',
    [
        (
            fpn.FPN(features=24),
            [{'c2': np.ones((1, 1, 1, 60))}, [None]],
            dict(lateral2=XAVIER[60, 24], output2=XAVIER[216, 216]),
        ),
        (
            rpn.RPNHead(anchors=3, features=40),
            [np.ones((1, 1, 1, 10))],
            dict(shared_conv=0.01, cls_logits=0.01, bbox_pred=0.01),
        ),
        (
            box_head.BoxHead(features=64),
            [np.ones((1, 2, 2, 6))],
            dict(fc6=XAVIER[24, 64], fc7=XAVIER[64, 64]),
        ),
        (
            box_head.BoxPredictor(CLASSES, 'last'),
            [np.ones((1, 100))],
            dict(cls_score=0.01, bbox_pred=0.001),
        ),
    ],
    ids=['pyramid', 'rpn', 'head', 'predictor'],
)
def test_first_values_are_as_spread_as_in_mmdetection(module, inputs, wanted):
  params = jax.jit(module.init)(jax.random.key(0), *inputs)['params']
  spreads = {name: np.std(own['kernel']) for name, own in params.items()}
  assert spreads == pytest.approx(wanted, rel=0.12)
  assert not any(np.any(own['bias']) for own in params.values())


def test_without_proposals_and_objects_there_is_no_region_and_no_loss():
  boxes, valid = proposals()
  nothing = np.zeros_like(valid)
  targets = sample((boxes, nothing), np.zeros_like(VALID))
  assert not targets.valid.any() and not targets.positive.any()

  def loss(*outputs):
    return sum(box_head.box_loss(*outputs, targets, beta=0).means())

  outputs = np.ones((40, CLASSES + 1)), np.ones((40, CLASSES, 4))
  value, grads = jax.value_and_grad(loss, (0, 1))(*outputs)
  assert value == 0 and all(not np.any(g) for g in grads)
  # Nor is there a detection.
  find = functools.partial(box_head.detections, coder=CODER)
  outputs = (x[: len(boxes)] for x in outputs)
  found = jax.jit(find)(*outputs, boxes, nothing, SIZE)
  assert not any(np.any(x) for x in found.values())


@pytest.mark.parametrize('beta', [0.0, 1 / 9])
def test_losses_are_those_of_the_loops(beta):
  targets = sample(proposals())
  valid, positive = targets.valid, targets.positive
  labels = np.where(positive, targets.labels, CLASSES)
  rng = np.random.default_rng(3)
  logits = rng.normal(size=(40, CLASSES + 1)).astype(np.float32)
  deltas = 0.3 * rng.normal(size=(40, CLASSES, 4)).astype(np.float32)

  def loss(deltas):
    return box_head.box_loss(logits, deltas, targets, beta=beta)

  rows = np.float64(logits[valid])
  classes = np.log(np.exp(rows).sum(1)) - np.choose(labels[valid], rows.T)
  found = deltas[positive, labels[positive]]
  boxes = naive_detection.box_losses(found, targets.deltas[positive], beta)
  want = classes.sum(), boxes, valid.sum()
  np.testing.assert_allclose(jax.jit(loss)(deltas), want, rtol=1e-5)
  # Of a positive only the box of its class is trained.
  grad = jax.grad(lambda deltas: loss(deltas).boxes)(deltas)
  trained = {tuple(at) for at in np.argwhere(np.any(grad, axis=-1)).tolist()}
  assert trained == {(n, labels[n]) for n in np.flatnonzero(positive)}


def naive_detections(logits, deltas, rois, valid, min_score, number, **options):
  """Every class by itself, and then the best of all."""
  scores = np.exp(np.float64(logits))
  scores /= scores.sum(-1, keepdims=True)
  found = []
  for c in range(CLASSES):
    some = valid & (scores[:, c] > min_score)
    arrays = scores[:, c], deltas[:, c], rois, some, CODER, SIZE
    rows = naive_detection.survivors(*arrays, **options)
    found += [(score, c, box) for score, box in rows]
  return sorted(found, key=lambda row: -row[0])[:number]


@pytest.mark.parametrize('number', [10, 200])
def test_detections_are_those_of_the_loops(number):
  rng = np.random.default_rng(5)
  rois, valid = random_boxes(30, seed=6), np.arange(30) % 7 != 3
  logits = 2 * rng.normal(size=(30, CLASSES + 1)).astype(np.float32)
  deltas = rng.normal(size=(30, CLASSES, 4)).astype(np.float32)
  deltas[:9, :, 2] -= 15  # Too thin.
  options = dict(min_score=0.1, threshold=0.3, number=number, min_size=2.0)
  find = functools.partial(box_head.detections, coder=CODER, **options)
  arrays = logits, deltas, rois, valid
  got = jax.jit(find)(*arrays, SIZE)
  want = naive_detections(*arrays, **options)
  count = len(want)
  scores, labels, boxes = map(np.array, zip(*want, strict=True))
  assert got['valid'].tolist() == [i < count for i in range(number)]
  np.testing.assert_array_equal(got['labels'][:count], labels)
  np.testing.assert_allclose(got['scores'][:count], scores, atol=1e-6)
  np.testing.assert_allclose(got['boxes'][:count], boxes, atol=1e-3)
  assert not got['boxes'][count:].any() and not got['scores'][count:].any()
  if number == 200:
    assert 20 < count < 100 and set(labels) == set(range(CLASSES))


@pytest.mark.parametrize(
    'module',
    [
        box_head.BoxPredictor(CLASSES, 'last', dtype=jnp.bfloat16),
        rpn.RPNHead(anchors=3, features=8, dtype=jnp.bfloat16),
    ],
)
def test_predictions_in_half_precision_are_not_rounded_to_it(module):
  """Else thousands would tie, and the first of them go first."""
  x = np.random.default_rng(0).normal(size=(1, 5, 6, 4))
  x = jnp.asarray(x, jnp.bfloat16)
  (logits, deltas, *_), _ = module.init_with_output(jax.random.key(0), x)
  for values in (logits, deltas):
    assert values.dtype == jnp.float32
    rounded = values.astype(jnp.bfloat16).astype(jnp.float32)
    assert np.mean(rounded != values) > 0.9
