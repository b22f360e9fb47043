"""Images in folders: classes, slices, and what is refused before training."""

import os

import pictures
import pytest

from awconv_jax.data import sources
from awconv_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
  """train: cat 6, dog 4, emu 2; test: cat 1, dog 2."""
  counts = {
      'train': {'cat': 6, 'dog': 4, 'emu': 2},
      'test': {'cat': 1, 'dog': 2},
  }
  for split, classes in counts.items():
    for name, count in classes.items():
      (tmp_path / split / name).mkdir(parents=True)
      for i in range(count):
        path = tmp_path / split / name / f'{i}.png'
        path.write_bytes(pictures.encode(pictures.smooth(4, 5, i)))
  return tmp_path


def opened(folder, split='train'):
  return sources.open_source(f'folder:{folder}', None, split)


def records(source):
  return [source[i] for i in range(len(source))]


def test_classes_are_the_sub_folders_in_order(folder):
  source = opened(folder)
  found = records(source)

  assert source.num_classes == 3 and source.channels == 3 and len(found) == 12
  assert sorted(r['label'] for r in found) == [0] * 6 + [1] * 4 + [2] * 2
  for record in found:
    label = ['cat', 'dog', 'emu'].index(record['id'].split(os.sep)[1])
    assert record['label'] == label
    assert record['image'] == (folder / record['id']).read_bytes()


def test_a_split_that_lacks_a_class_numbers_the_others_alike(folder):
  source = opened(folder, 'test')

  assert source.num_classes == 3
  assert sorted(r['label'] for r in records(source)) == [0, 1, 1]


def test_slices_part_a_split(folder):
  whole = [r['id'] for r in records(opened(folder))]
  parts = [
      [r['id'] for r in records(opened(folder, split))]
      for split in ('train[:75%]', 'train[75%:]')
  ]
  assert len(parts[0]) == 9 and sum(parts, []) == whole
  # The order is mixed: a part is not of the first classes alone.
  assert {name.split(os.sep)[1] for name in parts[0]} == {'cat', 'dog', 'emu'}


def test_classes_may_lie_in_the_folder_itself(folder):
  source = opened(folder / 'train', 'all[:50%]')

  assert source.num_classes == 3 and len(source) == 6


def test_files_that_are_no_images_are_left_out(folder):
  (folder / 'train/cat/notes.txt').write_text('of the cat')
  (folder / 'train/cat/._0.png').write_bytes(b'')
  (folder / 'train/.cache').mkdir()
  (folder / 'train/cat/UPPER.JPG').write_bytes(b'an image, by its name')

  assert len(opened(folder)) == 13


def empty_class(folder):
  (folder / 'train/fox').mkdir()
  (folder / 'train/fox/notes.txt').write_text('no fox')


def unreadable_file(folder):
  os.symlink(folder / 'gone.png', folder / 'train/dog/link.png')


def unknown_class(folder):
  (folder / 'test/yak').mkdir()


@pytest.mark.parametrize(
    'spoil, split, words',
    [
        (empty_class, 'train', r'train/fox has no images'),
        (unreadable_file, 'train', r'cannot open .*train/dog/link.png'),
        (unknown_class, 'test', r'train has no class yak'),
        (None, 'val', r"unknown split 'val' .*are test, train; .* is 'all'"),
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


def test_a_folder_that_is_not_there(folder):
  with pytest.raises(InputError, match='there is no folder .*/birds'):
    opened(folder / 'birds')
  with pytest.raises(
      InputError, match='cat cannot be used: want .*cat/<class>'
  ):
    opened(folder / 'train', 'cat')
