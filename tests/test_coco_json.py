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
  assert len(source) == 12 and source.faults == ()
  assert source.category_ids == (3, 5, 9)
  assert source.class_names == ('thing 3', 'thing 5', 'thing 9')
  for i, seed in enumerate(SEEDS['train']):
    wanted = fake_coco.annotations(seed, (3, 5, 9))
    crowd = [a['iscrowd'] for a in wanted]
    fake_coco.assert_record(source, i, seed, wanted)
    counts = len(wanted), len(wanted) - sum(crowd)
    assert source.index[i].tolist() == [*fake_coco.SIZES[seed % 3], *counts]


OUTSIDE = 'reaches outside of its image of 40 x 30 pixels'
# What is wrong with an annotation, and what is said of it.
ANNOTATIONS = [
    ({'bbox': [35, 2, 10, 4]}, f'bbox [35, 2, 10, 4] {OUTSIDE}'),
    ({'bbox': [-3, 2, 10, 4]}, f'bbox [-3, 2, 10, 4] {OUTSIDE}'),
    ({'bbox': [2, 30.5, 4, 0.25]}, f'bbox [2, 30.5, 4, 0.25] {OUTSIDE}'),
    ({'bbox': [3, 4, 0, 5]}, 'bbox [3, 4, 0, 5] has no width or'),
    ({'bbox': [3, 4, 5, -1]}, 'bbox [3, 4, 5, -1] has no width or'),
    ({'bbox': [3, 4, 5]}, 'bbox=[3, 4, 5]: List should have at'),
    ({'bbox': [3, 4, float('nan'), 5]}, 'bbox=[3, 4, nan, 5]: Input'),
    ({'category_id': 4}, 'there is no category 4'),
    ({'iscrowd': '0'}, "iscrowd='0': Input should be"),
    ({'iscrowd': 2}, 'iscrowd=2: Input should be'),
    ({'area': -5}, 'area=-5: Input should be greater'),
    ({'area': True}, 'area=True: Input should be a valid number'),
    ({'id': 91}, 'the id is that of another one'),
]
IMAGES = [
    ({'id': 1}, 'the id is that of another one'),
    ({'file_name': 'missing.jpg'}, '[Errno 2] No such file'),
    ({'file_name': 'text.jpg'}, 'cannot identify image file'),
    ({'height': 0}, 'height=0: Input should be greater'),
    ({'width': 41}, ''),
    ({'width': 40, 'height': 30}, ''),
]


def spoil(content):
  """Puts one fault of every kind into the JSON; returns what must be said."""
  images, boxes, said = content['images'], content['annotations'], []
  for i, (changes, fault) in enumerate(ANNOTATIONS):
    boxes.append(boxes[0] | {'image_id': 0, 'id': 91 + i} | changes)
    said.append(f'annotation {boxes[-1]["id"]}, image_id=0: {fault}')
  boxes.append(boxes[0] | {'id': None})
  boxes.append(boxes[0] | {'id': 777, 'image_id': 777})
  said += ['annotation number ', 'annotation 777, image_id=777: there is no im']
  for i, (changes, fault) in enumerate(IMAGES):
    images.append(images[1] | {'id': 500 + i} | changes)
    name = images[-1]['file_name']
    said.append(f'image {images[-1]["id"]}, file_name={name}: {fault}')
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
  assert 'test: image 13, file_name=000000000013.jpg: [Errno 2]' in message
  assert f'{len(wanted) + 1} fault(s)' in message
  assert 'config.data.drop_bad=true' in message
  assert 'entry says 40 x 30; turn the pixels of the file' in message
  # One line for each, below one for all.
  assert len(message.splitlines()) == len(wanted) + 2

  batches = create(root, drop_bad=True)
  news = batches.unreadable.news()
  assert len(news) == len(wanted) and not batches.unreadable.news()
  assert len(batches.unreadable) == 0 and batches.num_examples == 12
  for record, sound in zip(open_split(root, 'train'), clean, strict=True):
    assert (record['objects'].boxes == sound['objects'].boxes).all()


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
  # Ids that are texts become numbers.
  assert [record['image_id'] for record in source] == list(range(12))
  found = source[0]['objects']
  assert found.crowd.tolist() == [True] + 4 * [False]
  assert found.area.tolist() == [0, 7.5, 30, 30, 1]
  assert found.boxes[-1].tolist() == [0, 3, 40, 30]


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(images=None), '#format-data: images: Input should be a valid li'),
        (dict(annotations=[3]), 'annotations.0: Input should be a valid dict'),
        (dict(categories=[]), 'there are none'),
        (dict(categories=2 * [dict(id=5, name='x')]), 'category 5: the id is '),
        (dict(images=[]), 'can be used: '),
    ],
)
def test_what_cannot_be_dropped_is_refused(root, change, message):
  rewrite(root, 'train', lambda content: content.update(change))
  with pytest.raises(InputError) as raised:
    create(root, drop_bad=True)
  assert message in str(raised.value)


def test_categories_must_be_the_same_in_both_splits(root):
  new = {'id': 77, 'name': 'new'}
  rewrite(root, 'test', lambda content: content['categories'].append(new))
  with pytest.raises(InputError, match=r'differ in id \[77\]'):
    create(root)


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
  assert all(b['mask'].all() for b in taken)
  for b in taken:
    portrait = b['image'].shape[1] > b['image'].shape[2]
    assert {i % 3 == 1 for i in b['image_id']} == {portrait}


def test_where_no_image_of_an_orientation_is_left_one_is_named(root):
  batches = create(root, max_bad_fraction=1.0, drop_bad=True)
  for seed in (1, 4, 7, 10):
    turn(root / 'train', seed)
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
