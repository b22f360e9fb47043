"""Finds what is wrong in a COCO-style JSON, before anything is trained on it.

The format: https://cocodataset.org/#format-data. A box is [x, y, width,
height] in pixels.
"""

import collections
from collections.abc import Callable, Iterator
import concurrent.futures
import dataclasses
import math
import os
from typing import Any

from PIL import Image

from awconv_jax.errors import InputError

Entry = dict[str, Any]
# Pixels by which a box may reach beyond its image, as rounding makes it.
TOLERANCE = 1.0
# At once, as a disk far away takes its time for every file.
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Checked:
  """What is sound in a file, and what is not.

  Attributes:
    categories: sorted by id; the i-th is label i.
    images: those that can be used, in their order.
    annotations: of each of these, by the image's id.
    faults: a line for each entry that is left out.
  """

  categories: list[Entry]
  images: list[Entry]
  annotations: dict[int | str, list[Entry]]
  faults: tuple[str, ...]


def check(document: Any, place: str, folder: str) -> Checked:
  """Sorts the entries of a file into sound ones and faults.

  Args:
    document: what the JSON holds.
    place: path of the JSON, for messages.
    folder: where the images lie.

  Returns:
    The sound entries and the faults. A box that reaches less than a pixel
    beyond its image is cut off there.

  Raises:
    InputError: the file is not of the format, or its categories are not sound:
      without them nothing of the rest could be used.
  """
  for key in ('images', 'annotations', 'categories'):
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) for entry in entries
    ):
      raise InputError(
          f'{place} has no list {key!r} of objects; want the format of '
          'https://cocodataset.org/#format-data'
      )
  categories = _categories(document['categories'], place)
  faults: list[str] = []
  named = _unique('image', document['images'], _image_fault, faults)
  images = _with_files(named, folder, faults)
  annotations = _annotations(
      document['annotations'],
      known={entry.get('id') for entry in document['images'] if _has_id(entry)},
      sizes={i['id']: (i['width'], i['height']) for i in images},
      categories={c['id'] for c in categories},
      faults=faults,
  )
  return Checked(categories, images, annotations, tuple(faults))


def _has_id(entry: Entry) -> bool:
  """Returns whether there is an id, a number or a text."""
  identity = entry.get('id')
  return isinstance(identity, int | str) and not isinstance(identity, bool)


def _categories(entries: list[Entry], place: str) -> list[Entry]:
  faults = []
  for entry in entries:
    if not (_has_id(entry) and isinstance(entry['id'], int)):
      faults.append(f'category {entry} has no number as its id')
    elif not isinstance(entry.get('name'), str):
      faults.append(f'category {entry["id"]} has no name')
  counts = collections.Counter(str(entry.get('id')) for entry in entries)
  faults += [
      f'category {identity} is there {count} times'
      for identity, count in counts.items()
      if count > 1
  ]
  if faults or not entries:
    faults = faults or ['there are none']
    raise InputError(f'categories of {place}: {"; ".join(faults)}; mend them')
  return sorted(entries, key=lambda entry: entry['id'])


def _unique(
    kind: str,
    entries: list[Entry],
    fault_of: Callable[[Entry], str | None],
    faults: list[str],
) -> Iterator[Entry]:
  """Yields the sound entries, the first of each id."""
  seen = set()
  for number, entry in enumerate(entries):
    if not _has_id(entry):
      faults.append(f'{kind} number {number} of the list has no id')
      continue
    duplicate = entry['id'] in seen
    seen.add(entry['id'])
    fault = 'the id is that of another one' if duplicate else fault_of(entry)
    if fault is None:
      yield entry
    else:
      faults.append(f'{kind} {entry["id"]}{_owner(entry)}: {fault}')


def _owner(entry: Entry) -> str:
  """Returns where an entry belongs: the file of an image, a box's image."""
  if 'file_name' in entry:
    return f' ({entry["file_name"]})'
  return f' (image {entry["image_id"]})' if 'image_id' in entry else ''


