"""Reads data sets of images with boxes that TFDS has prepared: coco/2017.

A record has the features of TFDS's coco/2017
(https://www.tensorflow.org/datasets/catalog/coco): boxes are [ymin, xmin, ymax,
xmax] in 0..1, labels 0..K-1 stand for the sorted ids of the categories.
"""

import functools
import hashlib
import os
import tempfile
from typing import Any
import urllib.parse

import numpy as np

from awconv_jax.data.decode import Picture, UnreadableError
from awconv_jax.data.detection.objects import Index, Objects, create
from awconv_jax.data.tfds_source import TfdsSource, open_tfds
from awconv_jax.errors import InputError

# TFDS does not keep the ids. COCO's are 1..90 without those that were given
# to categories of which no object has been outlined.
_NOT_OUTLINED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = {
    'coco': tuple(i for i in range(1, 91) if i not in _NOT_OUTLINED)
}
_NEEDED = ('bbox', 'label', 'is_crowd', 'area')


class TfdsObjects(TfdsSource):
  """One split of a prepared data set; see `objects` for what it offers."""

  def __init__(self, directory: str, split: str, embedded: bool = False):
    """Opens a split; arguments and errors as for `TfdsSource`."""
    super().__init__(directory, split, embedded)
    self._directory = directory
    self.faults = ()

  def _take(self, info: Any, directory: str) -> None:
    features = info.features
    objects = features['objects'] if 'objects' in features else None
    inner = getattr(objects, 'feature', {})
    missing = [key for key in ('image', 'image/id') if key not in features]
    missing += [f'objects/{key}' for key in _NEEDED if key not in inner]
    if missing:
      raise InputError(
          f'{directory} has no feature {", ".join(missing)}; images with boxes '
          f'are needed, and its features are {", ".join(features)}'
      )
    label = objects['label']
    self.num_classes = label.num_classes
    self.class_names = tuple(label.names)
    # Kept with the set, or COCO's, or without gaps.
    kept = (info.metadata or {}).get('label_to_category_id')
    known = CATEGORY_IDS.get(info.name, range(1, self.num_classes + 1))
    self.category_ids = tuple(int(i) for i in kept or known)

  def _example(self, record: dict[str, Any], index: int) -> dict[str, Any]:
    # Of the header only: the pixels are not needed yet.
    picture = Picture(record['image'], self.channels)
    return {
        'image': record['image'],
        'image_id': int(record['image/id']),
        'objects': _objects(record['objects'], picture.height, picture.width),
    }

  @functools.cached_property
  def index(self) -> Index:
    """Sizes and counts of objects, which have to be looked up in all images.

    It takes 0.2 ms an image [one core], 20 s for COCO, or as long as reading
    all files takes; so it is kept beside the data, where that can be written
    and all images can be read: those that cannot may do so the next time.
    """
    name = urllib.parse.quote(self._split, safe='')
    path = os.path.join(self._directory, f'image_index-{name}.npy')
    key = _fingerprint([file.filename for file in self._files])
    table = _load(path, len(self), key)
    if table is None:
      table = np.array([self._line(i) for i in range(len(self))], np.int32)
      if table[:, 0].all():
        _save(path, table, key)
    return Index(table[:, :2], table[:, 2], table[:, 3])

  def _line(self, index: int) -> tuple[int, int, int, int]:
    try:
      record = self[index]
      picture = Picture(record['image'], self.channels)
    except UnreadableError:
      return 0, 0, 0, 0
    objects = record['objects']
    trainable = int(objects.trainable().sum())
    return picture.height, picture.width, len(objects), trainable


def _objects(record: dict[str, Any], height: int, width: int) -> Objects:
  """Returns the objects, in pixels of an image of that size."""
  boxes = np.asarray(record['bbox'], np.float32).reshape(-1, 4)
  boxes = boxes[:, [1, 0, 3, 2]] * np.float32([width, height, width, height])
  return create(boxes, record['label'], record['is_crowd'], record['area'])


def _fingerprint(paths: list[str]) -> np.ndarray:
  """Returns int32 [4] that are others when the files have been made anew."""
  stats = [(os.path.basename(path), os.stat(path)) for path in paths]
  known = repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats])
  digest = hashlib.blake2b(known.encode(), digest_size=16).digest()
  return np.frombuffer(digest, np.int32)


def _load(path: str, length: int, key: np.ndarray) -> np.ndarray | None:
  """Returns the table that `_save` wrote, if it is whole and of these files."""
  try:
    table = np.load(path)
  except (OSError, ValueError, EOFError):
    return None
  sound = table.shape == (length + 1, 4) and np.array_equal(table[-1], key)
  return table[:-1] if sound else None


def _save(path: str, table: np.ndarray, key: np.ndarray) -> None:
  """Writes a table, in one step as other processes may read; or does not."""
  try:
    with tempfile.NamedTemporaryFile(
        dir=os.path.dirname(path), suffix='.npy', delete=False
    ) as file:
      np.save(file, np.vstack([table, key]))
    os.chmod(file.name, 0o644)  # Temporary files are for their owner alone.
    os.replace(file.name, path)
  except OSError:
    pass  # The data set belongs to somebody else: it is looked up every time.


def open_objects(
    name: str, data_dir: str | None, split: str, embedded: bool = False
) -> TfdsObjects:
  """Opens a prepared data set of images with boxes; see `open_tfds`."""
  return open_tfds(name, data_dir, split, embedded, TfdsObjects)
