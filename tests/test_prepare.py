"""Preparing data sets: the real builders of TFDS on tiny originals."""

import io
import json
import os
import resource
import struct
import sys

import commands
import fake_sources
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from awconv_jax.data import sources, tf_stand_in, tfrecord
from awconv_jax.errors import InputError
from awconv_jax.tools import prepare


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
  """Every download fails the test, until `serve` is called again."""
  fake_sources.serve(monkeypatch, tmp_path / 'unused', {})


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
  """The prepared directory, and the tar files it was made of."""
  root = tmp_path_factory.mktemp('imagenet')
  fake_sources.write_imagenet(root / 'manual')
  made = prepare.prepare('imagenet2012', str(root), str(root / 'manual'))
  assert prepare.describe(made) == (
      f'imagenet2012/5.1.0 is in {root}/imagenet2012/5.1.0: train 14, '
      'validation 10 images'
  )
  return root


def read(data_dir, name, split):
  """Returns the records by their id."""
  source = sources.open_source(name, str(data_dir), split)
  rows = [source[i] for i in range(len(source))]
  ids = [r['id'] for r in rows]
  ids = [i.decode() if isinstance(i, bytes) else str(i) for i in ids]
  return dict(zip(ids, rows, strict=True))


def pixels(encoded):
  return np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))


def test_imagenet_holds_every_image_with_its_label(imagenet):
  found = read(imagenet, 'imagenet2012', 'train')
  wanted = fake_sources.imagenet_train(per_class=4)
  assert found.keys() == {name for files in wanted.values() for name in files}
  for synset, files in wanted.items():
    for name, content in files.items():
      assert found[name]['label'] == fake_sources.SYNSETS[synset]
      if name not in (fake_sources.CMYK, fake_sources.PNG):
        assert found[name]['image'] == content, name


def test_imagenet_validation_labels_follow_the_names(imagenet):
  path = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt')
  names = tfds.core.tfds_path('datasets/imagenet2012/labels.txt').read_text()
  labels = [names.split().index(w) for w in path.read_text().split()[:10]]
  assert len(set(labels)) == 10
  found = read(imagenet, 'imagenet2012', 'validation')
  for i, (name, content) in enumerate(fake_sources.imagenet_val(10).items()):
    assert found[name]['label'] == labels[i]
    assert found[name]['image'] == content


@pytest.mark.parametrize('name', [fake_sources.CMYK, fake_sources.PNG])
def test_what_is_no_rgb_jpeg_becomes_one(imagenet, name):
  content = fake_sources.imagenet_train(4)[name[:9]][name]
  assert Image.open(io.BytesIO(content)).mode == (
      'CMYK' if name == fake_sources.CMYK else 'RGB'
  )
  made = read(imagenet, 'imagenet2012', 'train')[name]['image']
  assert Image.open(io.BytesIO(made)).format == 'JPEG'
  assert Image.open(io.BytesIO(made)).mode == 'RGB'
  difference = pixels(made).astype(int) - pixels(content)
  assert np.abs(difference).mean() < 2
  # Neither colours in another order nor ones that are inverted.
  original = fake_sources.picture(1 if name == fake_sources.CMYK else 2)
  assert np.abs(pixels(made).astype(int) - original).mean() < 6


def test_cifar10_keeps_its_pixels(monkeypatch, tmp_path):
  files = {'cifar-10-binary.tar.gz': fake_sources.cifar10(per_file=4)}
  fake_sources.serve(monkeypatch, tmp_path / 'archives', files)
  made = prepare.prepare('cifar10', str(tmp_path), None)
  assert prepare.describe(made).endswith(': train 20, test 4 images')
  found = read(tmp_path, 'cifar10', 'train') | read(tmp_path, 'cifar10', 'test')
  for i in range(24):
    row = found[f'train_{i:05}' if i < 20 else f'test_{i - 20:05}']
    np.testing.assert_array_equal(
        pixels(row['image']), fake_sources.cifar_pixels(i)
    )
    assert row['label'] == i % 10


