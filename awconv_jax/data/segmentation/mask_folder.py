"""Images and masks from folders: <path>/<split>/images/... and .../masks/...

birds/classes.txt               a name a line: background, wing, beak
birds/train/images/a/1.jpg      birds/train/masks/a/1.png
birds/test/images/7.png         birds/test/masks/7.png
"""

import os

import numpy as np

from awconv_jax.data import splits
from awconv_jax.data.decode import below, opened, read_file
from awconv_jax.data.folder_source import (
    files_below,
    is_image,
    left_out_line,
    mixed,
)
from awconv_jax.data.segmentation import masks
from awconv_jax.errors import InputError, one_line, some
from awconv_jax.options import local_path

_CLASSES, _IMAGES, _MASKS, _WHOLE = 'classes.txt', b'images', b'masks', 'all'


class MaskFolder(masks.Source):
  """Images, each with a mask of the same name that is an index PNG.

  A pixel of a mask is the line of its class in classes.txt, from 0 on, or 255.
  The order of the images is fixed by their names but mixed.
  """

  def __init__(self, path: str, split: str):
    """Lists the files.

    Args:
      path: the folder.
      split: a sub-folder, or 'all' if images and masks lie in `path` itself;
        either may be sliced by numbers or per cent, such as 'train[90%:]'.

    Raises:
      InputError: there are no classes, or the split is unknown or empty, or an
        image has no mask.
    """
    folder = os.fsencode(os.path.abspath(local_path(path)))
    shown, (name, part) = one_line(folder), splits.parse(split)
    root = folder if name == _WHOLE else below(folder, name)
    self._images, self._masks = (
        os.path.join(root, kind) for kind in (_IMAGES, _MASKS)
    )
    for needed in (self._images, self._masks):
      if not os.path.isdir(needed):
        raise InputError(
            f'there is no folder {one_line(needed)}; split {split!r} of masks '
            'is <path>/<split>/images and <path>/<split>/masks, and the split '
            f'{_WHOLE!r} <path>/images and <path>/masks'
        )
    self.class_names = _class_names(os.path.join(folder, _CLASSES.encode()))
    length = len(os.path.join(self._images, b''))
    files, left_out = [], []
    for path in files_below(self._images):
      (files if is_image(path) else left_out).append(path[length:])
    asked = {self._mask(file) for file in files}
    left_out += [p for p in files_below(self._masks) if p not in asked]
    self.faults = left_out_line(left_out, 'a mask without an image')
    lacking = [f for f in files if not os.path.exists(self._mask(f))]
    if lacking:
      names = some(one_line(self._mask(f)) for f in lacking)
      raise InputError(
          f'{len(lacking)} of {len(files)} images have no mask, a PNG of the '
          f'same name; add it, or remove the image: {names}'
      )
    files = part(sorted(files, key=mixed))
    if not files:
      raise InputError(f'split {split!r} of {shown} holds no images')
    # As one block of bytes: worker processes get a copy each.
    self._names = np.array(files)

  def __len__(self) -> int:
    return len(self._names)

  def _mask(self, name: bytes) -> bytes:
    return os.path.join(self._masks, os.path.splitext(name)[0] + b'.png')

  def place(self, index: int) -> str:
    """Returns which file it is."""
    return one_line(os.path.join(self._images, self._names[index]))

  def place_of_mask(self, index: int) -> str:
    return one_line(self._mask(self._names[index]))

  def files(self, index: int):
    return {name: opened(path) for name, path in self._paths(index).items()}

  def __getitem__(self, index: int) -> dict[str, bytes]:
    return {name: read_file(p) for name, p in self._paths(index).items()}

  def _paths(self, index: int) -> dict[str, bytes]:
    name = self._names[index]
    image = os.path.join(self._images, name)
    return {'image': image, 'classes': self._mask(name)}


def _class_names(path: bytes) -> list[str]:
  """Returns the lines of a file; InputError if it is not there."""
  shown = one_line(path)
  try:
    names = read_file(path).decode('utf-8-sig').split('\n')
  except InputError as error:
    raise InputError(
        f'{shown} cannot be read: {error}; write the name of each class there, '
        'one a line, that of the number 0 in masks first'
    ) from error
  except UnicodeDecodeError as error:
    raise InputError(f'{shown} is not in UTF-8') from error
  names = [name.strip() for name in names]
  while names and not names[-1]:
    names.pop()
  for number, name in enumerate(names):
    if not name or name in names[:number]:
      fault = f'names {one_line(name)!r} twice' if name else 'is empty'
      raise InputError(
          f'{shown}: line {number + 1} {fault}; write one name for each class'
      )
  return names