def _image_fault(entry: Entry) -> str | None:
  if not isinstance(entry.get('file_name'), str) or not entry['file_name']:
    return 'it has no file_name'
  sides = [entry.get(key) for key in ('width', 'height')]
  if not all(isinstance(side, int) and side > 0 for side in sides):
    return f'width and height are {sides[0]} and {sides[1]}, no whole pixels'
  return None


def _with_files(
    entries: Iterator[Entry], folder: str, faults: list[str]
) -> list[Entry]:
  """Returns the entries whose files are there and of the size they say."""
  entries = list(entries)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda entry: _file_fault(entry, folder), entries)
    pairs = list(zip(entries, found, strict=True))
  faults += [
      f'image {entry["id"]}{_owner(entry)}: {fault}'
      for entry, fault in pairs
      if fault is not None
  ]
  return [entry for entry, fault in pairs if fault is None]


def _file_fault(entry: Entry, folder: str) -> str | None:
  path = os.path.join(folder, entry['file_name'])
  if not os.path.isfile(path):
    return f'there is no file {path}'
  try:
    with Image.open(path) as image:  # Reads the header only.
      size = image.size
  except Exception as error:  # Every decoder of Pillow has its own.
    if isinstance(error, PermissionError):
      return f'{path} may not be read'
    return f'{path} is no image'
  wanted = (entry['width'], entry['height'])
  if size != wanted:
    # What a camera says in the EXIF data does not count.
    turned = '; turn the pixels of the file' if size[::-1] == wanted else ''
    return (
        f'{path} has {size[0]} x {size[1]} pixels, its entry says '
        f'{wanted[0]} x {wanted[1]}{turned}'
    )
  return None


def _annotations(
    entries: list[Entry],
    *,
    known: set[int | str],
    sizes: dict[int | str, tuple[int, int]],
    categories: set[int],
    faults: list[str],
) -> dict[int | str, list[Entry]]:
  """Returns the sound annotations by image; those of bad images go unnamed."""

  def fault_of(entry):
    image, category = entry.get('image_id'), entry.get('category_id')
    if not isinstance(image, int | str) or image not in known:
      return f'there is no image {image}'
    if not isinstance(category, int) or category not in categories:
      return f'there is no category {category}'
    return _box_fault(entry.get('bbox'), sizes.get(image)) or _value_fault(
        entry.get('iscrowd'), entry.get('area')
    )

  found = {image: [] for image in sizes}
  for entry in _unique('annotation', entries, fault_of, faults):
    if entry['image_id'] in sizes:
      found[entry['image_id']].append(entry)
  return found


def _value_fault(crowd: Any, area: Any) -> str | None:
  """Returns what is wrong with `iscrowd` and `area`; None is not given."""
  if crowd not in (0, 1, None):  # Which True and False equal.
    return f'iscrowd is {crowd!r}, want 0 or 1'
  number = isinstance(area, int | float) and not isinstance(area, bool)
  if area is not None and not (number and 0 <= area < math.inf):
    return f'area is {area!r}, want square pixels'
  return None


def _box_fault(box: Any, size: tuple[int, int] | None) -> str | None:
  """Returns what is wrong with a box; `size` is None for an image left out."""
  if (
      not isinstance(box, list)
      or len(box) != 4
      or not all(isinstance(v, int | float) and math.isfinite(v) for v in box)
  ):
    return f'bbox {box} is not four numbers'
  left, top, width, height = box
  if width <= 0 or height <= 0:
    return f'bbox {box} has no width or no height'
  if size is not None and (
      min(left, top) < -TOLERANCE
      or left + width > size[0] + TOLERANCE
      or top + height > size[1] + TOLERANCE
      # Inside of the tolerance altogether: nothing of it would be left.
      or left >= size[0]
      or top >= size[1]
      or left + width <= 0
      or top + height <= 0
  ):
    return (
        f'bbox {box} reaches outside of its image of {size[0]} x {size[1]} '
        'pixels'
    )
  return None