def test_cifar100_takes_the_fine_labels(monkeypatch, tmp_path):
  files = {'cifar-100-binary.tar.gz': fake_sources.cifar100(count=6)}
  fake_sources.serve(monkeypatch, tmp_path / 'archives', files)
  prepare.prepare('cifar100', str(tmp_path), None)
  found = read(tmp_path, 'cifar100', 'test')
  assert [found[f'test_{i:05}']['label'] for i in range(6)] == [
      7 * i for i in range(6)
  ]


def test_imagenet_v2(monkeypatch, tmp_path):
  files = {'imagenetv2-matched-frequency.tar.gz': fake_sources.imagenet_v2()}
  fake_sources.serve(monkeypatch, tmp_path / 'archives', files)
  name = 'tfds:imagenet_v2/matched-frequency'
  made = prepare.prepare(name, str(tmp_path), None)
  assert prepare.describe(made).endswith(': test 3 images')
  rows = read(tmp_path, name, 'test').values()
  assert sorted(row['label'] for row in rows) == [0, 59, 230]


def test_real_labels(monkeypatch, tmp_path):
  labels = [[1, 7], [], [5], [999]]
  fake_sources.write_imagenet(tmp_path / 'manual', val=4)
  files = {'real.json': fake_sources.real_labels(labels)}
  fake_sources.serve(monkeypatch, tmp_path / 'archives', files)
  name = 'tfds:imagenet2012_real'
  prepare.prepare(name, str(tmp_path), str(tmp_path / 'manual'))
  found = read(tmp_path, name, 'validation')
  for i, wanted in enumerate(labels, 1):
    row = found[f'ILSVRC2012_val_{i:08}.JPEG']
    assert [label for label in row['label'] if label >= 0] == wanted


def test_what_is_there_is_left_as_it_is(imagenet):
  files = list((imagenet / 'imagenet2012/5.1.0').iterdir())
  before = {path: path.stat().st_mtime_ns for path in files}
  # Without the tar files, too.
  made = prepare.prepare('tfds:imagenet2012', str(imagenet), None)
  assert made == str(imagenet / 'imagenet2012/5.1.0')
  assert before == {path: path.stat().st_mtime_ns for path in files}


def test_a_large_set_is_shuffled_by_way_of_files(monkeypatch, tmp_path):
  """As from 1 GB on: TFDS then keeps up to 1000 files open."""
  files = {'cifar-10-binary.tar.gz': fake_sources.cifar10(per_file=60)}
  fake_sources.serve(monkeypatch, tmp_path / 'archives', files)
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 1000)
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
  try:
    prepare.prepare('cifar10', str(tmp_path), None)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
  found = read(tmp_path, 'cifar10', 'train')
  assert sorted(found) == [f'train_{i:05}' for i in range(300)]
  assert list(found) != sorted(found)
  target = tmp_path / 'cifar10/3.0.2'
  assert not list(target.glob('*.tmp'))


def test_the_stand_in_leaves_no_trace():
  from tensorflow_datasets.core.download import extractor

  before = extractor.tf
  with tf_stand_in.installed():
    assert extractor.tf is not before
    with pytest.raises(InputError, match="calls 'float32' of TensorFlow"):
      assert extractor.tf.float32 is None
  assert extractor.tf is before
  assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_png_keeps_pixels(channels):
  image = fake_sources.picture(3)[..., :1].repeat(channels, -1)
  image[..., 0] //= 2
  decoded = np.asarray(Image.open(io.BytesIO(tf_stand_in.encode_png(image))))
  np.testing.assert_array_equal(decoded.reshape(image.shape), image)


