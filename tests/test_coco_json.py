"""Images with boxes from JSON: what is read, and every fault by name."""

import json

import cv2
import fake_coco
import numpy as np
import pytest

from awconv_jax import data
from awconv_jax.data import sources
from awconv_jax.errors import InputError

SEEDS = {'train': range(12), 'test': range(12, 20)}


@pytest.fixture
def root(tmp_path):
  fake_coco.write(tmp_path, SEEDS)
  return tmp_path


def create(root, train=True, **changes):
  section = fake_coco.config(f'coco_json:{root}', **changes)
  return data.create(section, train=train, batch_size=2, seed=0)


def rewrite(root, split, change):
  """Changes the JSON of a split by `change(document)`."""
  path = root / 'annotations' / f'instances_{split}.json'
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_records_hold_what_the_json_says(root):
  source = sources.open_source(f'coco_json:{root}', None, 'train')
  assert len(source) == 12 and source.faults == ()
  assert source.category_ids == (3, 5, 9)
  assert source.class_names == ('thing 3', 'thing 5', 'thing 9')
  for i, seed in enumerate(SEEDS['train']):
    record, wanted = source[i], fake_coco.annotations(seed, (3, 5, 9))
    assert record['image'] == fake_coco.image(seed)
    assert record['image_id'] == seed
    ids = [source.category_ids[k] for k in record['objects'].labels]
    assert ids == [a['category_id'] for a in wanted]
    boxes = np.reshape([a['bbox'] for a in wanted], (-1, 4))
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_array_equal(record['objects'].boxes, boxes)
    assert record['objects'].area.tolist() == [a['area'] for a in wanted]
    crowd = [bool(a['iscrowd']) for a in wanted]
    assert record['objects'].crowd.tolist() == crowd
    assert source.index.objects[i] == len(wanted)
    assert source.index.trainable[i] == len(wanted) - sum(crowd)
    assert tuple(source.index.sizes[i]) == fake_coco.SIZES[seed % 3]


def test_the_shorter_name_of_the_json(root):
  folder = root / 'annotations'
  (folder / 'instances_test.json').rename(folder / 'test.json')
  assert len(sources.open_source(f'coco_json:{root}', None, 'test')) == 8


def spoil(content):
  """Puts one fault of every kind into the JSON; returns what must be said."""
  images, boxes = content['images'], content['annotations']
  sound = dict(boxes[0])
  size = (images[0]['width'], images[0]['height'])

  def annotation(identity, **changes):
    boxes.append(sound | {'id': identity, 'image_id': 0} | changes)

  annotation(91, bbox=[size[0] - 5, 2, 10, 4])
  annotation(92, bbox=[-3, 2, 10, 4])
  annotation(93, bbox=[2, size[1] + 0.5, 4, 0.25])
  annotation(94, bbox=[3, 4, 0, 5])
  annotation(95, bbox=[3, 4, 5, -1])
  annotation(96, bbox=[3, 4, 5])
  annotation(97, bbox=[3, 4, float('nan'), 5])
  annotation(98, category_id=4)
  annotation(99, image_id=777)
  annotation(99)
  annotation(None)
  annotation(101, iscrowd='0')
  annotation(102, iscrowd=2)
  annotation(103, area=-5)
  annotation(104, area=float('nan'))
  annotation(105, area='20')
  annotation(106, area=True)
  images.append(dict(images[1]))
  images.append(images[1] | {'id': 500, 'file_name': 'missing.jpg'})
  images.append(images[1] | {'id': 501, 'file_name': 'text.jpg'})
  images.append(images[1] | {'id': 502, 'width': 41})
  images.append(images[1] | {'id': 503, 'height': 0})
  images.append({'id': 504, 'width': 40, 'height': 30})
  images.append(images[1] | {'id': 505, 'width': 40, 'height': 30})
  # Belongs to an image that is left out, and is no fault of its own.
  annotation(100, image_id=500)
  return [
      'annotation 91 (image 0): bbox [35, 2, 10, 4] reaches outside of its '
      'image of 40 x 30 pixels',
      'annotation 92 (image 0): bbox [-3, 2, 10, 4] reaches outside',
      'annotation 93 (image 0): bbox [2, 30.5, 4, 0.25] reaches outside',
      'annotation 94 (image 0): bbox [3, 4, 0, 5] has no width or no height',
      'annotation 95 (image 0): bbox [3, 4, 5, -1] has no width or no height',
      'annotation 96 (image 0): bbox=[3, 4, 5]: List should have at least 4 ',
      'annotation 97 (image 0): bbox=[3, 4, nan, 5]: Input should be a finite',
      'annotation 98 (image 0): there is no category 4',
      'annotation 99 (image 777): there is no image 777',
      'annotation 99 (image 0): the id is that of another one',
      'annotation number ',
      "annotation 101 (image 0): iscrowd='0': Input should be",
      'annotation 102 (image 0): iscrowd=2: Input should be',
      'annotation 103 (image 0): area=-5: Input should be greater',
      'annotation 104 (image 0): area=nan: Input should be a finite',
      "annotation 105 (image 0): area='20': Input should be a valid number",
      'annotation 106 (image 0): area=True: Input should be a valid number',
      'image 1 (000000000001.jpg): the id is that of another one',
      'image 500 (missing.jpg): there is no file ',
      'image 501 (text.jpg): ',
      'image 502 (000000000001.jpg): ',
      'image 503 (000000000001.jpg): height=0: Input should be greater',
      'image 504: file_name: Field required',
      'image 505 (000000000001.jpg): ',
  ]


