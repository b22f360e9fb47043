"""What TFDS has prepared and images in folders, in good and bad states."""

import os
import pickle
import re
import shutil
import sys

import fake_tfds
import numpy as np
import pictures
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from awconv_jax import data
from awconv_jax.data import sources, tfds_source
from awconv_jax.errors import InputError

LENGTH = 2000


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Holds 'tiny' of 3 classes; example i has a picture and label of its own."""
  root = tmp_path_factory.mktemp('tfds')
  images = [pictures.encode(pictures.smooth(8, 8, i)) for i in range(LENGTH)]
  rows = [dict(image=x, label=i % 3, id=i) for i, x in enumerate(images)]
  features = fake_tfds.labelled(3, id=np.int64)
  fake_tfds.write(root, 'tiny', features, {'train': rows, 'test': rows[:60]})
  assert 'tensorflow' not in sys.modules
  return str(root)


@pytest.fixture
def copy(data_dir, tmp_path):
  """Returns a data directory to spoil, and that of the set in it."""
  shutil.copytree(data_dir, tmp_path / 'copy')
  return str(tmp_path / 'copy'), tmp_path / 'copy/tiny/1.0.0'


def open_error(*args) -> str:
  with pytest.raises(InputError) as caught:
    tfds_source.open_tfds(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_records_and_slices(data_dir):
  source = tfds_source.open_tfds('tiny', data_dir, 'test[10:20]+train[:5]')
  source = pickle.loads(pickle.dumps(source))  # As for a worker process.
  assert (len(source), len(source.class_names), source.channels) == (15, 3, 3)
  assert [source[i]['id'] for i in range(15)] == [*range(10, 20), *range(5)]
  for i in range(15):
    record = source[i]
    wanted = pictures.encode(pictures.smooth(8, 8, int(record['id'])))
    assert record['image'] == wanted and record['label'] == record['id'] % 3


def test_newest_version_in_the_default_directory_is_read(copy, monkeypatch):
  data_dir, directory = copy
  monkeypatch.setattr(constants, 'DATA_DIR', data_dir)
  for version in ['1.9.0', '1.10.0', '2.0.0', 'incomplete.1.11.0']:
    os.mkdir(directory.parent / version)
  for version in ['1.9.0', '1.10.0']:  # 2.0.0 has no dataset_info.json.
    shutil.copytree(directory, directory.parent / version, dirs_exist_ok=True)
  source = tfds_source.open_tfds('tiny', None, 'train')
  assert '/1.10.0/tiny-train.' in source.place(0)


def test_splits_that_are_none(data_dir):
  place = f'{data_dir}/tiny/1.0.0 is unknown or holds no examples: '
  for split, reason in (('validation', "of ['t"), ('test[:0]', '')):
    message = open_error('tiny', data_dir, split)
    assert message.startswith(f'split {split!r} of {place}')
    assert reason in message


def test_a_set_that_is_not_prepared_names_the_command(data_dir):
  assert open_error('cifar10', data_dir, 'train') == (
      f"no data set 'cifar10' in {data_dir}; where TensorFlow is installed, "
      f'prepare it by: tfds build cifar10 --data_dir={data_dir} '
      '--file_format=array_record'
  )


def test_tfrecord_form_names_the_command(copy):
  data_dir, directory = copy
  info = directory / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  for path in directory.glob('*array_record*'):
    path.rename(str(path).replace('array_record', 'tfrecord'))
  message = open_error('tiny', data_dir, 'train')
  assert message.startswith(f'{directory} is not in array_record form;')
  assert f'tfds convert_format --dataset_version_dir={directory} --o' in message


def test_features_that_lack(copy):
  path = copy[1] / 'features.json'
  path.write_text(path.read_text().replace('"label"', '"digit"'))
  message = open_error('tiny', copy[0], 'train')
  assert 'has no features image and label or' in message and 'digit' in message


@pytest.mark.parametrize('key', ['pythonClassName', 'type'])
def test_no_module_is_imported_because_a_file_names_it(copy, key, monkeypatch):
  data_dir, directory = copy
  (directory / 'opened_by_a_file.py').write_text('')
  monkeypatch.syspath_prepend(str(directory))
  path = directory / 'features.json'
  old = '"pythonClassName": "tensorflow_datasets.core.features.image_feature'
  text = path.read_text().replace(old, f'"{key}": "opened_by_a_file')
  path.write_text(text)
  message = open_error('tiny', data_dir, 'train')
  assert "features.json has 'opened_by_a_file.Image', want kinds of" in message
  assert 'opened_by_a_file' not in sys.modules


def test_a_set_lies_in_the_data_directory(data_dir):
  for name in ('../tiny', data_dir + '/../tiny'):
    assert 'leads out of ' in open_error(name, f'{data_dir}/tiny', 'train')


def test_several_labels_are_padded(tmp_path):
  image, wanted = pictures.encode(pictures.smooth(4, 4)), [[1, 7], [], [5]]
  features = fake_tfds.labelled(9)
  features['real_label'] = tfds.features.Sequence(features.pop('label'))
  rows = [{'image': image, 'real_label': labels} for labels in wanted]
  fake_tfds.write(tmp_path, 'real', features, {'right': rows})
  source = tfds_source.open_tfds('real', str(tmp_path), 'right')
  found = [source[i]['label'] for i in range(3)]
  assert {len(labels) for labels in found} == {20}
  assert [list(row[row >= 0]) for row in found] == wanted


def test_a_split_without_labels_is_refused(copy):
  path = copy[1] / 'features.json'
  path.write_text(re.sub('(numClasses": )"3"', r'\1"2"', path.read_text()))
  source = tfds_source.open_tfds('tiny', copy[0], 'test')
  with pytest.raises(InputError, match="^label 2 of record 2 of split 'test'"):
    source[2]


@pytest.mark.parametrize(
    'name, size, start, reason',
    [
        ('*-train.*', None, '{path} is missing', ''),
        (
            '*-test.*',
            0,
            "record 69 of split 'train[:10]+test'",
            'least 64KB big',
        ),
        ('*-train.*', 131_072, 'record 0 of split ', 'Invalid Riegeli'),
        ('dataset_info.json', 100, 'cannot open', 'Failed to load JSON'),
        ('features.json', 100, 'cannot open', 'Expecting value'),
    ],
)
def test_damaged_files(copy, name, size, start, reason):
  """Files cut to `size` bytes, or removed where that is None."""
  data_dir, directory = copy
  path = next(directory.glob(name))
  path.unlink() if size is None else os.truncate(path, size)
  message = open_error('tiny', data_dir, 'train[:10]+test')
  assert message.startswith(start.format(path=path)) and reason in message
  assert str(directory if start == 'cannot open' else path) in message
  assert message.endswith('; copy or prepare it again')


@pytest.mark.parametrize('cut', [False, True])
def test_a_record_that_is_spoilt_in_training_ends_it_with_its_name(copy, cut):
  data_dir, directory = copy
  shard = next(directory.glob('*-train.*'))
  options = dict(image_size=8, eval_image_size=8, num_threads=2)
  options |= dict(name='tfds:tiny', dir=data_dir)
  batches = data.create(options, train=True, batch_size=20, seed=0)
  next(batches)
  if cut:
    os.truncate(shard, 150_000)
  else:
    with shard.open('r+b') as file:
      file.seek(150_000)
      file.write(bytes(100))
  with pytest.raises(InputError, match='copy or prepare it again') as caught:
    for _ in range(LENGTH // 20):
      next(batches)
  message = str(caught.value)
  assert "of split 'train' in " in message and str(shard) in message


@pytest.fixture
def folder(tmp_path):
  counts = {'train/cat': 6, 'train/dog': 4, 'train/emu': 2}
  counts |= {'test/cat': 1, 'test/dog': 2}
  for name, count in counts.items():
    (tmp_path / name).mkdir(parents=True)
    for i in range(count):
      image = pictures.encode(pictures.smooth(4, 5, i))
      (tmp_path / name / f'{i}.png').write_bytes(image)
  return tmp_path


def opened(folder, split='train'):
  return sources.open_source(f'folder:{folder}', None, split)


def test_classes_are_the_sub_folders_of_train_in_order(folder):
  source = opened(folder)
  assert (len(source), len(source.class_names), source.channels) == (12, 3, 3)
  for record in source:
    label = ['cat', 'dog', 'emu'].index(record['id'].split(os.sep)[1])
    assert record['label'] == label
    assert record['image'] == (folder / record['id']).read_bytes()
  assert (
      len(opened(folder / 'train', 'all[:50%]')) == 6
  )  # Of the folder itself.
  # A split that lacks the first class numbers the others alike.
  shutil.rmtree(folder / 'test/cat')
  assert [r['label'] for r in opened(folder, 'test')] == [1, 1]
  assert len(opened(folder, 'test').class_names) == 3


def test_slices_part_a_split(folder):
  splits = 'train', 'train[:50%]', 'train[50%:]'
  whole, *parts = ([r['id'] for r in opened(folder, s)] for s in splits)
  assert len(parts[0]) == 6 and sum(parts, []) == whole
  # The order is mixed: a part is not of the first classes alone.
  assert {name.split(os.sep)[1] for name in parts[0]} == {'cat', 'dog', 'emu'}


def test_files_that_are_no_images_are_left_out(folder):
  (folder / 'train/cat/notes.txt').write_text('of the cat')
  (folder / 'train/cat/._0.png').write_bytes(b'')
  (folder / 'train/.cache').mkdir()
  (folder / 'train/circle').symlink_to('circle')
  (folder / 'train/cat/UPPER.JPG').write_bytes(b'an image, by its name')
  (folder / 'train/beside.png').write_bytes(b'')
  source = opened(folder)
  assert len(source) == 13
  # And it is told that they are.
  (line,) = source.faults
  assert line.startswith('5 files left out (') and 'cat/notes.txt' in line


def test_images_lie_in_folders_of_folders_and_behind_links(folder):
  elsewhere = folder / 'elsewhere/deep'
  (folder / 'train/cat/more').mkdir()
  elsewhere.mkdir(parents=True)
  for path in (folder / 'train/cat/more/a.PNG', elsewhere / 'b.png'):
    path.write_bytes(path.name.encode())
  (folder / 'train/cat/linked').symlink_to(elsewhere.parent)
  # Circles, on their own way or above it.
  (elsewhere / 'back').symlink_to(folder / 'train/cat')
  (folder / 'train/dog/up').symlink_to(folder)
  # Or from each of ten to all others, in as many ways as there are orders.
  ring = [folder / f'train/emu/{i}' for i in range(10)]
  for path in ring:
    path.mkdir()
    for other in ring:
      (path / f'to_{other.name}').symlink_to(other)
  source = opened(folder)
  assert source.class_names == ['cat', 'dog', 'emu'] and len(source) == 14
  cats = {r['id'] for r in source if r['label'] == 0}
  assert {'train/cat/more/a.PNG', 'train/cat/linked/deep/b.png'} < cats


def test_names_of_files_and_classes_are_any_bytes_but_one_line(folder):
  odd = os.fsencode(folder / 'train') + b'/\xff\ny'
  os.mkdir(odd)
  for name in (b'/\xfe.png', b'/forged\nall is well.png'):
    with open(odd + name, 'wb') as file:
      file.write(b'')
  source = opened(folder)
  places = [source.place(i) for i in range(14) if source[i]['label'] == 3]
  assert source.class_names[3] == '\udcff\ny'
  shown = str(folder / 'train') + r'/\udcff\ny/'
  names = (r'\udcfe.png', r'forged\nall is well.png')
  assert sorted(places) == sorted(shown + name for name in names)
  options = dict(name=f'folder:{folder}', image_size=4, eval_image_size=4)
  options |= dict(eval_split='train', max_bad_fraction=1.0)
  batches = data.create(options, train=False, batch_size=14, seed=0)
  assert [b['mask'].sum() for b in batches] == [12]
  assert len(batches.unreadable.news()) == 2


def empty_class(folder):
  (folder / 'train/fox').mkdir()
  (folder / 'train/fox/notes.txt').write_text('no fox')


def closed(folder):
  for name in ('link', 'other'):
    (folder / f'train/cat/{name}.png').symlink_to('gone.png')


def alone(folder):
  for name in ('dog', 'emu'):
    shutil.rmtree(folder / 'train' / name)


@pytest.mark.parametrize(
    'spoil, split, words',
    [
        (empty_class, 'train', 'not be used: class fox has no images'),
        (lambda f: (f / 'test/yak').mkdir(), 'test', r'train has no class yak'),
        (
            closed,
            'train',
            'used: 2 cannot be opened: .*/cat/link.png, .*/other',
        ),
        (alone, 'train', "'cat' is its only class"),
        (None, 'all', "'train' of .* holds folders itself: it is a split"),
        (None, '../train', "'../train' leads out of "),
        (shutil.rmtree, 'train', r'^there is no folder \S+$'),
        (None, 'val', r"unknown split 'val' .*are test, train; .* is 'all'"),
        (None, 'train/cat', 'cat cannot be used: want .*cat/<class>'),
        (None, 'train[3:3]', 'holds no images'),
        (None, 'train[3]', 'want a name, or a slice'),
    ],
)
def test_faults_are_named_before_training(folder, spoil, split, words):
  if spoil:
    spoil(folder)
  with pytest.raises(InputError, match=words) as caught:
    opened(folder, split)
  assert '\n' not in str(caught.value)