@pytest.mark.parametrize('missing', ['train', 'val', 'train and val'])
def test_missing_tars_are_named(missing, tmp_path):
  fake_sources.write_imagenet(tmp_path / 'manual', per_class=1, val=1)
  for name in missing.split(' and '):
    (tmp_path / f'manual/ILSVRC2012_img_{name}.tar').unlink()
  names = [f'ILSVRC2012_img_{n}.tar' for n in missing.split(' and ')]
  with pytest.raises(InputError) as error:
    prepare.prepare('imagenet2012', str(tmp_path), str(tmp_path / 'manual'))
  message = str(error.value)
  assert message.startswith(f'{tmp_path}/manual lacks {" and ".join(names)};')
  assert '--manual_dir' in message and 'image-net.org' in message
  assert not (tmp_path / 'imagenet2012').exists()


def assert_nothing_built(root, name):
  """Nothing that a reader, or the next attempt, could take for a set."""
  left = [p for p in (root / name).rglob('*') if '.config' not in p.parts]
  assert not left


@pytest.mark.parametrize('name', ['train', 'val'])
def test_a_tar_cut_short_is_refused(name, tmp_path):
  fake_sources.write_imagenet(tmp_path / 'manual')
  path = tmp_path / f'manual/ILSVRC2012_img_{name}.tar'
  content = path.read_bytes()
  for length in (0, len(content) // 2, len(content.rstrip(bytes(1)))):
    path.write_bytes(content[:length])
    with pytest.raises(InputError, match='ILSVRC2012.* is cut|is damaged'):
      prepare.prepare('imagenet2012', str(tmp_path), str(tmp_path / 'manual'))
  assert_nothing_built(tmp_path, 'imagenet2012')


def test_a_damaged_tar_leaves_nothing(tmp_path):
  fake_sources.write_imagenet(tmp_path / 'manual')
  path = tmp_path / 'manual/ILSVRC2012_img_train.tar'
  content = path.read_bytes()
  # Ends within the archive of the second class, and yet with an end mark.
  at = content.index(b'n01739381_2.JPEG')
  path.write_bytes(content[:at] + bytes(1024))
  with pytest.raises(InputError, match='archive of imagenet2012/5.1.0 is dam'):
    prepare.prepare('imagenet2012', str(tmp_path), str(tmp_path / 'manual'))
  assert_nothing_built(tmp_path, 'imagenet2012')


def test_a_builder_that_needs_more_is_named(monkeypatch, tmp_path):
  def fail(self, url):
    raise ModuleNotFoundError('no beam', name='apache_beam')

  manager = tfds.download.DownloadManager
  monkeypatch.setattr(manager, 'download_and_extract', fail)
  with pytest.raises(InputError, match='cifar10/3.0.2 needs apache_beam, whi'):
    prepare.prepare('cifar10', str(tmp_path), None)


def test_no_network_is_said(monkeypatch, tmp_path):
  import requests

  def fail(self, url):
    request = requests.Request('GET', url).prepare()
    raise requests.ConnectionError('Max retries\nmore', request=request)

  manager = tfds.download.DownloadManager
  monkeypatch.setattr(manager, 'download_and_extract', fail)
  with pytest.raises(InputError) as error:
    prepare.prepare('cifar10', str(tmp_path), None)
  assert str(error.value) == (
      'cannot download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz '
      'for cifar10/3.0.2: Max retries; run this where there is a network, and '
      'copy the result'
  )
  assert_nothing_built(tmp_path, 'cifar10')


def test_an_interrupted_build_leaves_nothing(monkeypatch, tmp_path):
  files = {'cifar-10-binary.tar.gz': fake_sources.cifar10()}
  fake_sources.serve(monkeypatch, tmp_path / 'archives', files)
  write = tfds.core.DatasetInfo.write_to_directory

  def interrupt(self, *arguments, **options):
    write(self, *arguments, **options)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(tfds.core.DatasetInfo, 'write_to_directory', interrupt)
    with pytest.raises(KeyboardInterrupt):
      prepare.prepare('cifar10', str(tmp_path), None)
  assert_nothing_built(tmp_path, 'cifar10')
  made = prepare.prepare('cifar10', str(tmp_path), None)
  assert 'train 20' in prepare.describe(made)


@pytest.mark.parametrize(
    'name, message',
    [
        ('imagnet2012', r"unknown data set of TFDS .*mean 'imagenet2012'"),
        ('imagenet_v2', "unknown configuration of imagenet_v2 ''.*topimages"),
        ('tfds:imagenet_v2/topimage', "'topimage' .did you mean 'topimages'"),
        ('cifar10/small', "cifar10 has no configurations, .*'small'"),
        ('ag_news_subset', 'not a set of images with labels; .*description'),
        ('folder:/data', '--data=folder:/data cannot be prepared'),
        ('zzz', "unknown data set of TFDS 'zzz'; known: .*datasets/catalog"),
    ],
)
def test_names_that_cannot_be_prepared(name, message, tmp_path):
  with pytest.raises(InputError, match=message) as error:
    prepare.prepare(name, str(tmp_path), None)
  assert '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_directory_that_is_in_the_way(imagenet, tmp_path):
  (tmp_path / 'imagenet2012/5.1.0/old').mkdir(parents=True)
  manual = str(imagenet / 'manual')
  with pytest.raises(InputError, match='5.1.0 has no dataset_info.json; rem'):
    prepare.prepare('imagenet2012', str(tmp_path), manual)
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot build .*Not a directory'):
    prepare.prepare('imagenet2012', str(tmp_path / 'file/data'), manual)
  with pytest.raises(InputError, match='cannot build .*Permission denied'):
    with pytest.MonkeyPatch.context() as patch:

      def deny(path, **options):
        raise PermissionError(13, 'Permission denied', path)

      patch.setattr(os, 'makedirs', deny)
      prepare.prepare('imagenet2012', str(tmp_path / 'x'), manual)


def write_tfrecord(path, contents):
  """Writes records by the format's description; checksums are zeros."""
  with open(path, 'wb') as file:
    for content in contents:
      file.write(struct.pack('<Q', len(content)) + bytes(4))
      file.write(content + bytes(4))


def raw(path):
  from array_record.python import array_record_data_source

  source = array_record_data_source.ArrayRecordDataSource([str(path)])
  return [source[i] for i in range(len(source))]


@pytest.fixture
def tfrecords(imagenet, tmp_path):
  """The set as it would be had it been written as tfrecord."""
  old = imagenet / 'imagenet2012/5.1.0'
  new = tmp_path / 'old/imagenet2012/5.1.0'
  new.mkdir(parents=True)
  for path in old.iterdir():
    if 'array_record' in path.name:
      name = path.name.replace('array_record', 'tfrecord')
      write_tfrecord(new / name, raw(path))
    else:
      (new / path.name).write_bytes(path.read_bytes())
  info = json.loads((old / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  (new / 'dataset_info.json').write_text(json.dumps(info))
  return new


def test_tfrecord_is_converted(imagenet, tfrecords, tmp_path):
  before = {p.name: p.read_bytes() for p in tfrecords.iterdir()}
  target = tfrecord.convert(str(tfrecords), str(tmp_path / 'new'))
  assert target == str(tmp_path / 'new/imagenet2012/5.1.0')
  assert before == {p.name: p.read_bytes() for p in tfrecords.iterdir()}
  assert 'train 14, validation 10' in prepare.describe(target)
  for split in ('train', 'validation'):
    found = read(tmp_path / 'new', 'imagenet2012', split)
    wanted = read(imagenet, 'imagenet2012', split)
    assert list(found) == list(wanted)
    assert all(found[k]['image'] == wanted[k]['image'] for k in wanted)
  assert tfrecord.convert(str(tfrecords), str(tmp_path / 'new')) == target
  assert [p.name for p in (tmp_path / 'new/imagenet2012').iterdir()] == [
      '5.1.0'
  ]


def test_a_template_may_name_the_form(tfrecords, tmp_path):
  path = tfrecords / 'dataset_info.json'
  text = path.read_text()
  assert '{FILEFORMAT}' in text
  path.write_text(text.replace('{FILEFORMAT}', 'tfrecord'))
  tfrecord.convert(str(tfrecords), str(tmp_path / 'new'))
  assert len(read(tmp_path / 'new', 'imagenet2012', 'train')) == 14


def test_an_old_set_says_no_form(tfrecords, tmp_path):
  path = tfrecords / 'dataset_info.json'
  info = json.loads(path.read_text())
  del info['fileFormat']
  for split in info['splits']:
    del split['filepathTemplate']
  path.write_text(json.dumps(info))
  target = tfrecord.convert(str(tfrecords), str(tmp_path / 'new'))
  assert 'train 14, validation 10' in prepare.describe(target)
  assert len(read(tmp_path / 'new', 'imagenet2012', 'train')) == 14


def damage_end(path):
  path.write_bytes(path.read_bytes()[:-1])


def damage_length(path):
  path.write_bytes(struct.pack('<Q', 1 << 60) + path.read_bytes()[8:])


def drop_a_record(path):
  content = list(tfrecord.records(str(path)))
  write_tfrecord(path, content[:-1])


@pytest.mark.parametrize(
    'spoil, message',
    [
        (damage_end, 'is damaged or cut short'),
        (damage_length, 'is damaged or cut short'),
        (drop_a_record, 'holds 13 records, but dataset_info.json says 14'),
        (os.unlink, 'No such file or directory'),
    ],
)
def test_damaged_tfrecords_leave_nothing(tfrecords, tmp_path, spoil, message):
  shard = next(tfrecords.glob('*-train.tfrecord-*'))
  spoil(shard)
  with pytest.raises(InputError) as error:
    tfrecord.convert(str(tfrecords), str(tmp_path / 'new'))
  assert message in str(error.value) and str(shard) in str(error.value)
  assert not list((tmp_path / 'new/imagenet2012').iterdir())


def test_what_is_no_tfrecord_set_is_refused(imagenet, tfrecords, tmp_path):
  own = imagenet / 'imagenet2012/5.1.0'
  for arguments, message in (
      ((own, tmp_path), 'is not in tfrecord form, but in array_record'),
      ((own.parent, tmp_path), 'has no dataset_info.json; name the directory'),
      ((tfrecords, tmp_path / 'old'), 'lies in --data_dir; give another'),
  ):
    with pytest.raises(InputError, match=message):
      tfrecord.convert(*map(str, arguments))
  with pytest.raises(InputError, match='already, but as tfrecord; .*--from_tf'):
    prepare.prepare('imagenet2012', str(tmp_path / 'old'), None)


def test_an_incomplete_set_is_said(imagenet, monkeypatch):
  """Python's tarfile ends at a damaged header as if the archive did."""
  whole = {'train': 14, 'validation': 10}
  monkeypatch.setitem(prepare.COMPLETE, 'imagenet2012', whole)
  directory = str(imagenet / 'imagenet2012/5.1.0')
  assert prepare.shortfall(directory) is None
  whole['validation'] = 50_000
  assert prepare.shortfall(directory) == (
      'warning: split validation has 10 images of 50,000: an archive is '
      f'damaged; remove {directory}, and download it again'
  )


def test_the_command(tmp_path):
  fake_sources.write_imagenet(tmp_path / 'manual', per_class=1, val=1)
  command = ('-m', 'awconv_jax.tools.prepare', f'--data_dir={tmp_path}')
  manual = f'--manual_dir={tmp_path}/manual'
  code, out, err = commands.run(*command, '--data=imagenet2012', manual)
  assert code == 0, err
  assert out == (
      f'imagenet2012/5.1.0 is in {tmp_path}/imagenet2012/5.1.0: train 5, '
      'validation 1 images\n'
      'warning: split train has 5 images of 1,281,167: an archive is damaged; '
      f'remove {tmp_path}/imagenet2012/5.1.0, and download it again\n'
  )
  assert 'examples' in err and 'WARNING' not in err
  for arguments in ((), ('--data=cifar10', '--from_tfrecord=x')):
    code, out, err = commands.run(*command, *arguments)
    assert (code, out) == (1, '')
    assert err.startswith('error: give either --data') and err.count('\n') == 1
