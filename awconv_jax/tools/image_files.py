"""Batches of image files that nobody has drawn boxes on.

They are brought to size as the images that a detector is evaluated on. Photos
that a camera marked as turned are turned upright first: nobody's boxes lie on
the file's own rows and columns here.
"""

from collections.abc import Mapping, Sequence
import functools
import io
import os
import pathlib
from typing import Any

from PIL import ExifTags, Image, ImageOps

from awconv_jax.data.batches import EvalBatches, unreadable_reason
from awconv_jax.data.decode import UnreadableError
from awconv_jax.data.detection import objects
from awconv_jax.data.detection.boxed_images import BoxedImages
from awconv_jax.data.folder_source import EXTENSIONS
from awconv_jax.errors import InputError


def find(inputs: Sequence[str]) -> list[str]:
  """Returns the image files that are named or lie in named folders, sorted.

  Args:
    inputs: files, which are taken whatever their names are, and folders, which
      are searched with all that is in them.

  Raises:
    InputError: one of them is not there, or there is no image.
  """
  files = set()
  for path in map(pathlib.Path, inputs):
    if not path.exists():
      raise InputError(f'--input={path} is not there')
    inside = path.rglob('*') if path.is_dir() else ()
    files |= {path} if path.is_file() else set()
    files |= {
        p for p in inside if p.is_file() and _is_image(p.relative_to(path))
    }
  if not files:
    raise InputError(
        f'--input={" ".join(inputs)} holds no images '
        f'({" ".join(sorted(EXTENSIONS))})'
    )
  return sorted(map(str, files))


def _is_image(path: pathlib.Path) -> bool:
  hidden = any(part[0] == '.' for part in path.parts)
  return path.suffix.lower() in EXTENSIONS and not hidden


class ImageFiles:
  """Files as a source of images without objects; see `data.detection.objects`.

  Their ids are 1, 2, ... in the order given.
  """

  channels = 3
  faults = ()

  def __init__(self, paths: Sequence[str], ids: Sequence[int], names: Sequence):
    """Takes the files, and what the network's labels stand for."""
    self.paths = list(paths)
    self.category_ids = tuple(ids)
    self.class_names = tuple(map(str, names))
    self.num_classes = len(self.class_names)

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      with open(self.paths[index], 'rb') as file:
        data = file.read()
    except OSError as error:
      raise UnreadableError(error.strerror) from error
    return {
        'image': _upright(data),
        'image_id': index + 1,
        'objects': objects.NOTHING,
    }

  @functools.cached_property
  def index(self) -> objects.Index:
    """Sizes of all images; 0 for what cannot be read."""
    return objects.Index.of(self)

  def describe(self, index: int, reason: str) -> str:
    """Returns which file could not be read, and why."""
    return f'{os.path.abspath(self.paths[index])} cannot be read: {reason}'


def _upright(data: bytes) -> bytes:
  """Returns an encoded image, or one that is turned as its EXIF data say."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return data
      turned = ImageOps.exif_transpose(image).convert('RGB')
  except Exception:  # Every decoder of Pillow has its own; `decode` will tell.
    return data
  encoded = io.BytesIO()
  turned.save(encoded, 'PNG', compress_level=1)
  return encoded.getvalue()


def batches(
    source: ImageFiles, options: Mapping[str, Any], batch_size: int
) -> EvalBatches:
  """Returns batches as of `data.create`, of every file once.

  Args:
    source: of the files.
    options: `config.data` of the run, which has the sizes.
    batch_size: rows of a batch.

  Raises:
    InputError: the sizes cannot be used, or not one of the files.
  """
  if not source.index.sizes.any():
    first = source.describe(0, unreadable_reason(source, 0))
    raise InputError(
        f'none of the files of --input can be read, such as: {first}'
    )
  # Each that cannot be read is told; the others are wanted all the same.
  options = {**options, 'max_bad_fraction': 1.0}
  del options['name']
  reader = BoxedImages(
      lambda dir, split: source,
      train=False,
      batch_size=batch_size,
      seed=0,
      **options,
  )
  return reader.create()
