"""Reads images from folders: <path>/<split>/<class>/.../<file>."""

from collections.abc import Iterator
import hashlib
import os
from typing import Any

import numpy as np

from awconv_jax.data import splits
from awconv_jax.data.decode import below, read_file
from awconv_jax.errors import InputError, one_line, some
from awconv_jax.options import local_path

EXTENSIONS = frozenset(
    '.jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm'.split()
)
# The split whose classes number the labels of all splits, and the name of the
# folder itself, where its sub-folders are the classes.
_FIRST, _WHOLE = 'train', 'all'


class FolderSource:
  """The images of a folder; the class is the name of the folder they lie in.

  They may lie in folders of folders, and links are followed. Classes are
  numbered in the order of their names, as in the split 'train' if there is one.
  The order of the images is fixed by their names but mixed, so that a slice of
  a split, 'train[:90%]', holds images of all classes.
  """

  channels, label_shape, category_ids = 3, (), None

  def __init__(self, path: str, split: str):
    """Lists the files.

    Args:
      path: the folder.
      split: a sub-folder, or 'all' if the classes lie in `path` itself; either
        may be sliced by numbers or per cent, such as 'train[90%:]'.

    Raises:
      InputError: the split is unknown or empty, or it has a folder without
        images, a class that 'train' lacks, or a file that cannot be opened.
    """
    self._path = os.fsencode(os.path.abspath(local_path(path)))
    shown, (name, part) = one_line(self._path), splits.parse(split)
    whole = name == _WHOLE
    self._root = self._path if whole else below(self._path, name)
    if not os.path.isdir(self._path):
      remedy = ''
      if not os.path.isabs(path):
        remedy = (
            f', which is {path!r} seen from here; evaluate takes --data=folder:'
            f'<its whole path> --split={split}'
        )
      raise InputError(f'there is no folder {shown}{remedy}')
    if not os.path.isdir(self._root):
      known = some(map(one_line, _subfolders(self._path))) or 'none'
      raise InputError(
          f'unknown split {name!r} of {shown}, whose sub-folders are '
          f'{known}; if these are the classes, the split is {_WHOLE!r}'
      )
    root, first = one_line(self._root), below(self._path, _FIRST)
    if whole and os.path.isdir(first) and _subfolders(first):
      raise InputError(
          f'the sub-folder {_FIRST!r} of {shown} holds folders itself: it is a '
          f'split, not a class, so {_WHOLE!r} cannot be one'
      )
    whole = whole or not os.path.isdir(first)
    classes = _subfolders(self._root if whole else first)
    # The same in every locale.
    self.class_names = [c.decode('utf-8', 'surrogateescape') for c in classes]
    files, left_out = [], []
    for path in files_below(self._root):
      file = path[len(self._root) + 1 :]
      (files if b'/' in file and is_image(file) else left_out).append(file)
    paths = (os.path.join(self._root, file) for file in files)
    closed = [path for path in paths if not os.access(path, os.R_OK)]
    found, full = _subfolders(self._root), {_class_of(file) for file in files}
    wrong = []
    if unknown := [one_line(name) for name in found if name not in classes]:
      wrong.append(f'{one_line(first)} has no class {some(unknown)}')
    if empty := [one_line(name) for name in found if name not in full]:
      kinds = ' '.join(sorted(EXTENSIONS))
      wrong.append(f'class {some(empty)} has no images ({kinds})')
    if closed:
      names = some(map(one_line, closed), 20)
      wrong.append(f'{len(closed)} cannot be opened: {names}')
    if len(classes) == 1 and files:
      wrong.append(f'{self.class_names[0]!r} is its only class')
    if wrong or not found:
      reasons = '; '.join(wrong) or f'want {root}/<class>/<image>'
      raise InputError(f'{root} cannot be used: {reasons}')
    self.faults = left_out_line(left_out)
    files = part(sorted(files, key=mixed))
    if not files:
      raise InputError(f'split {split!r} of {shown} holds no images')
    numbers = {name: i for i, name in enumerate(classes)}
    labels = [numbers[_class_of(file)] for file in files]
    self._labels = np.array(labels, np.int32)
    # As one block of bytes: worker processes get a copy each.
    self._names = np.array(files)

  def __len__(self) -> int:
    return len(self._labels)

  def _file(self, index: int) -> bytes:
    return os.path.join(self._root, self._names[index])

  def place(self, index: int) -> str:
    """Returns which file it is."""
    return one_line(self._file(index))

  def __getitem__(self, index: int) -> dict[str, Any]:
    file = self._file(index)
    return {
        'image': read_file(file),
        'label': int(self._labels[index]),
        'id': one_line(os.path.relpath(file, self._path)),
    }


def _class_of(file: bytes) -> bytes:
  return file.partition(b'/')[0]


def _subfolders(path: bytes) -> list[bytes]:
  names = (name for name in os.listdir(path) if not name.startswith(b'.'))
  return sorted(n for n in names if os.path.isdir(os.path.join(path, n)))


def files_below(
    folder: bytes,
    above: tuple[bytes, ...] = (),
    taken: set[bytes] | None = None,
) -> Iterator[bytes]:
  """Yields the files in a folder and its sub-folders, in the order of names.

  Links are followed, but for those to where they lie themselves, and to what
  the same folder of `folder` has already: many that lead to each other would
  have no end. In place of a hidden folder, whose name begins with a dot, there
  is the folder.

  Args:
    folder: a path.
    above: real paths of the folders that the way to it has led through.
    taken: real paths of those that were looked into before.
  """
  real = os.path.realpath(folder)
  circle = any(os.path.commonpath([real, a]) == real for a in above)
  if circle or real in (taken or ()):
    return
  if taken is not None:
    taken.add(real)
  for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
    hidden = entry.name.startswith(b'.')
    # Of a link to itself, the entry would not say, but raise.
    linked = entry.is_symlink() and os.path.isdir(entry.path)
    if not hidden and (linked or entry.is_dir(follow_symlinks=False)):
      here = set() if taken is None else taken
      yield from files_below(entry.path, (*above, real), here)
    else:
      yield entry.path


def is_image(file: str | bytes) -> bool:
  """Returns whether a file is an image by its name, and not hidden."""
  name = os.path.basename(os.fsdecode(file))
  return os.path.splitext(name)[1].lower() in EXTENSIONS and name[0] != '.'


def left_out_line(
    files: list[bytes], where: str = 'in no folder of a class'
) -> tuple[str, ...]:
  """Returns a line about files that are no images; none if there are none."""
  if not files:
    return ()
  names = some(map(one_line, files), 5)
  count = f'{len(files)} file' + 's' * (len(files) > 1)
  return (
      f'{count} left out (hidden, {where}, or not named as an image): {names}',
  )


def mixed(file: bytes) -> bytes:
  """Returns what sorts files in an order that their names fix, and mixes."""
  return hashlib.blake2b(file, digest_size=16).digest()
