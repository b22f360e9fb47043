"""Images with boxes, prepared by TFDS or from JSON, and their faults."""

import json
import os
import pickle
import re
from unittest import mock

import fake_coco
import fake_tfds
import numpy as np
from PIL import ExifTags, Image
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
  os.utime(next(path.parent.glob('*-train.array_record-*')), ns=(1, 1))
  np.testing.assert_array_equal(open_split().index, wanted)
  assert not [n for n in os.listdir(path.parent) if n.startswith('tmp')]


def test_an_image_once_unreadable_is_looked_at_again(coco):
  source, again = (
      sources.open_source('coco/2017', str(coco), 'train[:5]') for _ in range(2)
  )
  read = TfdsObjects.record

  def broken(records, index):
    if index == 2:
      raise decode.UnreadableError('a disk far away')
    return read(records, index)

  with mock.patch.object(TfdsObjects, 'record', broken):
    seen = source.index[:, :2].all(1)
  assert seen.tolist() == [True, True, False, True, True]
  assert again.index[:, :2].all()
  assert (coco / 'coco/2017/1.0.0/image_index-train%5B%3A5%5D.npy').exists()


def test_ids_are_kept_with_the_set_or_begin_at_one(tmp_path):
  rows = {'train': fake_coco.examples(TRAIN)}
  gaps = {'label_to_category_id': list(range(0, 160, 2))}
  for name, metadata, wanted in (('gaps', gaps, 158), ('none', {}, 80)):
    features = fake_tfds.boxed(80)
    fake_tfds.write(tmp_path, name, features, rows, metadata=metadata)
    opened = open_tfds(name, str(tmp_path), 'train', TfdsObjects)
    assert opened.category_ids[-1] == wanted


SEEDS = {'train': range(12), 'test': range(12, 20)}


@pytest.fixture
def root(tmp_path):
  fake_coco.write(tmp_path, SEEDS)
  return tmp_path


def create(root, train=True, batch_size=2, **changes):
  section = fake_coco.config(f'coco_json:{root}', **changes)
  return data.create(section, train=train, batch_size=batch_size, seed=0)


def open_split(root, split):
  return sources.open_source(f'coco_json:{root}', None, split)


def rewrite(root, split, change):
  """Changes the JSON of a split by `change(document)`."""
  path = root / 'annotations' / f'instances_{split}.json'
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_records_hold_what_the_json_says(root):
  folder = root / 'annotations'
  (folder / 'instances_train.json').rename(folder / 'train.json')
  source = open_split(root, 'train')
  source = pickle.loads(pickle.dumps(source))  # As for a worker process.
  assert len(source) == 12 and source.faults == ()
  assert source.category_ids == (3, 5, 9)
  assert source.class_names == ('thing 3', 'thing 5', 'thing 9')
  for i, seed in enumerate(SEEDS['train']):
    wanted = fake_coco.annotations(seed, (3, 5, 9))
    fake_coco.assert_record(source, i, seed, wanted)
    counts = len(wanted), sum(not a['iscrowd'] for a in wanted)
    assert source.index[i].tolist() == [*fake_coco.SIZES[seed % 3], *counts]


