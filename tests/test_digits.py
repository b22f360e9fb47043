"""The digits data set, and opening TFDS directories in good and bad states."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from awconv_jax.data import decode, digits, sources, tfds_source
from awconv_jax.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('digits'))
  sources.prepare('digits', path)
  return path


@pytest.fixture
def copy(data_dir, tmp_path):
  """A data directory that a test may spoil, and the set's directory in it."""
  shutil.copytree(data_dir, tmp_path / 'copy')
  return tmp_path / 'copy', tmp_path / 'copy' / 'digits' / '1.0.0'


@pytest.mark.parametrize(
    'split, first, counts',
    [
        ('train', 0, [143, 146, 142, 146, 144, 145, 144, 143, 141, 143]),
        ('test', 1437, [35, 36, 35, 37, 37, 37, 37, 36, 33, 37]),
    ],
)
def test_splits_are_the_scans_in_order(data_dir, split, first, counts):
  source = sources.open_source('digits', data_dir, split)
  records = [source[i] for i in range(len(source))]
  scans, labels = load_digits(return_X_y=True)
  indices = range(first, first + len(source))

  assert len(source) == sum(counts) and source.num_classes == 10
  assert np.bincount([r['label'] for r in records]).tolist() == counts
  assert [r['id'] for r in records] == list(indices)
  for record, index in zip(records, indices, strict=True):
    assert record['label'] == labels[index]
    expected = digits.enlarge(scans[index].reshape(8, 8))
    picture = decode.Picture(record['image'], source.channels)
    np.testing.assert_array_equal(picture.pixels(), expected)


def test_enlarge():
  image = digits.enlarge(load_digits().images[0])

  assert image.shape == (32, 32, 1) and image.dtype == np.uint8
  for ink, grey in [(0, 0), (8, 128), (16, 255)]:
    np.testing.assert_array_equal(digits.enlarge(np.full((8, 8), ink)), grey)
  # Bicubic overshoots beside an edge; a wrapped value would be bright there.
  edge = digits.enlarge(np.repeat([[0, 0, 0, 0, 16, 16, 16, 16]], 8, 0))
  assert edge[:, :14].max() < 32 and edge[:, 18:].min() > 223


