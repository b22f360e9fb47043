"""TFDS's real builders on tiny archives; needs TensorFlow, but no network."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import fake_coco
import numpy as np
from pictures import encode, photo
import pytest
import tensorflow_datasets as tfds

from awconv_jax.data import sources

# A few of the 1000 classes of ImageNet, with their labels in TFDS.
SYNSETS = {'n01440764': 0, 'n01739381': 59, 'n02105855': 230}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def tensorflow():
  pytest.importorskip('tensorflow')


def tar(files):
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w') as archive:
    for name, content in files.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  return out.getvalue()


def zipped(files):
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return out.getvalue()


def records(name, data_dir, split):
  """Returns the records by their id."""
  source = sources.open_source(name, str(data_dir), split)
  found = [source[i] for i in range(len(source))]
  return {record.get('id', record.get('image_id')): record for record in found}


def extract_instead(monkeypatch, folder, files):
  """Has TFDS find files by the ends of their URLs, instead of downloading."""

  def extract(self, urls):
    if not isinstance(urls, str):
      return {key: extract(self, url) for key, url in urls.items()}
    path = folder / urls.rpartition('/')[2]
    path.write_bytes(files[path.name])
    return self.extract(path)

  manager = tfds.download.DownloadManager
  monkeypatch.setattr(manager, 'download_and_extract', extract)


def test_imagenet_by_the_command_of_the_docs(tmp_path):
  manual = tmp_path / 'manual'
  manual.mkdir()
  train = {
      f'{synset}_{i}.JPEG': photo(1000 * label + i)
      for synset, label in SYNSETS.items()
      for i in range(1, 5)
  }
  by_synset = {
      f'{s}.tar': tar({k: v for k, v in train.items() if k.startswith(s)})
      for s in SYNSETS
  }
  (manual / 'ILSVRC2012_img_train.tar').write_bytes(tar(by_synset))
  # Not in the order of the names: the builder sorts, to find the labels.
  val = {f'ILSVRC2012_val_{i:08}.JPEG': photo(i) for i in range(10, 0, -1)}
  (manual / 'ILSVRC2012_img_val.tar').write_bytes(tar(val))
  command = (
      *(sys.executable, '-m', 'tensorflow_datasets.scripts.cli.main'),
      *('build', 'imagenet2012', '--file_format=array_record'),
      *(f'--data_dir={tmp_path}', f'--manual_dir={manual}'),
  )
  subprocess.run(command, check=True, env={**os.environ, 'TFDS_DATA_DIR': ''})
  found = records('imagenet2012', tmp_path, 'train')
  assert {k.decode(): record['image'] for k, record in found.items()} == train
  for name, record in found.items():
    assert record['label'] == SYNSETS[name.decode().partition('_')[0]]
  assert len(records('imagenet2012', tmp_path, 'validation')) == 10


def test_coco(monkeypatch, tmp_path):
  seeds = {'train2017': range(1, 9), 'val2017': range(11, 16)}
  seeds['test2017'] = range(1, 2)
  files, listed = {}, {}
  for split, of in seeds.items():
    images = {f'{split}/{s:012}.jpg': fake_coco.image(s) for s in of}
    files[f'{split}.zip'] = zipped(images)
    document = fake_coco.document(of)
    # TFDS wants the categories in the order of their labels.
    document['categories'].reverse()
    kind = 'image_info' if split == 'test2017' else 'instances'
    listed[f'annotations/{kind}_{split}.json'] = json.dumps(document)
  files['annotations_trainval2017.zip'] = zipped(listed)
  files['image_info_test2017.zip'] = zipped(listed)

  extract_instead(monkeypatch, tmp_path, files)
  options = dict(data_dir=str(tmp_path / 'data'), file_format='array_record')
  tfds.builder('coco/2017', **options).download_and_prepare()
  found = records('coco/2017', tmp_path / 'data', 'validation')
  assert set(found) == set(seeds['val2017'])
  for seed, record in found.items():
    boxes = fake_coco.xyxy(fake_coco.annotations(seed))
    np.testing.assert_allclose(record['objects'].boxes, boxes, atol=1e-4)


def test_masks_of_pets(monkeypatch, tmp_path):
  rng = np.random.default_rng(0)
  names = 'beagle_1', 'beagle_2', 'Bengal_3'
  trimaps = {n: rng.integers(1, 4, (60, 80), np.uint8) for n in names}
  lines = [f'{name} 1 1 1' for name in names]
  notes = {f'trimaps/{n}.png': encode(t[..., None]) for n, t in trimaps.items()}
  notes['trainval.txt'] = '\n'.join(lines[:2]).encode()
  notes['test.txt'] = lines[2].encode()
  images = {f'{n}.jpg': photo(i) for i, n in enumerate(names)}

  def below(folder, content):
    return tar({f'{folder}/{name}': data for name, data in content.items()})

  files = {'images.tar.gz': below('images', images)}
  files['annotations.tar.gz'] = below('annotations', notes)
  extract_instead(monkeypatch, tmp_path, files)
  options = dict(data_dir=str(tmp_path / 'data'), file_format='array_record')
  tfds.builder('oxford_iiit_pet', **options).download_and_prepare()
  for split, wanted in (('train', names[:2]), ('test', names[2:])):
    name = 'masks:tfds:oxford_iiit_pet'
    source = sources.open_source(name, str(tmp_path / 'data'), split)
    assert len(source) == len(wanted)
    for i in range(len(source)):
      record = source[i]
      (name,) = [n for n in wanted if images[f'{n}.jpg'] == record['image']]
      got = source.mask_of(i, record, (60, 80)).classes
      np.testing.assert_array_equal(got, trimaps[name] - 1)