OUTSIDE = 'reaches outside of its image of 40 x 30 pixels'
# What is wrong with an annotation, and what is said of it.
ANNOTATIONS = [
    ({'bbox': [35, 2, 10, 4]}, f'bbox [35, 2, 10, 4] {OUTSIDE}'),
    ({'bbox': [-3, 2, 10, 4]}, f'bbox [-3, 2, 10, 4] {OUTSIDE}'),
    ({'bbox': [-1, 5, 0.5, 5]}, f'bbox [-1, 5, 0.5, 5] {OUTSIDE}'),
    ({'bbox': [2, 30.5, 4, 0.25]}, f'bbox [2, 30.5, 4, 0.25] {OUTSIDE}'),
    ({'bbox': [3, 4, 0, 5]}, 'bbox [3, 4, 0, 5] has no width or'),
    ({'bbox': [3, 4, 10**400, 5]}, 'bbox=[3, 4, 10000000'),
    ({'bbox': [3, 4, 1e300, 5]}, 'bbox=[3, 4, 1e+300, 5]: Input should'),
    ({'bbox': [3, 4, True, '5']}, "bbox=[3, 4, True, '5']: Input should"),
    ({'area': 10**400}, 'area=1000000000'),
    ({'category_id': 10**400}, 'there is no category 1000'),
    ({'bbox': [3, 4, 5]}, 'bbox=[3, 4, 5]: List should have at'),
    ({'bbox': [3, 4, float('nan'), 5]}, 'bbox=[3, 4, nan, 5]: Input'),
    ({'category_id': 4}, 'there is no category 4'),
    ({'category_id': '5'}, "category_id='5': Input should be"),
    ({'iscrowd': '0'}, "iscrowd='0': Input should be"),
    ({'area': -5}, 'area=-5: Input should be greater'),
    ({'id': 91}, 'the id is that of another one'),
]
IMAGES = [
    ({'id': 1}, 'the id is that of another one'),
    ({'file_name': 'missing.jpg'}, 'No such file or directory'),
    ({'file_name': 'text.jpg'}, 'it is no image'),
    ({'file_name': '../test/000000000013.jpg'}, "'../test/00"),
    ({'file_name': '../training/a.jpg'}, "'../training/a.jpg' leads out of /"),
    ({'file_name': '/etc/hostname'}, "'/etc/hostname' leads out of /"),
    ({'file_name': '\ud800.jpg'}, r"'\ud800.jpg' is no name of"),
    ({'file_name': 'a\n.jpg'}, 'No such file'),
    ({'width': '40'}, "width='40': Input should be a valid integer"),
    ({'height': 0}, 'height=0: Input should be greater'),
    ({'width': 41}, ''),
    ({'width': 40, 'height': 30}, ''),
]


def spoil(content):
  """Puts one fault of every kind into the JSON; returns what must be said."""
  images, boxes, said = content['images'], content['annotations'], []
  for i, (changes, fault) in enumerate(ANNOTATIONS):
    boxes.append(boxes[0] | {'image_id': 0, 'id': 91 + i} | changes)
    said.append(f'annotation {boxes[-1]["id"]!r}, image_id=0: {fault}')
  boxes.append(boxes[0] | {'id': None})
  boxes.append(boxes[0] | {'id': 777, 'image_id': 777})
  boxes.append(boxes[0] | {'id': 778, 'image_id': '0'})
  said += ['annotation number ', 'annotation 777, image_id=777: there is no im']
  said.append("annotation 778, image_id='0': there is no image '0'")
  for i, (changes, fault) in enumerate(IMAGES):
    images.append(images[1] | {'id': 500 + i} | changes)
    name = images[-1]['file_name']
    said.append(f'image {images[-1]["id"]}, file_name={name!r}: {fault}')
  images.append({'id': 510, 'width': 40, 'height': 30})
  # Belongs to an image that is left out, and is no fault of its own.
  boxes.append(boxes[0] | {'id': 999, 'image_id': 501})
  return said + ['image 510: file_name: Field required']


def test_all_faults_are_listed_together_or_dropped_and_told(root):
  clean = list(open_split(root, 'train'))
  wanted = []
  rewrite(root, 'train', lambda c: wanted.extend(spoil(c)))
  (root / 'train' / 'text.jpg').write_text('no image')
  (root / 'test' / '000000000013.jpg').unlink()
  with pytest.raises(InputError) as raised:
    create(root)
  message = str(raised.value)
  for line in wanted:
    assert f'train: {line}' in message, line
  assert "test: image 13, file_name='000000000013.jpg': No such file" in message
  assert f'{len(wanted) + 1} fault(s)' in message
  assert 'config.data.drop_bad=true' in message
  assert '000000000001.jpg has 30 x 40; its entry says 40 x 30' in message
  assert len(message.splitlines()) == len(wanted) + 2
  batches = create(root, drop_bad=True)
  news = batches.unreadable.news()
  assert len(news) == len(wanted) and not batches.unreadable.news()
  assert len(batches.unreadable) == 0 and batches.num_examples == 12
  for record, sound in zip(open_split(root, 'train'), clean, strict=True):
    assert (record['objects'].boxes == sound['objects'].boxes).all()


