"""digit_scenes, and the real builder of coco/2017 on a tiny COCO."""

import json
import os

import cv2
import fake_coco
import numpy as np
import pytest

from awconv_jax import data
from awconv_jax.data import decode, sources
from awconv_jax.data.detection import digit_scenes, scenes, tfds_objects
from awconv_jax.errors import InputError
from awconv_jax.tools import prepare

TRAIN, VAL = range(1, 9), range(11, 16)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('data'))
  data.prepare('digit_scenes', path)
  return path


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
  """The data directory with a tiny coco/2017."""
  root = tmp_path_factory.mktemp('coco')
  with pytest.MonkeyPatch.context() as patch:
    fake_coco.serve(patch, root / 'net', fake_coco.archives(TRAIN, VAL))
    made = prepare.prepare('coco/2017', str(root), None)
  assert made == f'{root}/coco/2017/1.1.0'
  return root


@pytest.fixture(scope='module')
def splits(data_dir):
  return {
      split: sources.open_source('digit_scenes', data_dir, split)
      for split in ('train', 'test')
  }


def records(source):
  return [source[i] for i in range(len(source))]


def pixels(record):
  encoded = np.frombuffer(record['image'], np.uint8)
  return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)


def test_scenes_are_of_every_kind(splits):
  for split, number in (('train', 1000), ('test', 200)):
    source = splits[split]
    assert len(source) == number and source.num_classes == 10
    index = source.index
    assert set(np.unique(index.objects)) == set(range(6))
    portrait = np.mean(index.sizes[:, 0] > index.sizes[:, 1])
    assert 0.2 < portrait < 0.5
    crowds = (index.objects > index.trainable).mean()
    assert 0.03 < crowds < 0.15
    labels = np.concatenate([r['objects'].labels for r in records(source)])
    assert np.bincount(labels, minlength=10).min() > number / 10
    assert len({r['image_id'] for r in records(source)}) == number


def test_category_ids_have_gaps_and_are_kept_with_the_set(splits):
  ids = splits['test'].category_ids
  assert ids == digit_scenes.LABEL_TO_CATEGORY_ID
  assert len(set(ids)) == 10 and list(ids) == sorted(ids)
  assert max(ids) > 11 and splits['train'].class_names == tuple('0123456789')


def test_train_and_test_share_no_image_id_no_scan_and_no_pixels(
    monkeypatch, tmp_path
):
  given = []

  def generate(self, indices, scans, labels, photos):
    given.append((list(indices), scans, labels, photos))

  builder = digit_scenes.DigitScenes(data_dir=str(tmp_path))
  monkeypatch.setattr(digit_scenes.DigitScenes, '_generate_examples', generate)
  builder._split_generators(None)
  (indices, scans, labels, photos), test = given
  assert not set(indices) & set(test[0])
  assert (len(scans), len(test[1])) == (len(labels), len(test[2]))
  assert (len(scans), len(test[1])) == (1437, 360)
  # Views of one array, so that bytes shared are bytes that leak.
  assert not np.shares_memory(scans, test[1])
  for one in photos:
    assert not any(np.shares_memory(one, other) for other in test[3])
    assert min(one.shape[:2]) >= 1.5 * 128


def test_boxes_are_tight_around_the_ink():
  rng = np.random.default_rng(0)
  scan = np.zeros((8, 8))
  scan[1:7, 3:5] = 16
  for height in (22, 40, 60):
    alpha = scenes.opacity(scan, height, rng)
    assert alpha.shape[0] == height
    assert alpha[[0, -1]].max() > 0.3 and alpha[:, [0, -1]].max() > 0.3
  image = np.full((64, 64, 3), 100, np.float32)
  box = scenes._paint(image, alpha[:40], (3, 5), rng)
  inked = np.abs(image - 100).max(-1) > 40
  rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
  found = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
  np.testing.assert_allclose(box, found, atol=2)


def test_scenes_are_the_same_every_time(splits):
  rng = np.random.default_rng(1003)
  from sklearn import datasets

  scans, labels = datasets.load_digits(return_X_y=True)
  photos = [p[:, 440:] for p in datasets.load_sample_images().images]
  image, drawn = scenes.scene(
      scans[1437:].reshape(-1, 8, 8), labels[1437:], photos, rng
  )
  record = splits['test'][3]
  assert record['image_id'] == 100 + 3 * 1003
  assert np.abs(pixels(record) - image.astype(int)).mean() < 4  # By JPEG.
  boxes = [[d.box[i] for i in (1, 0, 3, 2)] for d in drawn]
  np.testing.assert_allclose(record['objects'].boxes, boxes, atol=1e-4)
  assert record['objects'].labels.tolist() == [d.label for d in drawn]


def test_batches_of_scenes(data_dir):
  section = fake_coco.config(
      'digit_scenes',
      data_dir,
      canvas=(96, 128),
      short_side=96,
      long_side=128,
      train_short_sides=(96,),
  )
  batches = data.create(section, train=False, batch_size=16, seed=0)
  rows = [b for b in batches]
  assert sum(b['mask'].sum() for b in rows) == batches.num_examples == 200
  assert batches.category_ids == digit_scenes.LABEL_TO_CATEGORY_ID
  for b in rows:
    high = b['image_size'][:, None, ::-1]
    assert (b['gt_boxes'][..., 2:] <= high + 1e-3)[b['gt_valid']].all()