def test_all_faults_are_listed_together(root):
  wanted = []
  rewrite(root, 'train', lambda c: wanted.extend(spoil(c)))
  (root / 'train' / 'text.jpg').write_text('no image')
  (root / 'test' / '000000000013.jpg').unlink()
  with pytest.raises(InputError) as raised:
    create(root)
  message = str(raised.value)
  for line in wanted:
    assert f'train: {line}' in message, line
  assert 'test: image 13 (000000000013.jpg): there is no file' in message
  assert f'{len(wanted) + 1} fault(s)' in message
  assert 'config.data.drop_bad=true' in message
  assert 'entry says 40 x 30; turn the pixels of the file' in message
  # One line for each, below one for all.
  assert len(message.splitlines()) == len(wanted) + 2


def test_faults_are_dropped_and_each_is_named(root):
  clean = list(sources.open_source(f'coco_json:{root}', None, 'train'))
  wanted = []
  rewrite(root, 'train', lambda c: wanted.extend(spoil(c)))
  batches = create(root, drop_bad=True)
  news = batches.unreadable.news()
  assert len(news) == len(wanted) and not batches.unreadable.news()
  assert len(batches.unreadable) == 0 and batches.num_examples == 12
  source = sources.open_source(f'coco_json:{root}', None, 'train')
  for record, sound in zip(source, clean, strict=True):
    np.testing.assert_array_equal(
        record['objects'].boxes, sound['objects'].boxes
    )


def test_less_than_a_pixel_outside_is_cut_off(root):
  def change(content):
    content['annotations'][0]['bbox'] = [-0.5, 3, 41, 27.75]

  rewrite(root, 'train', change)
  source = sources.open_source(f'coco_json:{root}', None, 'train')
  assert source.faults == ()
  assert source[0]['objects'].boxes[0].tolist() == [0, 3, 40, 30]


def test_crowds_may_be_booleans_and_values_may_be_left_out(root):
  def change(content):
    boxes = content['annotations']
    first = dict(boxes[0], bbox=[3, 4, 5, 6])
    boxes[:] = [
        first | {'iscrowd': True, 'area': 0},
        first | {'id': 2, 'iscrowd': False, 'area': 7.5},
        first | {'id': 3, 'iscrowd': None, 'area': None},
        {k: first[k] for k in ('image_id', 'category_id', 'bbox')} | {'id': 4},
    ]

  rewrite(root, 'train', change)
  source = sources.open_source(f'coco_json:{root}', None, 'train')
  assert source.faults == ()
  found = source[0]['objects']
  assert found.crowd.tolist() == [True, False, False, False]
  assert found.area.tolist() == [0, 7.5, 30, 30]


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda c: c.pop('images'), "has no list 'images' of objects"),
        (lambda c: c['categories'].clear(), 'there are none'),
        (
            lambda c: c['categories'].append({'id': 5, 'name': 'x'}),
            'category 5: the id is that of another',
        ),
        (
            lambda c: c['categories'][0].pop('name'),
            'category 9: name: Field required',
        ),
        (lambda c: c['images'].clear(), 'can be used: '),
        (lambda c: c['annotations'].append(3), "has no list 'annotations'"),
    ],
)
def test_what_cannot_be_dropped_is_refused(root, change, message):
  rewrite(root, 'train', change)
  with pytest.raises(InputError) as raised:
    create(root, drop_bad=True)
  assert message in str(raised.value)


