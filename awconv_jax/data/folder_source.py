"""Reads images from folders: <path>/<split>/<class>/<file>."""

import hashlib
import os
from typing import Any

import numpy as np

from awconv_jax.data import splits
from awconv_jax.data.decode import read_file
from awconv_jax.errors import InputError

EXTENSIONS = frozenset(
    '.jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm'.split()
)
# The split whose classes number the labels of all splits, and the name of the
# folder itself, where its sub-folders are the classes.
_FIRST, _WHOLE = 'train', 'all'


class FolderSource:
  """The images of a folder; the class is the name of the folder they lie in.

  Classes are numbered in the order of their names, as in the split 'train'
  if there is one. The order of the images is fixed by their names but mixed,
  so that a slice of a split, 'train[:90%]', holds images of all classes.
  """

  channels, label_shape, category_ids, faults = 3, (), None, ()

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
    self._path = os.path.abspath(os.path.expanduser(path))
    name, part = splits.parse(split)
    self._root = os.path.join(self._path, '' if name == _WHOLE else name)
    if not os.path.isdir(self._path):
      raise InputError(f'there is no folder {self._path}')
    if not os.path.isdir(self._root):
      known = ', '.join(_subfolders(self._path)[:10]) or 'none'
      raise InputError(
          f'unknown split {name!r} of {self._path}, whose sub-folders are '
          f'{known}; if these are the classes, the split is {_WHOLE!r}'
      )
    first = os.path.join(self._path, _FIRST)
    whole = name == _WHOLE or not os.path.isdir(first)
    self.class_names = _subfolders(self._root if whole else first)
    numbers = {name: i for i, name in enumerate(self.class_names)}
    found = {
        name: [*filter(is_image, os.listdir(os.path.join(self._root, name)))]
        for name in _subfolders(self._root)
    }
    paths = [os.path.join(self._root, n, f) for n in found for f in found[n]]
    closed = [p for p in paths if os.path.isdir(p) or not os.access(p, os.R_OK)]
    empty = f'has no images ({" ".join(sorted(EXTENSIONS))})'
    wrong = [f'{first} has no class {n}' for n in found if n not in numbers]
    wrong += [f'class {n} {empty}' for n in found if not found[n]]
    if closed:
      wrong.append(f'{len(closed)} cannot be opened: {", ".join(closed[:20])}')
    if wrong or not found:
      reasons = '; '.join(wrong) or f'want {self._root}/<class>/<image>'
      raise InputError(f'{self._root} cannot be used: {reasons}')
    files = [(name, file) for name in found for file in found[name]]
    files = part(sorted(files, key=_mixed))
    if not files:
      raise InputError(f'split {split!r} of {self._path} holds no images')
    self._labels = np.array([numbers[name] for name, _ in files], np.int32)
    # As one block of bytes: worker processes get a copy each.
    self._names = np.array([os.fsencode(name) for _, name in files])

  def __len__(self) -> int:
    return len(self._labels)

  def place(self, index: int) -> str:
    """Returns which file it is."""
    folder = os.path.join(self._root, self.class_names[self._labels[index]])
    return os.path.join(folder, os.fsdecode(self._names[index]))

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = self.place(index)
    return {
        'image': read_file(path),
        'label': int(self._labels[index]),
        'id': os.path.relpath(path, self._path),
    }


def _subfolders(path: str) -> list[str]:
  names = (name for name in os.listdir(path) if name[0] != '.')
  return sorted(n for n in names if os.path.isdir(os.path.join(path, n)))


def is_image(name: str) -> bool:
  """Returns whether a file is an image by its name, and not hidden."""
  return os.path.splitext(name)[1].lower() in EXTENSIONS and name[0] != '.'


def _mixed(file: tuple[str, str]) -> bytes:
  return hashlib.blake2b(os.fsencode('/'.join(file)), digest_size=16).digest()
