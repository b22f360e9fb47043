"""Reads images with boxes from a COCO-style JSON and a folder of images.

  <path>/annotations/instances_<split>.json, or <path>/annotations/<split>.json
  <path>/<split>/<file_name>

This is how COCO itself unpacks, and https://cocodataset.org/#format-data says
what is in the JSON; a box is [x, y, width, height] in pixels. What is wrong
with an entry is found before anything is trained on it. A file lies in its
split's folder, by whatever links; sizes and boxes are of the upright image, as
it is shown (see `data.decode`). Where ids of images are texts, or 2^31 and
more, all images of the split are numbered 0, 1, ... in its order instead, in
results, too.
"""

import collections
from collections.abc import Callable
import functools
import glob
import json
import math
from multiprocessing import pool
import os
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from awconv_jax.data.decode import (
    UnreadableError,
    below,
    header,
    opened,
    read_file,
)
from awconv_jax.data.detection import objects
from awconv_jax.errors import InputError, one_line, quoted, some
from awconv_jax.options import Bound, PositiveInt, local_path

# Pixels by which a box may reach beyond its image, as rounding makes it.
_TOLERANCE = 1.0
# At once, as a disk far away takes its time for every file.
_THREADS = 16


def _whole(value: Any) -> Any:
  """Returns 3 for 3.0, as JSON has numbers of one kind only."""
  whole = isinstance(value, float) and value.is_integer()
  return int(value) if whole else value


_Whole = pydantic.BeforeValidator(_whole)
_Id = Annotated[int | str, _Whole]
_Side = Annotated[PositiveInt, _Whole]


class _Category(pydantic.BaseModel, strict=True):
  id: Annotated[int, Bound(ge=-(2**31), lt=2**31), _Whole]
  name: str


class _Image(pydantic.BaseModel, strict=True):
  id: _Id
  file_name: str
  width: _Side
  height: _Side


class _Annotation(pydantic.BaseModel, strict=True):
  id: _Id
  image_id: _Id
  category_id: Annotated[int, _Whole]
  bbox: Annotated[
      list[Annotated[float, Bound()]],
      pydantic.Field(min_length=4, max_length=4),
  ]
  iscrowd: Annotated[bool | Literal[0, 1] | None, _Whole] = None
  area: Annotated[float, Bound(ge=0, le=2.0**40)] | None = None


class _Document(pydantic.BaseModel):
  images: list[dict[str, Any]]
  annotations: list[dict[str, Any]]
  categories: list[dict[str, Any]]


class CocoJson(objects.Source):
  """The sound images and boxes of one split.

  A box that reaches less than a pixel beyond its image is cut off there.
  """

  def __init__(self, path: str, split: str):
    """Reads the JSON, and looks at the header of every image.

    Raises:
      InputError: there is no such split, its JSON is not of the format, its
        categories are not sound, or no image of it can be used.
    """
    path = os.path.abspath(local_path(path))
    self._folder = below(os.fsencode(path), split)
    document, place = _load(path, split)
    faults: list[str] = []
    sound = _sound('category', _Category, document.categories, faults)
    if faults or not sound:
      # Without them nothing of the rest could be used.
      reasons = some(faults, separator='; ') or 'there are none'
      raise InputError(f'categories of {place}: {reasons}; mend them')
    categories = sorted(sound.values(), key=lambda category: category.id)
    self.class_names = tuple(category.name for category in categories)
    for name, count in collections.Counter(self.class_names).items():
      if count > 1:
        raise InputError(
            f'categories of {place}: {count} have the name {name!r}'
        )
    self.category_ids = tuple(category.id for category in categories)
    labels = {c: label for label, c in enumerate(self.category_ids)}
    file_fault = functools.partial(_file_fault, self._folder)
    images = _sound('image', _Image, document.images, faults, file_fault)
    if not images:
      reasons = some(faults, separator='; ') or 'it lists none'
      raise InputError(f'no image of {place} can be used: {reasons}')
    # Boxes of images that are left out are no faults; by `repr`, 1 is not '1'.
    listed = {repr(_whole(entry.get('id'))) for entry in document.images}

    def fault_of(annotation):
      if repr(annotation.image_id) not in listed:
        return f'there is no image {quoted(annotation.image_id)}'
      if annotation.category_id not in labels:
        return f'there is no category {quoted(annotation.category_id)}'
      return _box_fault(annotation.bbox, images.get(annotation.image_id))

    sound = _sound(
        'annotation', _Annotation, document.annotations, faults, fault_of
    )
    self.faults = tuple(faults)
    # All entries as arrays: worker processes get a copy of each.
    paths = [below(self._folder, i.file_name) for i in images.values()]
    self._paths = np.array([os.path.relpath(p, self._folder) for p in paths])
    fits = all(isinstance(i, int) and 0 <= i < 2**31 for i in images)
    self._ids = np.int32(list(images) if fits else range(len(images)))
    sizes = np.int32([(i.height, i.width) for i in images.values()])
    rows = {identity: row for row, identity in enumerate(images)}
    found = [a for a in sound.values() if a.image_id in rows]
    found.sort(key=lambda annotation: rows[annotation.image_id])
    owners = np.int32([rows[a.image_id] for a in found])
    counts = np.bincount(owners, minlength=len(images))
    self._ends = np.cumsum(counts)
    boxes = np.reshape([a.bbox for a in found], (-1, 4)).astype(float)
    ends = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes[owners, ::-1])
    # Of the object, or of its box where none is given.
    areas = [math.prod(a.bbox[2:]) if a.area is None else a.area for a in found]
    self._objects = objects.create(
        np.concatenate([boxes[:, :2].clip(0), ends], 1),
        [labels[a.category_id] for a in found],
        [bool(a.iscrowd) for a in found],
        areas,
    )
    trained = owners[self._objects.trainable()]
    trainable = np.bincount(trained, minlength=len(images))
    self.index = np.column_stack([sizes, counts, trainable]).astype(np.int32)

  def __len__(self) -> int:
    return len(self._paths)

  def _path(self, index: int) -> bytes:
    return os.path.join(self._folder, self._paths[index])

  def place(self, index: int) -> str:
    """Returns which file it is."""
    return one_line(self._path(index))

  def __getitem__(self, index: int) -> dict[str, Any]:
    end = self._ends[index]
    mine = np.arange(end - self.index[index, 2], end)
    return {
        'image': read_file(self._path(index)),
        'image_id': int(self._ids[index]),
        'objects': self._objects.take(mine),
    }


