"""COCO's metrics: against pycocotools on exported files, and by hand."""

import json
import types

import fake_coco
import numpy as np
import oracle_coco
import pytest

from awconv_jax import data
from awconv_jax.evaluators import coco
from awconv_jax.train import loop as train_loop
from awconv_jax.train import partition
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


def perfect(rows):
  """Returns the ground truth as detections."""
  scores = np.random.default_rng(0).random(rows['gt_valid'].shape)
  found = {name: rows[f'gt_{name}'] for name in ('boxes', 'labels', 'valid')}
  return rows | found | {'scores': scores.astype(np.float32)}


def noisy(rows):
  """Returns detections near the objects and wrong ones, some of one score."""
  rng = np.random.default_rng(1)
  near = perfect(rows)
  noise = rng.normal(0, 0.7, near['boxes'].shape).astype(np.float32)
  labels = np.where(rng.random(near['labels'].shape) < 0.2, 0, near['labels'])
  wrong = {'boxes': np.roll(near['boxes'], 1, axis=0), 'labels': labels}
  wrong |= {'scores': near['scores'], 'valid': rng.random(labels.shape) < 0.5}
  near |= {'boxes': near['boxes'] + noise, 'labels': labels}
  return near | {k: np.concatenate([near[k], wrong[k]], axis=1) for k in wrong}


def batches(rows, size):
  """Yields batches, filled up with the first rows again, which do not count."""
  number = len(rows['mask'])
  for take in np.arange(-(-number // size) * size).reshape(-1, size):
    batch = {name: array[take % number] for name, array in rows.items()}
    yield batch | {'mask': take < number}


def evaluator_of(rows, **options):
  evaluator = coco.CocoEvaluator(IDS, **options)
  for batch in batches(rows, 5):
    evaluator.update(batch)
  return evaluator


def test_ground_truth_as_predictions_is_perfect():
  rows = images()
  assert rows['gt_crowd'].any() and not rows['gt_valid'].any(1).all()
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
  # Without the ground truth, as of a folder of images, there is none either.
  folder = {k: v for k, v in rows.items() if not k.startswith('gt_')}
  for without, want in ((rows | {'valid': nothing}, 0.0), (folder, -1.0)):
    evaluator = evaluator_of(without)
    scores = dict.fromkeys(coco.METRICS, want)
    assert evaluator.compute() == scores | {'num_images': 12}
    assert evaluator.per_class() == dict.fromkeys(IDS, want)
    assert (evaluator.results() == []) == (want == 0)
  empty = evaluator_of(rows | {'gt_valid': nothing})
  assert empty.dataset() == evaluator.dataset()


def test_equal_to_pycocotools_on_the_exported_files(tmp_path):
  evaluator = evaluator_of(noisy(images(20)), names=list('abcde'))
  paths = [tmp_path / 'dataset', tmp_path / 'results']
  for path in paths:
    exported = getattr(evaluator, path.name)()
    path.write_text(json.dumps(exported, allow_nan=False))
  metrics = evaluator.compute()
  assert metrics.pop('num_images') == 20 and 0.1 < metrics['AP'] < 0.9
  # The same but for the last bit of a mean.
  want = pytest.approx(oracle_coco.stats(*paths), abs=1e-12)
  assert list(metrics.values()) == want
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
    evaluator.update(perfect(batch))
  assert evaluator.compute()['AP'] == pytest.approx(1, abs=1e-12)
  # What is exported is what was read: against the file all is found, too.
  path = tmp_path / 'annotations/instances_test.json'
  results = tmp_path / 'results.json'
  results.write_text(json.dumps(evaluator.results()))
  assert oracle_coco.stats(path, results)[0] == pytest.approx(1, abs=1e-12)
  written, exported = json.loads(path.read_text()), evaluator.dataset()
  areas, crowds = (
      [sorted(a[key] for a in d['annotations']) for d in (written, exported)]
      for key in ('area', 'iscrowd')
  )
  np.testing.assert_allclose(*areas, rtol=1e-5)
  assert crowds[0] == crowds[1] and any(crowds[0])


def test_every_image_counts_once_on_any_devices_in_any_order():
  rows = noisy(images(12))
  expected = evaluator_of(rows)
  order = np.random.default_rng(2).permutation(12)
  rows = {name: array[order] for name, array in rows.items()}
  mesh, evaluator = partition.create_mesh(), coco.CocoEvaluator(IDS)
  # A task whose prediction is what the batch brings.
  echo = types.SimpleNamespace(predict=lambda variables, batch: batch)
  predict = train_step.create_predict(echo, mesh)
  # The second batch is half of rows seen before.
  for _, out in train_loop.predictions(predict, {}, batches(rows, 8), mesh):
    evaluator.update(out)
  metrics = evaluator.compute()
  assert metrics == expected.compute() and metrics['num_images'] == 12
  assert evaluator.results() == expected.results()
  assert evaluator.dataset() == expected.dataset()


def one_image(**changes):
  """Returns one image of 200 x 100 on a canvas of half its height."""
  on, off = np.array([[True, True]]), np.array([[False, False]])
  box = [4, 5, 24 + 2**-10, 25]
  return {
      'image_id': np.int32([8]),
      'image_size': np.float32([[50, 80]]),
      'original_size': np.int32([[100, 200]]),
      'gt_boxes': np.float32([[[4, 5, 24, 25], [40, 5, 60, 25]]]),
      **{'gt_labels': np.int32([[2, 2]]), 'gt_valid': on, 'gt_crowd': off},
      'boxes': np.float32([[box, [np.nan] * 4, [0] * 4]]),
      'scores': np.float32([[0.5, 1, 2]]),
      'labels': np.int32([[2, 2, -1]]),
      'valid': np.array([[True, True, False]]),
      'mask': np.array([True]),
  } | changes


def test_boxes_are_in_pixels_of_the_file():
  evaluator = evaluator_of(one_image())
  common = {'image_id': 8, 'category_id': 17}
  bbox = [10.0, 10.0, 50 + 2.5 * 2**-10, 40.0]
  assert evaluator.results() == [common | {'bbox': bbox, 'score': 0.5}]
  dataset = evaluator.dataset()
  assert dataset['images'] == [{'id': 8, 'height': 100, 'width': 200}]
  bbox, others = [10.0, 10.0, 50.0, 40.0], {'id': 1, 'iscrowd': 0}
  want = common | others | {'bbox': bbox, 'area': 2000.0}
  assert dataset['annotations'][0] == want
  # Precision is 1 up to recall .5, and so at 51 of 101 places.
  assert evaluator.compute()['AP'] == pytest.approx(51 / 101)
  assert dataset['categories'][2] == {'id': 17, 'name': '17'}


def test_every_call_leaves_what_was_collected_as_it_is():
  evaluator = evaluator_of(noisy(images()))
  dataset, results = evaluator.dataset(), evaluator.results()
  first = evaluator.compute(), evaluator.per_class()
  assert (dataset, results) == (evaluator.dataset(), evaluator.results())
  assert (evaluator.compute(), evaluator.per_class()) == first
  # An update after that counts.
  evaluator.update(one_image())
  assert evaluator.compute()['num_images'] == 13


def test_mistakes_name_their_place():
  evaluator = coco.CocoEvaluator(IDS)
  evaluator.update(one_image(mask=np.array([False])))
  with pytest.raises(ValueError, match='no image was added'):
    evaluator.compute()
  evaluator.update(one_image())
  with pytest.raises(ValueError, match='image_id 8 came twice'):
    evaluator.update(one_image())
