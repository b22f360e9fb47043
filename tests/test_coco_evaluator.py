"""COCO's metrics: against pycocotools on exported files, and by hand."""

import json

import fake_coco
import jax
from jax.sharding import Mesh
import numpy as np
import oracle_coco
import pytest

from awconv_jax import data
from awconv_jax.evaluators import coco
from awconv_jax.train import loop as train_loop
from awconv_jax.train import step as train_step

IDS = (3, 1, 17, 90, 4)  # With gaps, and in no order.
CANVAS = (96, 128)
MOST = 6


def images(number=12, seed=0):
  """Returns rows with ground truth, crowds and images without any object.

  Every third image is empty; sizes, scales and numbers of objects vary.
  """
  rng = np.random.default_rng(seed)
  original = rng.integers(100, 700, (number, 2))
  scale = (np.array(CANVAS) / original).min(1, keepdims=True)
  size = np.maximum(np.rint(original * scale), 1)
  low = rng.random((number, MOST, 2)) * 0.6
  high = low + 0.03 + rng.random((number, MOST, 2)) ** 3 * (0.97 - low)
  per_side = np.tile(size[:, None, ::-1], 2)
  count = rng.integers(1, MOST + 1, (number, 1))
  valid = (np.arange(MOST) < count) & (np.arange(number)[:, None] % 3 > 0)
  return {
      'image_id': np.arange(number, dtype=np.int32) * 7 + 1000,
      'image_size': size.astype(np.float32),
      'original_size': original.astype(np.int32),
      'gt_boxes': (np.dstack([low, high]) * per_side).astype(np.float32),
      'gt_labels': rng.integers(0, len(IDS), (number, MOST)).astype(np.int32),
      'gt_valid': valid,
      'gt_crowd': valid & (rng.random((number, MOST)) < 0.2),
      'mask': np.ones(number, bool),
  }


def perfect(rows, seed=0):
  """Returns the ground truth as detections."""
  scores = np.random.default_rng(seed).random(rows['gt_valid'].shape)
  return rows | {
      'boxes': rows['gt_boxes'],
      'labels': rows['gt_labels'],
      'scores': scores.astype(np.float32),
      'valid': rows['gt_valid'],
  }


def noisy(rows, seed=1):
  """Returns detections near the objects and wrong ones, some of one score."""
  rng = np.random.default_rng(seed)
  near = perfect(rows)
  noise = rng.normal(0, 0.7, near['boxes'].shape).astype(np.float32)
  labels = near['labels'].copy()
  labels[rng.random(labels.shape) < 0.2] = 0
  wrong = np.roll(near['boxes'], 1, axis=0)
  found = {
      'boxes': np.concatenate([near['boxes'] + noise, wrong], axis=1),
      'labels': np.concatenate([labels, labels], axis=1),
      'scores': np.concatenate([near['scores'], near['scores']], axis=1),
      'valid': np.concatenate(
          [near['valid'], rng.random(labels.shape) < 0.5], 1
      ),
  }
  return rows | found


def pad(rows, number):
  """Returns rows filled up with the first ones again, which do not count."""
  take = np.resize(np.arange(len(rows['mask'])), number)
  padded = {name: array[take] for name, array in rows.items()}
  return padded | {'mask': np.arange(number) < len(rows['mask'])}


def batches(rows, size):
  for start in range(0, len(rows['mask']), size):
    part = {name: array[start : start + size] for name, array in rows.items()}
    yield pad(part, size)


def evaluator_of(rows, size=5, **options):
  evaluator = coco.CocoEvaluator(IDS, **options)
  for batch in batches(rows, size):
    evaluator.update(batch)
  return evaluator


def test_ground_truth_as_predictions_is_perfect():
  rows = images()
  # What the test is about is there.
  counted = rows['gt_valid'] & ~rows['gt_crowd']
  assert rows['gt_crowd'].any() and not rows['gt_valid'].any(1).all()
  assert set(rows['gt_labels'][counted]) == set(range(len(IDS)))
  evaluator = evaluator_of(perfect(rows))
  metrics = evaluator.compute()
  assert metrics.pop('num_images') == 12
  # One detection an image cannot find six objects of one category.
  assert 0 < metrics.pop('AR1') < 1
  # 2e-16 is added to what is divided by.
  one = pytest.approx(1, abs=1e-12)
  assert metrics == dict.fromkeys(metrics, one) and len(metrics) == 11
  assert evaluator.per_class() == dict.fromkeys(IDS, one)