def test_numbers_may_have_a_point_as_all_are_of_one_kind_in_json(root):
  wanted = list(open_split(root, 'train'))
  path = root / 'annotations' / 'instances_train.json'
  keys = '|'.join('id image_id category_id width height iscrowd'.split())
  text = re.sub(rf'("({keys})": \d+)', r'\1.0', path.read_text())
  path.write_text(text)
  source = open_split(root, 'train')
  assert source.faults == () and '"width": 40.0' in text
  for found, record in zip(source, wanted, strict=True):
    assert found['image_id'] == record['image_id']
    assert (found['objects'].boxes == record['objects'].boxes).all()


@pytest.mark.parametrize('size', [(30, 40), (36, 36)])
def test_boxes_lie_on_the_image_as_it_is_shown(tmp_path, size):
  """A white rectangle, kept turned in every way and format."""
  shown = np.zeros((*size, 3), np.uint8)
  shown[4:12, 20:32] = 255
  (tmp_path / 'train').mkdir()
  ways = [None, *(Image.Transpose(i) for i in (0, 3, 1, 5, 2, 6, 4))]
  images, boxes = [], []
  for turn, way in enumerate(ways, 1):
    for kind in ('jpeg', 'png', 'webp', 'tiff'):
      image, exif = Image.fromarray(shown), Image.Exif()
      exif[ExifTags.Base.Orientation] = turn
      number, name = len(images) + 1, f'{turn}.{kind}'
      image = image if way is None else image.transpose(way)
      image.save(tmp_path / 'train' / name, exif=exif)
      one = dict(id=number, file_name=name, height=size[0], width=size[1])
      images.append(one)
      box = dict(id=number, image_id=number, category_id=1)
      boxes.append(box | dict(bbox=[20, 4, 12, 8]))
  categories = [dict(id=1, name='white')]
  content = dict(images=images, annotations=boxes, categories=categories)
  (tmp_path / 'annotations').mkdir()
  (tmp_path / 'annotations/train.json').write_text(json.dumps(content))
  (batch,) = create(tmp_path, train=False, batch_size=32, eval_split='train')
  assert batch['mask'].all()
  for pixels, (x0, y0, x1, y1) in zip(
      batch['image'], batch['gt_boxes'][:, 0].round().astype(int), strict=True
  ):
    inside = pixels[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
    assert inside.size and inside.min() > 200
    assert pixels.sum() < 1.5 * inside.sum() + 0.1 * pixels.size * 255
  # Such as torchvision keeps them: its sizes are those of the file.
  content['images'] = images[20:]  # From orientation 6 on.
  for entry in content['images']:
    entry |= dict(height=size[1], width=size[0])
  (tmp_path / 'annotations/train.json').write_text(json.dumps(content))
  if size[0] != size[1]:
    with pytest.raises(InputError, match='EXIF orientation 6; its entry says'):
      create(tmp_path, train=False, eval_split='train', drop_bad=True)


def test_where_all_boxes_are_refused_that_is_said(root):
  def change(content):
    for entry in content['annotations']:
      entry['bbox'] = [3, 4, 0, 5]

  rewrite(root, 'train', change)
  words = "no image of split 'train' has a box to train on; .* fault.*no width"
  with pytest.raises(InputError, match=words):
    create(root, drop_bad=True, train_empty=False)


def test_values_that_may_be_otherwise(root):
  def change(content):
    boxes = content['annotations']
    first = dict(boxes[0], bbox=[3, 4, 5, 6])
    boxes[:] = [
        first | {'iscrowd': True, 'area': 0},
        first | {'id': 2, 'iscrowd': False, 'area': 7.5},
        first | {'id': 3, 'iscrowd': None, 'area': None},
        {k: first[k] for k in ('image_id', 'category_id', 'bbox')} | {'id': 4},
        # Less than a pixel outside: it is cut off.
        first | {'id': 5, 'bbox': [-0.5, 3, 41, 27.75], 'area': 1},
    ]
    for entry in content['images']:
      entry['id'] = f'a{entry["id"]}'
    for entry in boxes:
      entry['image_id'] = f'a{entry["image_id"]}'

  rewrite(root, 'train', change)
  source = open_split(root, 'train')
  assert source.faults == ()
  assert [record['image_id'] for record in source] == list(range(12))
  found = source[0]['objects']
  assert found.crowd.tolist() == [True] + 4 * [False]
  assert found.area.tolist() == [0, 7.5, 30, 30, 1]
  assert found.boxes[-1].tolist() == [0, 3, 40, 30]


def named(number, name):
  return dict(id=number, name=f'thing {name}')


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(images=None), '#format-data: images: Input should be a valid li'),
        (dict(annotations=[3]), 'annotations.0: Input should be a valid dict'),
        (dict(categories=[]), 'there are none'),
        (dict(categories=2 * [dict(id=5, name='x')]), 'category 5: the id is '),
        (
            dict(categories=[dict(id=77, name='x')]),
            "4 differ: id 3 is 'absent' and 'thing 3', id 5 is",
        ),
        (
            # Two of the three names have changed their places.
            dict(categories=[named(3, 5), named(5, 3), named(9, 9)]),
            "2 differ: id 3 is 'thing 5' and 'thing 3', id 5 is 'thing 3' and",
        ),
        (
            dict(categories=[named(3, 5), named(5, 5), named(9, 9)]),
            "instances_train.json: 2 have the name 'thing 5'",
        ),
        (dict(categories=[dict(id=2**31, name='x')]), 'id=2147483648: Input'),
        (dict(images=[]), 'can be used: '),
    ],
)
def test_what_cannot_be_dropped_is_refused(root, change, message):
  rewrite(root, 'train', lambda content: content.update(change))
  with pytest.raises(InputError) as raised:
    create(root, drop_bad=True)
  assert message in str(raised.value)


