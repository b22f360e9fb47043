"""Images in folders: classes, slices, and what is refused before training."""

import os
import shutil

import pictures
import pytest

from awconv_jax.data import sources
from awconv_jax.errors import InputError


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


def test_classes_may_lie_in_the_folder_itself(folder):
  source = opened(folder / 'train', 'all[:50%]')
  assert len(source.class_names) == 3 and len(source) == 6


def test_files_that_are_no_images_are_left_out(folder):
  (folder / 'train/cat/notes.txt').write_text('of the cat')
  (folder / 'train/cat/._0.png').write_bytes(b'')
  (folder / 'train/.cache').mkdir()
  (folder / 'train/circle').symlink_to('circle')
  (folder / 'train/cat/UPPER.JPG').write_bytes(b'an image, by its name')
  assert len(opened(folder)) == 13


def empty_class(folder):
  (folder / 'train/fox').mkdir()
  (folder / 'train/fox/notes.txt').write_text('no fox')


@pytest.mark.parametrize(
    'spoil, split, words',
    [
        (empty_class, 'train', 'not be used: class fox has no images'),
        (lambda f: (f / 'test/yak').mkdir(), 'test', r'train has no class yak'),
        (shutil.rmtree, 'train', 'there is no folder'),
        (None, 'val', r"unknown split 'val': .*are test, train; .* is 'all'"),
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
