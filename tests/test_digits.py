"""The data sets that scikit-learn brings along: digits and digit_scenes."""

import commands
import numpy as np
import pytest
from sklearn.datasets import load_digits

from awconv_jax.data import decode, digits, sources
from awconv_jax.data.detection import digit_scenes
from awconv_jax.errors import InputError

SPLITS = [('train', 0, 1437), ('test', 1437, 1797)]
SPLITS += [('test[:75%]', 1437, 1707), ('test[-4:]', 1793, 1797)]


@pytest.mark.parametrize('split, first, last', SPLITS)
def test_splits_are_the_scans_in_order(split, first, last):
  source = sources.open_source('digits', None, split)
  scans, labels = load_digits(return_X_y=True)
  assert [r['id'] for r in source] == list(range(first, last))
  assert [r['label'] for r in source] == labels[first:last].tolist()
  for record, scan in zip(source, scans[first:last], strict=True):
    pixels = decode.EncodedImage(record['image'], source.channels).pixels()
    wanted = digits.enlarge(scan.reshape(8, 8))
    np.testing.assert_array_equal(pixels, wanted)


def test_enlarge():
  image = digits.enlarge(load_digits().images[0])
  assert image.shape == (32, 32, 1) and image.dtype == np.uint8
  for ink, grey in [(0, 0), (8, 128), (16, 255)]:
    np.testing.assert_array_equal(digits.enlarge(np.full((8, 8), ink)), grey)
  # Bicubic overshoots beside an edge; a wrapped value would be bright there.
  edge = digits.enlarge(np.repeat([[0, 0, 0, 0, 16, 16, 16, 16]], 8, 0))
  assert edge[:, :14].max() < 32 and edge[:, 18:].min() > 223


def test_embedded_sets_need_no_tensorflow_and_no_tfds():
  script = """
import sys
import awconv_jax.data
assert not {'grain', 'sklearn', 'cv2'} & set(sys.modules)
from awconv_jax.data import sources
for name in ('digits', 'cluttered_digits', 'digit_scenes'):
  sources.open_source(name, '/nowhere', 'train')[0]
assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)
"""
  code, _, err = commands.run('-c', script)
  assert code == 0, err


def test_names_that_are_none():
  for name, split, message in (
      ('digit', 'train', r"set 'digit' \(did .*; known: .*, tfds:<name>"),
      ('digits', 'val', "unknown split of digits 'val'; known: test, train"),
      ('digit_scenes', 'test[9:2]', r"'test\[9:2\]' of .* no examples"),
  ):
    with pytest.raises(InputError, match=message):
      sources.open_source(name, None, split)


@pytest.fixture(scope='module')
def splits():
  names = 'train', 'test'
  return [sources.open_source('digit_scenes', None, name) for name in names]


def test_scenes_are_of_every_kind(splits):
  for source, number in zip(splits, (1000, 200), strict=True):
    assert len(source) == number and len(source.class_names) == 10
    index = source.index
    assert set(np.unique(index[:, 2])) == set(range(6))
    assert 0.2 < np.mean(index[:, 0] > index[:, 1]) < 0.5
    assert 0.03 < (index[:, 2] > index[:, 3]).mean() < 0.15
    labels = np.concatenate([r['objects'].labels for r in source])
    assert np.bincount(labels, minlength=10).min() > number / 10
    ids = source.category_ids  # With gaps, as COCO's.
    assert len(ids) == 10 and list(ids) == sorted(ids) and max(ids) > 11


def test_train_and_test_share_no_image_id_no_scan_and_no_pixels(splits):
  ids = [r['image_id'] for s in splits for r in s]
  assert len(set(ids)) == 1200
  train, test = map(digit_scenes.materials, (True, False))
  assert (len(train[1]), len(test[1])) == (1437, 360)
  scans = np.concatenate([train[0], test[0]])
  np.testing.assert_array_equal(scans, load_digits().images)
  for one, other in zip(train[2], test[2], strict=True):
    # Views of one photograph: bytes shared would be bytes that leak.
    assert one.base is not None and not np.shares_memory(one, other)
    assert min(*one.shape[:2], *other.shape[:2]) >= 1.5 * 128


def test_boxes_are_tight_around_the_ink():
  rng = np.random.default_rng(0)
  scan = np.zeros((8, 8))
  scan[1:7, 3:5] = 16
  for height in (22, 40, 60):
    alpha = digit_scenes.opacity(scan, (height, height), rng)
    assert alpha.shape[0] == height
    assert alpha[[0, -1]].max() > 0.3 and alpha[:, [0, -1]].max() > 0.3
  image = np.full((64, 64, 3), 100, np.float32)
  box = digit_scenes._paint(image, alpha[:40], (3, 5), rng)
  inked = np.abs(image - 100).max(-1) > 40
  rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
  found = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
  np.testing.assert_allclose(box, found, atol=2)


def test_a_record_is_the_scene_of_its_number(splits):
  rng = np.random.default_rng(1003)
  image, drawn = digit_scenes.scene(*digit_scenes.materials(False), rng)
  record = splits[1][3]
  assert record['image_id'] == 100 + 3 * 1003
  pixels = decode.EncodedImage(record['image'], 3).pixels()
  assert np.abs(pixels - image.astype(int)).mean() < 4  # By JPEG.
  boxes = [[d.box[i] for i in (1, 0, 3, 2)] for d in drawn]
  np.testing.assert_allclose(record['objects'].boxes, boxes, atol=1e-4)
  assert record['objects'].labels.tolist() == [d.label for d in drawn]