def test_splits_and_paths_that_are_not_there(root):
  wanted = f'want a folder {root}/val and one of '
  for spoil, path, message in (
      (str, root, f"'val' .*{wanted}.*instances_train"),
      (lambda p: (p / 'annotations/val.json').write_text('{'), root, wanted),
      (lambda p: (p / 'val').mkdir(), root, 'val.json is not of https'),
      (str, '/nowhere', 'there are none'),
  ):
    spoil(path)
    with pytest.raises(InputError, match=message):
      open_split(path, 'val')


def shown(batches):
  return sorted(i for b in batches for i in b['image_id'][b['mask']])


def cut_short(root, seed):
  content = fake_coco.image(seed)[:-60]  # The header is as it was.
  (root / f'{seed:012}.jpg').write_bytes(content)


def turn(root, seed):
  other = fake_coco.image(0 if seed % 3 == 1 else 1)  # Of other orientation.
  (root / f'{seed:012}.jpg').write_bytes(other)


@pytest.mark.parametrize(
    'spoil, seed', [(cut_short, 14), (turn, 12), (turn, 13)]
)
def test_an_image_that_breaks_later_is_named_and_masked(root, spoil, seed):
  made = [create(root, train=False, max_bad_fraction=f) for f in (0, 0.2)]
  spoil(root / 'test', seed)
  with pytest.raises(InputError, match=f'{seed:012}.jpg cannot be read'):
    list(made[0])
  assert shown(made[1]) == sorted(set(SEEDS['test']) - {seed})
  (line,) = made[1].unreadable.news()
  assert f'{seed:012}.jpg cannot be read' in line


@pytest.mark.parametrize('spoil', [cut_short, turn])
def test_an_image_that_breaks_is_replaced_by_one_of_its_orientation(
    root, spoil
):
  batches = create(root, max_bad_fraction=0.5)
  for seed in (1, 4):  # Portraits; 7 and 10 remain.
    spoil(root / 'train', seed)
  taken = [next(batches) for _ in range(12)]
  batches.close()
  assert set(shown(taken)) == set(range(12)) - {1, 4}
  assert len(batches.unreadable) == 2
  for b in taken:
    portrait = b['image'].shape[1] > b['image'].shape[2]
    assert b['mask'].all()
    assert {i % 3 == 1 for i in b['image_id']} == {portrait}


def test_where_no_image_of_an_orientation_is_left_the_first_is_named(root):
  batches = create(root, max_bad_fraction=1.0)
  for seed in (1, 4, 7, 10):
    turn(root / 'train', seed)
  with pytest.raises(InputError, match='^4 ex.* in succ.*jpg.*40 x 30 pixels'):
    [next(batches) for _ in range(12)]
  batches.close()
