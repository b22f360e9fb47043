"""Damaged files of data and weights: each is named, all else as it was."""

import shutil

import fake_coco
import fake_tfds
from harms import HARMS
import numpy as np
import pictures
import pytest
import runs
import safetensors.numpy
import torch_zip

from awconv_jax import data, weights
from awconv_jax.data import sources
from awconv_jax.errors import InputError

pytestmark = pytest.mark.faults('files')

FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP')
COUNT = 6  # Images of a class; the fault befalls the third of the first.


def write_folder(root, kind):
  for label, name in enumerate(('cat', 'dog')):
    (root / 'val' / name).mkdir(parents=True)
    for i in range(COUNT):
      path = root / 'val' / name / f'{i}.{kind.lower()}'
      path.write_bytes(pictures.photo(10 * label + i, kind))
  return root


def read(name, directory=None):
  """Returns the pixels by their place, and what was unreadable."""
  options = dict(name=name, dir=directory, eval_split='val')
  options |= dict(image_size=32, eval_image_size=32, max_bad_fraction=1.0)
  batches = data.create(options, train=False, batch_size=4, seed=0)
  source, found = sources.open_source(name, directory, 'val'), {}
  for batch in batches:
    for row in np.flatnonzero(batch['mask']):
      found[source.place(batch['index'][row])] = batch['image'][row]
  news = batches.unreadable.news()
  assert len(found) + len(news) == len(source)
  assert not any('\n' in line for line in news)
  return found, news


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A folder of each format, and its pixels."""
  roots = {}
  for kind in FORMATS:
    root = write_folder(tmp_path_factory.mktemp(kind), kind)
    roots[kind] = root, read(f'folder:{root}')[0]
  return roots


IMAGES = [f'{kind} {harm}' for harm in HARMS for kind in FORMATS]


@pytest.mark.parametrize('fault', runs.cases(IMAGES, every=17))
def test_an_image(folders, tmp_path, fault):
  kind, harm = fault.split()
  shutil.copytree(folders[kind][0], tmp_path / 'data')
  wanted = {
      place.replace(str(folders[kind][0]), f'{tmp_path}/data'): pixels
      for place, pixels in folders[kind][1].items()
  }
  path = tmp_path / f'data/val/cat/2.{kind.lower()}'
  HARMS[harm](path, path.with_name(f'3.{kind.lower()}'))
  try:
    found, news = read(f'folder:{tmp_path}/data')
  except InputError as error:  # Of what is no file at all.
    assert str(path) in str(error) and '\n' not in str(error)
    return
  del wanted[str(path)]
  # Of itself there may be nothing that tells, or no file that is listed.
  assert not found.keys() - wanted.keys() - {str(path)}
  for place, pixels in wanted.items():
    np.testing.assert_array_equal(found[place], pixels)
  assert all(line.startswith(f'{path} cannot be read: ') for line in news)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A set of TFDS in one file of 200 records, and its pixels."""
  root = tmp_path_factory.mktemp('tfds')
  images = [pictures.encode(pictures.smooth(40, 40, i)) for i in range(40)]
  rows = [dict(image=image, label=i % 3) for i, image in enumerate(images)]
  fake_tfds.write(root, 'tiny', fake_tfds.labelled(3), {'val': rows})
  return root, read('tfds:tiny', str(root))[0]


FILES = ('record', 'dataset_info.json', 'features.json')
RECORDS = [f'{name} {harm}' for harm in HARMS for name in FILES]


@pytest.mark.parametrize('fault', runs.cases(RECORDS, every=25))
def test_a_file_that_tfds_prepared(prepared, tmp_path, fault):
  name, harm = fault.split()
  root, wanted = prepared
  shutil.copytree(root, tmp_path / 'data')
  path = next((tmp_path / 'data/tiny/1.0.0').glob(f'*{name}*'))
  (tmp_path / 'other').write_text('{"name": "other"}')
  HARMS[harm](path, tmp_path / 'other')
  try:
    found, news = read('tfds:tiny', f'{tmp_path}/data')
  except InputError as error:
    assert f'{tmp_path}/data' in str(error) and '\n' not in str(error)
    return
  for place, pixels in found.items():
    np.testing.assert_array_equal(
        pixels, wanted[place.replace(f'{tmp_path}/data', str(root))]
    )
  assert all(str(path) in line for line in news)


# A bit can make another document of one, which nothing can tell.
WORDS = [harm for harm in HARMS if 'bit' not in harm]


@pytest.mark.parametrize('harm', runs.cases(WORDS, every=9))
def test_annotations(tmp_path, harm):
  fake_coco.write(tmp_path, {'train': range(4), 'val': range(4, 8)})
  path = tmp_path / 'annotations/instances_val.json'
  HARMS[harm](path, path.with_name('instances_train.json'))
  section = fake_coco.config(f'coco_json:{tmp_path}', eval_split='val')
  with pytest.raises(InputError) as caught:
    list(data.create(section, train=False, batch_size=2, seed=0))
  message = str(caught.value)
  assert str(tmp_path) in message and '\n' not in message
  assert len(message) < 2000


def test_images_that_vanish_while_they_are_read(tmp_path):
  root = write_folder(tmp_path, 'PNG')
  options = dict(name=f'folder:{root}', eval_split='val', num_threads=1)
  options |= dict(image_size=32, eval_image_size=32, max_bad_fraction=1.0)
  batches = data.create(options, train=False, batch_size=4, seed=0)
  rows = iter(batches)
  first = next(rows)
  for path in (root / 'val/dog').iterdir():
    path.unlink()
  seen = sum(int(batch['mask'].sum()) for batch in (first, *rows))
  news = batches.unreadable.news()
  assert seen + len(news) == 2 * COUNT
  assert all('/dog/' in line for line in news)


ARRAYS = {
    'fc.weight': np.arange(4000, dtype=np.float32).reshape(40, 100),
    'fc.bias': np.ones(40, np.float32),
}
WRITE = {
    'w.pth': lambda path: torch_zip.save(path, ARRAYS),
    'w.tar': lambda path: torch_zip.save_legacy(path, ARRAYS),
    'w.safetensors': lambda path: safetensors.numpy.save_file(ARRAYS, path),
}
# Only zip files have checksums of what they hold.
UNTOLD = ('bit', 'zeros_at_the_end', 'of_another', 'one_byte_more', 'twice')
WEIGHTS = [
    f'{name} {harm}'
    for harm in HARMS
    for name in WRITE
    if name == 'w.pth' or not any(word in harm for word in UNTOLD)
]


@pytest.mark.parametrize('fault', runs.cases(WEIGHTS, every=25))
def test_weights(tmp_path, fault):
  name, harm = fault.split()
  path, other = tmp_path / name, tmp_path / 'other'
  WRITE[name](path)
  other.write_bytes(b'')
  HARMS[harm](path, other)
  try:
    found = weights.read(path, report=lambda line: None)
  except InputError as error:
    assert str(path) in str(error) and '\n' not in str(error)
    return
  assert found.keys() == ARRAYS.keys()
  for key, array in ARRAYS.items():
    np.testing.assert_array_equal(found[key], array)