def test_categories_must_be_the_same_in_both_splits(root):
  def change(content):
    content['categories'].append({'id': 77, 'name': 'new'})

  rewrite(root, 'test', change)
  with pytest.raises(InputError, match='differ in their categories, id 77'):
    create(root)


def test_splits_and_paths_that_are_not_there(root):
  name = f'coco_json:{root}'
  with pytest.raises(InputError, match="unknown split 'val'.*instances_train"):
    sources.open_source(name, None, 'val')
  (root / 'annotations' / 'val.json').write_text('{')
  with pytest.raises(InputError, match='there is no folder .*/val for the im'):
    sources.open_source(name, None, 'val')
  (root / 'val').mkdir()
  with pytest.raises(InputError, match='val.json is not a JSON file'):
    sources.open_source(name, None, 'val')
  with pytest.raises(InputError, match='there is no folder /nowhere/ann'):
    sources.open_source('coco_json:/nowhere', None, 'train')


def test_ids_that_are_texts_become_numbers(root):
  def change(content):
    for entry in content['images']:
      entry['id'] = f'a{entry["id"]}'
    for entry in content['annotations']:
      entry['image_id'] = f'a{entry["image_id"]}'

  rewrite(root, 'test', change)
  source = sources.open_source(f'coco_json:{root}', None, 'test')
  assert [record['image_id'] for record in source] == list(range(8))
  assert source.faults == ()


def test_an_image_that_breaks_later_is_named_and_masked(root):
  path = root / 'test' / '000000000014.jpg'
  path.write_bytes(path.read_bytes()[:-60])  # The header is as it was.
  batches = create(root, train=False)
  with pytest.raises(InputError, match='000000000014.jpg cannot be read'):
    list(batches)
  batches = create(root, train=False, max_bad_fraction=0.2)
  shown = [i for b in batches for i in b['image_id'][b['mask']]]
  assert sorted(shown) == [12, 13, 15, 16, 17, 18, 19]
  assert len(batches.unreadable) == 1


def test_an_image_that_breaks_is_replaced_by_one_of_its_orientation(root):
  for seed in (1, 4):  # Portraits; 7 and 10 remain.
    path = root / 'train' / f'{seed:012}.jpg'
    path.write_bytes(path.read_bytes()[:-60])
  batches = create(root, max_bad_fraction=0.2)
  taken = [next(batches) for _ in range(12)]
  batches.close()
  shown = {i for b in taken for i in b['image_id']}
  assert shown == set(range(12)) - {1, 4} and len(batches.unreadable) == 2
  assert all(b['mask'].all() for b in taken)
  for b in taken:
    portrait = b['image'].shape[1] > b['image'].shape[2]
    assert {i % 3 == 1 for i in b['image_id']} == {portrait}


@pytest.mark.parametrize('seed, other', [(12, 13), (13, 12)])
def test_an_image_that_is_turned_later_is_named_and_masked(root, seed, other):
  batches = create(root, train=False, max_bad_fraction=0.2)
  (root / f'test/{seed:012}.jpg').write_bytes(fake_coco.image(other))
  shown = [i for b in batches for i in b['image_id'][b['mask']]]
  assert sorted(shown) == sorted(set(range(12, 20)) - {seed})
  (line,) = batches.unreadable.news()
  assert f'{seed:012}.jpg cannot be read' in line


def test_images_that_are_turned_later_are_replaced_or_all_named(root):
  batches = create(root, max_bad_fraction=0.5)
  turned = (1, 4)  # Portraits; 7 and 10 remain.
  for seed in turned:
    (root / f'train/{seed:012}.jpg').write_bytes(fake_coco.image(0))
  taken = [next(batches) for _ in range(12)]
  batches.close()
  assert {i for b in taken for i in b['image_id']} == set(range(12)) - {1, 4}
  assert len(batches.unreadable) == 2
  batches = create(root, max_bad_fraction=1.0, drop_bad=True)
  for seed in (7, 10):
    (root / f'train/{seed:012}.jpg').write_bytes(fake_coco.image(0))
  with pytest.raises(InputError, match='in succession.*jpg.*40 x 30 pixels'):
    for _ in range(12):
      next(batches)
  batches.close()


def test_pixels_are_those_of_the_file(root):
  batches = create(root, train=False, short_side=30, train_short_sides=(30,))
  row = next(iter(batches))
  wanted = cv2.imread(str(root / 'test' / f'{row["image_id"][0]:012}.jpg'))
  height, width = row['image_size'][0]
  shown = row['image'][0][:height, :width]
  assert (height, width) == wanted.shape[:2]
  assert np.abs(shown - wanted[..., ::-1].astype(int)).max() <= 2
