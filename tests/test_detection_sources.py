"""Images with boxes that TFDS has prepared: a tiny coco/2017."""

import os

import fake_coco
import fake_tfds
import numpy as np
import pytest

from awconv_jax import data
from awconv_jax.data import decode, sources
from awconv_jax.data.tfds_source import TfdsObjects, open_tfds
from awconv_jax.errors import InputError

TRAIN, VAL = range(1, 9), range(11, 16)


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
  """The data directory with a tiny coco/2017."""
  root = tmp_path_factory.mktemp('coco')
  fake_coco.prepare(root, {'train': TRAIN, 'validation': VAL})
  return root


def test_coco_records(coco):
  source = sources.open_source('coco/2017', str(coco), 'train')
  assert len(source) == len(TRAIN) and source.class_names[0] == 'thing 1'
  ids = source.category_ids
  # By https://cocodataset.org: person, stop sign, bed, toilet, toothbrush.
  assert len(ids) == len(source.class_names) == 80
  assert [ids[i] for i in (0, 11, 59, 61, 79)] == [1, 13, 65, 70, 90]
  seeds = [source[i]['image_id'] for i in range(len(source))]
  assert sorted(seeds) == list(TRAIN)
  for i, seed in enumerate(seeds):
    wanted = fake_coco.annotations(seed)
    fake_coco.assert_record(source, i, seed, wanted, atol=1e-4)


def test_a_broken_image_is_masked_even_as_the_first(tmp_path):
  fake_coco.prepare(tmp_path, {'train': TRAIN, 'validation': VAL}, broken=(12,))
  source = sources.open_source('coco/2017', str(tmp_path), 'validation')
  (place,) = np.flatnonzero(source.index[:, 0] == 0)
  split = f'validation[{place}:]'
  section = fake_coco.config('coco/2017', tmp_path, eval_split=split)
  batches = data.create(section, train=False, batch_size=2, seed=0)
  with pytest.raises(InputError, match='record 0 .*: it is no image'):
    list(batches)
  section.max_bad_fraction = 1.0
  batches = data.create(section, train=False, batch_size=2, seed=0)
  ids = [i for b in batches for i in b['image_id'][b['mask']]]
  assert len(ids) == len(VAL) - place - 1 and 12 not in ids
  assert len(batches.unreadable) == 1


def test_the_index_is_kept_beside_the_data(coco):
  def open_split():
    return sources.open_source('coco/2017', str(coco), 'train[:4]')

  path = coco / 'coco/2017/1.0.0/image_index-train%5B%3A4%5D.npy'
  wanted = open_split().index
  assert wanted.shape == (4, 4) and path.exists()
  table, whole = np.load(path), path.read_bytes()
  np.save(path, np.vstack([table[:-1] + 7, table[-1:]]))
  np.testing.assert_array_equal(open_split().index, wanted + 7)
  # A broken one, or that of other files, is made anew.
  np.save(path, table[1:])
  for content in (path.read_bytes(), b'', whole[:-3]):
    path.write_bytes(content)
    np.testing.assert_array_equal(open_split().index, wanted)
  np.save(path, np.vstack([table[:-1] + 7, table[-1:]]))
  (record_file,) = path.parent.glob('*-train.array_record-*')
  os.utime(record_file, ns=(1, 1))
  np.testing.assert_array_equal(open_split().index, wanted)
  assert not [n for n in os.listdir(path.parent) if n.startswith('tmp')]


def test_an_image_that_is_unreadable_but_once_is_looked_at_again(
    coco, monkeypatch
):
  def open_split():
    return sources.open_source('coco/2017', str(coco), 'train[:5]')

  read, failed = TfdsObjects.record, []

  def flaky(records, index):
    if index == 2 and not failed:
      failed.append(index)
      raise decode.UnreadableError('a disk far away')
    return read(records, index)

  source = open_split()
  monkeypatch.setattr(TfdsObjects, 'record', flaky)
  assert source.index[:, :2].all(1).tolist() == [True, True, False, True, True]
  assert open_split().index[:, :2].all()
  assert (coco / 'coco/2017/1.0.0/image_index-train%5B%3A5%5D.npy').exists()


def test_ids_are_kept_with_the_set_or_begin_at_one(tmp_path):
  rows = {'train': fake_coco.examples(TRAIN)}
  gaps = {'label_to_category_id': list(range(0, 160, 2))}
  for name, metadata, wanted in (('gaps', gaps, 158), ('none', {}, 80)):
    features = fake_tfds.boxed(80)
    fake_tfds.write(tmp_path, name, features, rows, metadata=metadata)
    opened = open_tfds(name, str(tmp_path), 'train', TfdsObjects)
    assert opened.category_ids[-1] == wanted