def test_no_detections_are_zero_and_nothing_to_find_is_minus_one():
  rows = perfect(images())
  nothing = np.zeros_like(rows['valid'])
  evaluator = evaluator_of(rows | {'valid': nothing})
  assert evaluator.results() == []
  want = dict.fromkeys(coco.METRICS, 0.0) | {'num_images': 12}
  assert evaluator.compute() == want
  assert evaluator.per_class() == dict.fromkeys(IDS, 0.0)
  evaluator = evaluator_of(rows | {'gt_valid': nothing})
  assert len(evaluator.results()) > 0
  want = dict.fromkeys(coco.METRICS, -1.0) | {'num_images': 12}
  assert evaluator.compute() == want
  # Without the ground truth, as of a folder of images, there is none either.
  folder = {k: v for k, v in rows.items() if not k.startswith('gt_')}
  assert evaluator_of(folder).results() == evaluator.results()
  assert evaluator_of(folder).dataset() == evaluator.dataset()


@pytest.mark.parametrize('make', [perfect, noisy])
def test_equal_to_pycocotools_on_the_exported_files(make, tmp_path):
  evaluator = evaluator_of(make(images(20)), names=list('abcde'))
  paths = [tmp_path / f'{name}.json' for name in ('dataset', 'results')]
  for path in paths:
    exported = getattr(evaluator, path.stem)()
    path.write_text(json.dumps(exported, allow_nan=False))
  metrics = evaluator.compute()
  assert metrics.pop('num_images') == 20
  # The same but for the last bit of a mean.
  want = pytest.approx(oracle_coco.stats(*paths), abs=1e-12)
  assert list(metrics.values()) == want
  assert make is perfect or 0.1 < metrics['AP'] < 0.9
  names = {c['id']: c['name'] for c in evaluator.dataset()['categories']}
  assert names == dict(zip(IDS, 'abcde', strict=True))
  # The AP of one category is the AP of all, asked for this one alone.
  for category_id, value in evaluator.per_class().items():
    alone, *_ = oracle_coco.stats(*paths, category_id)
    assert value == pytest.approx(alone, abs=1e-12)


def test_a_file_that_is_read_and_fed_back_is_perfect(tmp_path):
  """By way of the canvas, and with the user's own file as the ground truth."""
  fake_coco.write(tmp_path, {'test': range(23)})
  section = fake_coco.config(f'coco_json:{tmp_path}', short_side=29)
  section.train_short_sides = (29,)
  rows = data.create(section, train=False, batch_size=4, seed=0)
  evaluator = coco.CocoEvaluator(rows.category_ids, rows.class_names)
  for batch in rows:
    scores = np.where(batch['gt_valid'], np.float32(0.5), 0)
    found = {'boxes': batch['gt_boxes'], 'labels': batch['gt_labels']}
    evaluator.update(
        batch | found | {'scores': scores, 'valid': batch['gt_valid']}
    )

  assert evaluator.compute()['AP'] == pytest.approx(1, abs=1e-12)
  # What is exported is what was read: against the file all is found, too.
  (tmp_path / 'results.json').write_text(json.dumps(evaluator.results()))
  path = tmp_path / 'annotations/instances_test.json'
  ap, *_ = oracle_coco.stats(path, tmp_path / 'results.json')
  assert ap == pytest.approx(1, abs=1e-12)
  written, exported = json.loads(path.read_text()), evaluator.dataset()
  areas, crowds = (
      [sorted(a[key] for a in d['annotations']) for d in (written, exported)]
      for key in ('area', 'iscrowd')
  )
  np.testing.assert_allclose(*areas, rtol=1e-5)
  assert crowds[0] == crowds[1] and any(crowds[0])


class _Echo:
  """A task whose prediction is what the batch brings."""

  def predict(self, variables, batch):
    del variables
    return batch


@pytest.mark.parametrize('devices', [1, 8])
def test_every_image_counts_once_on_any_devices_in_any_order(devices):
  rows = noisy(images(12))
  expected = evaluator_of(rows)
  order = np.random.default_rng(2).permutation(12)
  rows = {name: array[order] for name, array in rows.items()}
  mesh = Mesh(np.array(jax.devices()[:devices]), ('data',))
  evaluator = coco.CocoEvaluator(IDS)
  metrics = train_loop.evaluate(
      train_step.create_predict(_Echo(), mesh),
      {},
      batches(rows, 8),  # The second is half of rows seen before.
      evaluator,
      mesh,
  )
  assert metrics['num_images'] == 12
  assert metrics == expected.compute()
  assert evaluator.results() == expected.results()
  assert evaluator.dataset() == expected.dataset()


