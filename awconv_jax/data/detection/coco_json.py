"""Reads images with boxes from a COCO-style JSON and a folder of images.

  <path>/annotations/instances_<split>.json, or <path>/annotations/<split>.json
  <path>/<split>/<file_name>

This is how COCO itself unpacks, and https://cocodataset.org/#format-data says
what is in the JSON. Where ids of images are texts, or 2^31 and more, all images
of the split are numbered 0, 1, ... in its order instead, in results, too.
"""

import json
import os
from typing import Any

import numpy as np

from awconv_jax.data.decode import read_file
from awconv_jax.data.detection import coco_faults
from awconv_jax.data.detection.objects import Index, Objects, create
from awconv_jax.errors import InputError

_FOLDER = 'annotations'
_PREFIXES = ('instances_', '')


class CocoJson:
  """The sound images and boxes of one split; see `objects`.

  Attributes:
    faults: a line for each image and each box that was left out.
    place: path of the JSON.
  """

  channels = 3

  def __init__(self, path: str, split: str):
    """Reads the JSON, and looks at the header of every image.

    Args:
      path: the folder.
      split: name of the split.

    Raises:
      InputError: there is no such split, its JSON is not of the format, or no
        image of it can be used.
    """
    self._path = os.path.abspath(os.path.expanduser(path))
    self.place = _annotations_file(self._path, split)
    self._folder = os.path.join(self._path, split)
    if not os.path.isdir(self._folder):
      raise InputError(
          f'there is no folder {self._folder} for the images of {self.place}'
      )
    checked = coco_faults.sort_out(_load(self.place), self.place, self._folder)
    self.faults, images = checked.faults, checked.images
    if not images:
      reasons = '; '.join(self.faults) or 'it lists none'
      raise InputError(f'no image of {self.place} can be used: {reasons}')
    self.class_names = tuple(c.name for c in checked.categories)
    self.category_ids = tuple(c.id for c in checked.categories)
    self.num_classes = len(self.class_names)
    # All entries as arrays: worker processes get a copy of each.
    self._names = np.array([os.fsencode(i.file_name) for i in images])
    self._ids = _numbers([i.id for i in images])
    self._sizes = np.int32([(i.height, i.width) for i in images])
    lists = [checked.annotations[i.id] for i in images]
    counts = [len(annotations) for annotations in lists]
    self._ends = np.cumsum(counts)
    found = [annotation for annotations in lists for annotation in annotations]
    labels = {c: label for label, c in enumerate(self.category_ids)}
    boxes = np.reshape([a.bbox for a in found], (-1, 4)).astype(float)
    areas = boxes[:, 2] * boxes[:, 3]
    # Width and height of each one's image.
    limits = np.repeat(self._sizes[:, ::-1], counts, axis=0)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], limits.reshape(-1, 2))
    self._objects = create(
        np.concatenate([boxes[:, :2].clip(0), high], 1),
        [labels[a.category_id] for a in found],
        [bool(a.iscrowd) for a in found],
        # Of the object, or of its box where none is given.
        [
            area if a.area is None else a.area
            for a, area in zip(found, areas, strict=True)
        ],
    )

  def __len__(self) -> int:
    return len(self._sizes)

  def _objects_of(self, index: int) -> Objects:
    start = self._ends[index - 1] if index else 0
    return self._objects.take(np.arange(start, self._ends[index]))

  def _file_of(self, index: int) -> str:
    return os.path.join(self._folder, os.fsdecode(self._names[index]))

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {
        'image': read_file(self._file_of(index)),
        'image_id': int(self._ids[index]),
        'objects': self._objects_of(index),
    }

  @property
  def index(self) -> Index:
    """Sizes and counts of objects."""
    counts = np.diff(self._ends, prepend=0)
    owners = np.repeat(np.arange(len(self)), counts)
    trainable = np.bincount(
        owners[self._objects.trainable()], minlength=len(self)
    )
    return Index(self._sizes, counts, trainable)

  def describe(self, index: int, reason: str) -> str:
    """Returns which file could not be read, and why."""
    return f'{self._file_of(index)} cannot be read: {reason}'


def _annotations_file(path: str, split: str) -> str:
  folder = os.path.join(path, _FOLDER)
  names = [f'{prefix}{split}.json' for prefix in _PREFIXES]
  for name in names:
    if os.path.isfile(os.path.join(folder, name)):
      return os.path.join(folder, name)
  if not os.path.isdir(folder):
    raise InputError(
        f'there is no folder {folder}; want {folder}/{names[1]} and {path}/'
        f'{split}/<image>'
    )
  known = sorted(n for n in os.listdir(folder) if n.endswith('.json'))
  raise InputError(
      f'unknown split {split!r} of {path}: neither {names[0]} nor {names[1]} '
      f'is in {folder}, which holds {", ".join(known) or "no JSON"}'
  )


def _load(path: str) -> Any:
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except OSError as error:
    raise InputError(f'cannot read {path}: {error.strerror}') from error
  except (ValueError, RecursionError) as error:
    raise InputError(f'{path} is not a JSON file: {error}') from error


def _numbers(ids: list[int | str]) -> np.ndarray:
  """Returns the ids as int32, or, where they are no such, 0..N-1."""
  if all(isinstance(i, int) and 0 <= i < 2**31 for i in ids):
    return np.array(ids, np.int32)
  return np.arange(len(ids), dtype=np.int32)