def _load(path: str, split: str) -> tuple[_Document, str]:
  """Returns what the JSON of a split holds, and where it is."""
  folder = os.path.join(path, 'annotations')
  places = [f'{folder}/instances_{split}.json', f'{folder}/{split}.json']
  place = next(filter(os.path.isfile, places), None)
  images = os.path.join(path, split)
  if place is None or not os.path.isdir(images):
    known = some(glob.glob('*.json', root_dir=folder)) or 'none'
    raise InputError(
        f'unknown split {split!r} of {path}: want a folder {images} and one of '
        f'{", ".join(places)}; there are {known}'
    )
  try:
    with open(place, encoding='utf-8') as file:
      return _Document.model_validate(json.load(file)), place
  except pydantic.ValidationError as error:
    fault = error.errors()[0]
    reason = f'{".".join(map(str, fault["loc"]))}: {fault["msg"]}'
  except (OSError, ValueError, RecursionError) as error:
    reason = str(error)
  raise InputError(
      f'{place} is not of https://cocodataset.org/#format-data: {reason}'
  )


def _sound(
    kind: str,
    model: type[Any],
    entries: list[dict[str, Any]],
    faults: list[str],
    fault_of: Callable[[Any], str | None] = lambda entry: None,
) -> dict[int | str, Any]:
  """Returns the sound entries, the first of each id, and notes the faults."""

  def note(values, fault, unnamed=''):
    keys = [key for key in ('file_name', 'image_id') if key in values]
    identity = values.get('id')
    named = [f'{kind} {quoted(identity) if identity is not None else unnamed}']
    named += [f'{key}={quoted(values[key])}' for key in keys]
    faults.append(f'{", ".join(named)}: {fault}')

  parsed = {}
  for number, values in enumerate(entries):
    try:
      entry = model.model_validate(values)
    except pydantic.ValidationError as error:
      (key, *_), message = error.errors()[0]['loc'], error.errors()[0]['msg']
      given = f'={quoted(values[key])}' if key in values else ''
      note(values, f'{key}{given}: {message}', f'number {number} of the list')
    else:
      if parsed.setdefault(entry.id, entry) is not entry:
        note(values, 'the id is that of another one')
  with pool.ThreadPool(_THREADS) as threads:
    found = threads.map(fault_of, parsed.values())
  for entry, fault in zip(list(parsed.values()), found, strict=True):
    if fault is not None:
      note(vars(entry), fault)
      del parsed[entry.id]
  return parsed


def _file_fault(folder: bytes, entry: _Image) -> str | None:
  """Returns what is wrong with the file of an image, by its header."""
  try:
    with opened(path := below(folder, entry.file_name)) as file:
      height, width, turn = header(file)
  except (UnreadableError, ValueError) as error:
    return str(error)
  if (width, height) == (entry.width, entry.height):
    return None
  upright = f', upright by its EXIF orientation {turn}' * (turn > 1)
  return (
      f'{one_line(path)} has {width} x {height}{upright}; its entry says '
      f'{entry.width} x {entry.height}'
  )


def _box_fault(box: list[float], image: _Image | None) -> str | None:
  """Returns what is wrong with a box; `image` is None if it is left out."""
  shown = f'bbox [{", ".join(f"{value:g}" for value in box)}]'
  if min(box[2:]) <= 0:
    return f'{shown} has no width or no height'
  if image is None:
    return None
  size = image.width, image.height
  # Inside of the tolerance altogether, nothing of it would be left.
  if all(
      -_TOLERANCE <= low < side and 0 < low + length <= side + _TOLERANCE
      for low, length, side in zip(box[:2], box[2:], size, strict=True)
  ):
    return None
  return f'{shown} reaches outside of its image of {size[0]} x {size[1]} pixels'
