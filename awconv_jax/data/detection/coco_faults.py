"""Finds what is wrong in a COCO-style JSON, before anything is trained on it.

The format: https://cocodataset.org/#format-data. A box is [x, y, width,
height] in pixels.
"""

from collections.abc import Callable, Mapping
import concurrent.futures
import dataclasses
import os
from typing import Annotated, Any, Literal

from PIL import Image
import pydantic

from awconv_jax.errors import InputError
from awconv_jax.options import Bound, NonNegativeFloat, PositiveInt

# Pixels by which a box may reach beyond its image, as rounding makes it.
TOLERANCE = 1.0
# At once, as a disk far away takes its time for every file.
_THREADS = 16


class Category(pydantic.BaseModel, strict=True):
  """A class of objects."""

  id: int
  name: str


class ImageEntry(pydantic.BaseModel, strict=True):
  """An image."""

  id: int | str
  file_name: Annotated[str, pydantic.Field(min_length=1)]
  width: PositiveInt
  height: PositiveInt


class Annotation(pydantic.BaseModel, strict=True):
  """An object on an image."""

  id: int | str
  image_id: int | str
  category_id: int
  bbox: Annotated[
      list[Annotated[float, Bound()]],
      pydantic.Field(min_length=4, max_length=4),
  ]
  iscrowd: bool | Literal[0, 1] | None = None
  area: NonNegativeFloat | None = None


@dataclasses.dataclass(frozen=True)
class Checked:
  """What is sound in a file, and what is not.

  Attributes:
    categories: sorted by id; the i-th is label i.
    images: those that can be used, in their order.
    annotations: of each of these, by the image's id.
    faults: a line for each entry that is left out.
  """

  categories: list[Category]
  images: list[ImageEntry]
  annotations: dict[int | str, list[Annotation]]
  faults: tuple[str, ...]


def sort_out(document: Any, place: str, folder: str) -> Checked:
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
  wrong: list[str] = []
  categories = _sound('category', Category, document['categories'], wrong)
  if wrong or not categories:
    reasons = '; '.join(wrong) or 'there are none'
    raise InputError(f'categories of {place}: {reasons}; mend them')
  faults: list[str] = []
  named = _sound('image', ImageEntry, document['images'], faults)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = list(pool.map(lambda image: _file_fault(image, folder), named))
  faults += [
      _line('image', vars(image), fault)
      for image, fault in zip(named, found, strict=True)
      if fault
  ]
  images = {
      image.id: image
      for image, fault in zip(named, found, strict=True)
      if not fault
  }
  # Those of images that are left out are no faults of their own.
  known = {str(entry.get('id')) for entry in document['images']}
  labels = {category.id for category in categories}

  def fault_of(annotation):
    if str(annotation.image_id) not in known:
      return f'there is no image {annotation.image_id}'
    if annotation.category_id not in labels:
      return f'there is no category {annotation.category_id}'
    return _box_fault(annotation.bbox, images.get(annotation.image_id))

  annotations = {identity: [] for identity in images}
  for annotation in _sound(
      'annotation', Annotation, document['annotations'], faults, fault_of
  ):
    if annotation.image_id in annotations:
      annotations[annotation.image_id].append(annotation)
  return Checked(
      sorted(categories, key=lambda category: category.id),
      list(images.values()),
      annotations,
      tuple(faults),
  )


def _sound(
    kind: str,
    model: Any,
    entries: list[dict[str, Any]],
    faults: list[str],
    fault_of: Callable[[Any], str | None] = lambda entry: None,
) -> list[Any]:
  """Returns the sound entries, the first of each id, and notes the faults."""
  seen, sound = set(), []
  for number, values in enumerate(entries):
    try:
      entry = model.model_validate(values)
    except pydantic.ValidationError as error:
      (key, *_), message = error.errors()[0]['loc'], error.errors()[0]['msg']
      given = f'={values[key]!r}' if key in values else ''
      fault = f'{key}{given}: {message}'
    else:
      twice = entry.id in seen
      seen.add(entry.id)
      fault = 'the id is that of another one' if twice else fault_of(entry)
      if fault is None:
        sound.append(entry)
        continue
    faults.append(_line(kind, values, fault, f'number {number} of the list'))
  return sound


def _line(
    kind: str, values: Mapping[str, Any], fault: str, unnamed: str = ''
) -> str:
  """Returns a line about an entry: its id, where it belongs, and the fault."""
  owner = ''
  if 'file_name' in values:
    owner = f' ({values["file_name"]})'
  elif 'image_id' in values:
    owner = f' (image {values["image_id"]})'
  identity = values.get('id')
  return f'{kind} {unnamed if identity is None else identity}{owner}: {fault}'


def _file_fault(entry: ImageEntry, folder: str) -> str | None:
  """Returns what is wrong with the file of an image, by its header."""
  path = os.path.join(folder, entry.file_name)
  if not os.path.isfile(path):
    return f'there is no file {path}'
  try:
    with Image.open(path) as image:
      size = image.size
  except PermissionError:
    return f'{path} may not be read'
  except Exception:  # Every decoder of Pillow has its own.
    return f'{path} is no image'
  wanted = (entry.width, entry.height)
  if size == wanted:
    return None
  # What a camera says in the EXIF data does not count.
  turned = '; turn the pixels of the file' if size[::-1] == wanted else ''
  return (
      f'{path} has {size[0]} x {size[1]} pixels, its entry says '
      f'{wanted[0]} x {wanted[1]}{turned}'
  )


def _box_fault(box: list[float], image: ImageEntry | None) -> str | None:
  """Returns what is wrong with a box; `image` is None if it is left out."""
  left, top, width, height = box
  shown = ', '.join(f'{value:g}' for value in box)
  if width <= 0 or height <= 0:
    return f'bbox [{shown}] has no width or no height'
  if image is None:
    return None
  for low, length, side in (
      (left, width, image.width),
      (top, height, image.height),
  ):
    # Inside of the tolerance altogether, nothing of it would be left.
    if not -TOLERANCE <= low < side or not (
        0 < low + length <= side + TOLERANCE
    ):
      return (
          f'bbox [{shown}] reaches outside of its image of {image.width} x '
          f'{image.height} pixels'
      )
  return None