def test_coco_records(coco):
  source = sources.open_source('coco/2017', str(coco), 'train')
  assert len(source) == len(TRAIN) and source.num_classes == 80
  assert source.category_ids == fake_coco.COCO_IDS
  assert source.class_names[0] == 'thing 1'
  found = {record['image_id']: record for record in records(source)}
  assert found.keys() == set(TRAIN)
  for seed, record in found.items():
    wanted = fake_coco.annotations(seed)
    assert record['image'] == fake_coco.image(seed)
    labels = record['objects'].labels
    ids = [source.category_ids[label] for label in labels]
    assert ids == [a['category_id'] for a in wanted]
    boxes = np.reshape([a['bbox'] for a in wanted], (-1, 4))
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(record['objects'].boxes, boxes, atol=1e-4)
    crowd = [bool(a['iscrowd']) for a in wanted]
    assert record['objects'].crowd.tolist() == crowd


def test_coco_ids_are_those_of_the_80_categories():
  ids = tfds_objects.CATEGORY_IDS['coco']
  # By https://cocodataset.org: person, stop sign, bed, toilet, toothbrush.
  assert len(ids) == 80
  assert [ids[i] for i in (0, 11, 59, 61, 79)] == [1, 13, 65, 70, 90]


def test_coco_batches(coco):
  section = fake_coco.config('coco/2017', coco, eval_split='validation')
  batches = data.create(section, train=False, batch_size=2, seed=0)
  ids = [i for b in batches for i in b['image_id'][b['mask']]]
  assert sorted(ids) == list(VAL)
  assert batches.category_ids == fake_coco.COCO_IDS
  train = data.create(section, train=True, batch_size=2, seed=0)
  assert {int(i) for _ in range(6) for i in next(train)['image_id']} == set(
      TRAIN
  )
  train.close()


def test_a_broken_image_is_masked_even_as_the_first(monkeypatch, tmp_path):
  files = fake_coco.archives(TRAIN, VAL, broken=(12,))
  fake_coco.serve(monkeypatch, tmp_path / 'net', files)
  prepare.prepare('coco/2017', str(tmp_path), None)
  source = sources.open_source('coco/2017', str(tmp_path), 'validation')
  (place,) = np.flatnonzero(source.index.sizes[:, 0] == 0)
  section = fake_coco.config(
      'coco/2017', tmp_path, eval_split=f'validation[{place}:]'
  )
  for tolerated in (1.0, 0.1):
    section.max_bad_fraction = tolerated
    batches = data.create(section, train=False, batch_size=2, seed=0)
    if tolerated < 1:
      with pytest.raises(InputError, match='record 0 .*: it is no image'):
        list(batches)
      continue
    ids = [i for b in batches for i in b['image_id'][b['mask']]]
    assert len(ids) == len(VAL) - place - 1 and 12 not in ids
    assert len(batches.unreadable) == 1


def test_the_index_is_kept_beside_the_data(coco):
  source = sources.open_source('coco/2017', str(coco), 'train[:4]')
  path = coco / 'coco/2017/1.1.0/image_index-train%5B%3A4%5D.npy'
  wanted = source.index
  assert len(wanted.sizes) == 4 and path.exists()
  table = np.load(path)
  np.save(path, np.vstack([table[:-1] + 7, table[-1:]]))
  again = sources.open_source('coco/2017', str(coco), 'train[:4]')
  np.testing.assert_array_equal(again.index.sizes, wanted.sizes + 7)
  # A broken one, or that of other files, is made anew.
  (record_file,) = path.parent.glob('*-train.array_record-*')
  os.utime(record_file, ns=(1, 1))
  again = sources.open_source('coco/2017', str(coco), 'train[:4]')
  np.testing.assert_array_equal(again.index.sizes, wanted.sizes)
  whole = path.read_bytes()
  np.save(path, table[1:])
  for content in (path.read_bytes(), b'', whole[:-3]):
    path.write_bytes(content)
    again = sources.open_source('coco/2017', str(coco), 'train[:4]')
    np.testing.assert_array_equal(again.index.sizes, wanted.sizes)
  assert not [n for n in os.listdir(path.parent) if n.startswith('tmp')]


def test_an_image_that_is_unreadable_but_once_is_looked_at_again(
    coco, monkeypatch
):
  def open_split():
    return sources.open_source('coco/2017', str(coco), 'train[:5]')

  source = open_split()
  read, failed = source._record, []

  def flaky(index):
    if index == 2 and not failed:
      failed.append(index)
      raise decode.UnreadableError('a disk far away')
    return read(index)

  monkeypatch.setattr(source, '_record', flaky)
  assert source.index.sizes.all(1).tolist() == [True, True, False, True, True]
  assert open_split().index.sizes.all()
  assert (coco / 'coco/2017/1.1.0/image_index-train%5B%3A5%5D.npy').exists()


def test_sets_without_boxes_are_refused(data_dir):
  data.prepare('digits', data_dir)
  with pytest.raises(InputError, match='no feature .*objects/bbox'):
    tfds_objects.open_objects('digits', data_dir, 'train')


def test_what_is_missing_is_said(tmp_path):
  with pytest.raises(InputError, match='prepare it by: .* --data=coco/2017'):
    sources.open_source('coco/2017', str(tmp_path), 'train')
  assert json.dumps(sources.kind('coco/2017')) == '"objects"'