def one_image(**changes):
  """Returns one image of 200 x 100 on a canvas of half its height."""
  rows = {
      'image_id': np.int32([8]),
      'image_size': np.float32([[50, 80]]),
      'original_size': np.int32([[100, 200]]),
      'gt_boxes': np.float32([[[4, 5, 24, 25], [40, 5, 60, 25]]]),
      'gt_labels': np.int32([[2, 2]]),
      'gt_valid': np.array([[True, True]]),
      'gt_crowd': np.array([[False, False]]),
      'boxes': np.float32([[[4, 5, 24 + 2**-10, 25], [np.nan] * 4, [0] * 4]]),
      'scores': np.float32([[0.5, 1, 2]]),
      'labels': np.int32([[2, 2, -1]]),
      'valid': np.array([[True, True, False]]),
      'mask': np.array([True]),
  }
  return rows | changes


def test_boxes_are_in_pixels_of_the_file():
  evaluator = coco.CocoEvaluator(IDS)
  evaluator.update(one_image())
  assert evaluator.results() == [
      {
          'image_id': 8,
          'category_id': 17,
          'bbox': [10.0, 10.0, 50 + 2.5 * 2**-10, 40.0],
          'score': 0.5,
      }
  ]
  dataset = evaluator.dataset()
  assert dataset['images'] == [{'id': 8, 'height': 100, 'width': 200}]
  assert dataset['annotations'][0] == {
      'id': 1,
      'image_id': 8,
      'category_id': 17,
      'bbox': [10.0, 10.0, 50.0, 40.0],
      'area': 2000.0,
      'iscrowd': 0,
  }
  assert dataset['categories'][2] == {'id': 17, 'name': '17'}


def test_one_of_two_found_by_hand():
  """Precision is 1 up to recall .5, and so at 51 of 101 places."""
  evaluator = coco.CocoEvaluator(IDS)
  evaluator.update(one_image())
  metrics = evaluator.compute()
  assert metrics['AP'] == pytest.approx(51 / 101)
  assert metrics['AR100'] == metrics['ARm'] == 0.5
  assert metrics['APs'] == metrics['APl'] == -1
  by_id = dict.fromkeys(IDS, -1.0) | {17: pytest.approx(51 / 101)}
  assert evaluator.per_class() == by_id
  # The area of an object may be less than its box: the one found is small now.
  evaluator = coco.CocoEvaluator(IDS)
  evaluator.update(one_image(gt_area=np.float32([[1000, 2000]])))
  metrics = evaluator.compute()
  assert (metrics['APs'], metrics['APm']) == (pytest.approx(1), 0)


def test_crowds_are_neither_missed_nor_does_a_box_on_them_count():
  rows = one_image(gt_crowd=np.array([[False, True]]))
  on_the_crowd = [[40, 5, 50, 15], [50, 5, 60, 15], [50, 15, 60, 25]]
  found = {
      'boxes': np.float32([[[4, 5, 24, 25], *on_the_crowd]]),
      'scores': np.float32([[0.5, 0.9, 0.8, 0.7]]),
      'labels': np.int32([[2] * 4]),
      'valid': np.ones((1, 4), bool),
  }
  for number in (1, 4):  # Without detections of the crowd, and with them.
    evaluator = coco.CocoEvaluator(IDS)
    some = {name: array[:, :number] for name, array in found.items()}
    evaluator.update(rows | some)
    metrics = evaluator.compute()
    assert metrics['AP'] == pytest.approx(1) and metrics['AR100'] == 1
  # They would be wrong, were it one object.
  evaluator = coco.CocoEvaluator(IDS)
  evaluator.update(one_image() | found)
  assert evaluator.compute()['AP'] < 0.3


def test_every_call_leaves_what_was_collected_as_it_is():
  evaluator = evaluator_of(noisy(images()))
  dataset, results = evaluator.dataset(), evaluator.results()
  first = evaluator.compute(), evaluator.per_class()
  assert coco.score(dataset, results) == coco.score(dataset, results)
  assert (dataset, results) == (evaluator.dataset(), evaluator.results())
  assert (evaluator.compute(), evaluator.per_class()) == first
  # An update after that counts.
  evaluator.update(one_image())
  assert evaluator.compute() != first[0]
  assert evaluator.compute()['num_images'] == 13


def test_mistakes_name_their_place():
  evaluator = coco.CocoEvaluator(IDS)
  evaluator.update(one_image(mask=np.array([False])))
  with pytest.raises(ValueError, match='no image was added'):
    evaluator.compute()
  evaluator.update(one_image())
  with pytest.raises(ValueError, match='image_id 8 came twice'):
    evaluator.update(one_image())