def test_prepares_without_network_or_tensorflow(tmp_path):
  script = f"""
import socket, sys
class NoSocket(socket.socket):
  def __init__(self, *args, **kwargs):
    raise AssertionError('network')
socket.socket = NoSocket
import awconv_jax.data
assert not {{'grain', 'tensorflow_datasets', 'cv2'}} & set(sys.modules)
awconv_jax.data.prepare('digits', {str(tmp_path)!r})
from awconv_jax.data import sources
sources.open_source('digits', {str(tmp_path)!r}, 'train')[0]
assert 'tensorflow' not in sys.modules
"""
  done = subprocess.run(
      [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True
  )

  assert done.returncode == 0, done.stderr
  assert done.stdout == f'preparing digits in {tmp_path} ...\n'


def test_prepare_builds_once(data_dir, capsys, monkeypatch):
  monkeypatch.setattr(sources, '_build', None)

  sources.prepare('digits', data_dir)

  assert capsys.readouterr().out == ''


def test_prepare_when_another_process_is_faster(tmp_path, monkeypatch):
  build = sources._build

  def slow_build(builder_class, scratch):
    build(builder_class, scratch)
    monkeypatch.setattr(sources, '_build', build)
    sources.prepare('digits', str(tmp_path))

  monkeypatch.setattr(sources, '_build', slow_build)
  sources.prepare('digits', str(tmp_path))

  assert os.listdir(tmp_path) == ['digits']
  assert os.listdir(tmp_path / 'digits') == ['1.0.0']
  assert len(sources.open_source('digits', str(tmp_path), 'train')) == 1437


def test_prepare_leaves_nothing_when_it_fails(tmp_path, monkeypatch):
  def broken_build(builder_class, scratch):
    Path(scratch, 'half').write_text('')
    raise KeyboardInterrupt

  monkeypatch.setattr(sources, '_build', broken_build)
  with pytest.raises(KeyboardInterrupt):
    sources.prepare('digits', str(tmp_path))

  assert os.listdir(tmp_path) == []


def test_prepare_fills_an_empty_directory(tmp_path):
  (tmp_path / 'digits' / '1.0.0').mkdir(parents=True)

  assert len(sources.open_source('digits', str(tmp_path), 'train')) == 1437


def test_prepare_keeps_an_unfinished_directory(copy):
  data_dir, directory = copy
  (directory / 'dataset_info.json').unlink()

  message = open_error('digits', str(data_dir), how=sources.prepare)

  assert message == (
      f'{directory} has no dataset_info.json; remove {directory}, it is made'
      ' anew'
  )
  assert len(list(directory.iterdir())) == 3
  shutil.rmtree(directory)
  assert len(sources.open_source('digits', str(data_dir), 'train')) == 1437


def test_default_directory_is_that_of_tfds(tmp_path):
  code = (
      'from awconv_jax.data import tfds_source\n'
      'print(tfds_source.data_directory(None))'
  )
  for variable, expected in [
      ({'TFDS_DATA_DIR': str(tmp_path)}, str(tmp_path)),
      ({'HOME': str(tmp_path)}, str(tmp_path / 'tensorflow_datasets')),
  ]:
    clean = {k: v for k, v in os.environ.items() if k != 'TFDS_DATA_DIR'}
    out = subprocess.check_output(
        [sys.executable, '-c', code], cwd=ROOT, env=clean | variable, text=True
    )
    assert out.strip() == expected


def test_newest_version_is_read(copy):
  data_dir, directory = copy
  for version in ['1.9.0', '1.10.0', '2.0.0', 'incomplete.1.11.0']:
    os.mkdir(directory.parent / version)
  for version in ['1.9.0', '1.10.0']:  # 2.0.0 has no dataset_info.json.
    shutil.copytree(directory, directory.parent / version, dirs_exist_ok=True)

  newest = tfds_source._newest_version(str(data_dir / 'digits'))

  assert newest == str(directory.parent / '1.10.0')


def open_error(*args, how=tfds_source.open_tfds) -> str:
  with pytest.raises(InputError) as caught:
    how(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_unknown_dataset(data_dir):
  message = open_error('digit', data_dir, 'train', how=sources.open_source)

  assert message == (
      "unknown dataset 'digit' (did you mean 'digits'?); known: cifar10,"
      ' cifar100, coco/2017, coco_json:<name>, digit_scenes, digits,'
      ' folder:<name>, imagenet2012, tfds:<name>'
  )


@pytest.mark.parametrize('split', ['validation', 'train[', ''])
def test_unknown_split(data_dir, split):
  message = open_error('digits', data_dir, split)

  assert message == (
      f'unknown split {split!r} of {data_dir}/digits/1.0.0; known: test, train'
  )


@pytest.mark.parametrize(
    'split', ['train[10%:5%]', 'train[9:2]', 'test[:0]', 'test[5:5]']
)
def test_empty_split(data_dir, split):
  message = open_error('digits', data_dir, split)

  assert message == (
      f'split {split!r} of {data_dir}/digits/1.0.0 holds no examples; known:'
      ' test, train'
  )


def test_slices_of_splits(data_dir):
  assert len(tfds_source.open_tfds('digits', data_dir, 'train[:10]')) == 10


def test_missing_dataset(data_dir):
  message = open_error('cifar10', data_dir, 'train')

  assert f"no data set 'cifar10' in {data_dir};" in message
  assert (
      f'awconv_jax.tools.prepare --data=cifar10 --data_dir={data_dir}'
      in message
  )


def test_tfrecord_form(copy):
  data_dir, directory = copy
  info = json.loads((directory / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  (directory / 'dataset_info.json').write_text(json.dumps(info))
  for path in directory.glob('*array_record*'):
    path.rename(str(path).replace('array_record', 'tfrecord'))

  message = open_error('digits', str(data_dir), 'train')

  assert message.startswith(f'{directory} is not in array_record form;')
  assert message.endswith(
      f'awconv_jax.tools.prepare --from_tfrecord={directory}'
      ' --data_dir=DIRECTORY'
  )


def test_dataset_without_labels(copy):
  data_dir, directory = copy
  features = json.loads((directory / 'features.json').read_text())
  named = features['featuresDict']['features']
  named['digit'] = named.pop('label')
  (directory / 'features.json').write_text(json.dumps(features))

  message = open_error('digits', str(data_dir), 'train')

  assert 'has no feature label' in message and 'digit' in message


def test_unreadable_dataset(copy, monkeypatch):
  # The tests may run as root, who may read all; so the refusal is acted.
  data_dir, _ = copy

  def refuse(path):
    raise PermissionError(13, 'Permission denied', path)

  monkeypatch.setattr(os, 'listdir', refuse)
  message = open_error('digits', str(data_dir), 'train')

  assert message == f'cannot read {data_dir}/digits: Permission denied'


def test_files_missing(copy):
  data_dir, directory = copy
  shard = next(directory.glob('*-train.*'))
  shard.unlink()

  message = open_error('digits', str(data_dir), 'train')

  assert message == f'{shard} is missing; copy or prepare it again'


@pytest.mark.parametrize(
    'name, size, start, reason',
    [
        ('*-train.*', 0, "record 0 of split 'train'", 'at least 64KB big'),
        ('*-train.*', 30_000, "record 0 of split 'train'", 'at least 64KB big'),
        ('*-train.*', 131_072, "record 0 of split 'train'", 'Invalid Riegeli'),
        ('dataset_info.json', 0, 'cannot open', 'Failed to load JSON'),
        ('dataset_info.json', 100, 'cannot open', 'Failed to load JSON'),
        ('features.json', None, 'cannot open', 'Cannot restore digits'),
        ('features.json', 100, 'cannot open', 'Expecting value'),
    ],
)
def test_damaged_files(copy, name, size, start, reason):
  """Files cut to `size` bytes, or removed where that is None."""
  data_dir, directory = copy
  path = next(directory.glob(name))
  if size is None:
    path.unlink()
  else:
    os.truncate(path, size)

  arguments = ('digits', str(data_dir), 'train')
  embedded = open_error(*arguments, how=sources.open_source)
  foreign = open_error(*arguments)

  assert embedded.startswith(start) and reason in embedded
  assert str(path if 'record' in start else directory) in embedded
  assert embedded.endswith(f'; remove {directory}, it is made anew')
  assert foreign.endswith('; copy or prepare it again')


def test_records_are_named_by_their_file(copy):
  data_dir, directory = copy
  shard = next(directory.glob('*-test.*'))
  os.truncate(shard, 0)

  message = open_error('digits', str(data_dir), 'train[:10]+test')

  # Record 0 is of the other file, and whole.
  assert message.startswith(
      f"record 369 of split 'train[:10]+test' cannot be read from {shard}: "
  )


def test_unwritable_directory(tmp_path):
  (tmp_path / 'file').write_text('')
  data_dir = str(tmp_path / 'file' / 'data')

  message = open_error('digits', data_dir, how=sources.prepare)

  assert message == f'cannot write digits to {data_dir}: Not a directory'
