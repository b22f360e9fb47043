"""Batches of image files that nobody has drawn boxes on.

They are brought to size as the images that a detector is evaluated on.
"""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

from awconv_jax.data.batches import EvalBatches
from awconv_jax.data.decode import read_file
from awconv_jax.data.detection import objects
from awconv_jax.data.detection.boxed_images import BoxedImages
from awconv_jax.data.folder_source import (
    EXTENSIONS,
    files_below,
    is_image,
    left_out_line,
)
from awconv_jax.errors import InputError, one_line
from awconv_jax.options import local_path


def find(inputs: Sequence[str]) -> list[str]:
  """Returns the image files that are named or lie in named folders, sorted.

  Args:
    inputs: files, which are taken whatever their names are, and folders, which
      are searched with all that is in them, by links, too.

  Raises:
    InputError: one of them is not there, or holds no image.
  """
  files, left_out = set(), []
  for path in map(pathlib.Path, map(local_path, inputs)):
    inside = list(files_below(os.fsencode(path))) if path.is_dir() else []
    images = set(filter(is_image, inside))
    left_out += [file for file in inside if file not in images]
    if not images and not path.is_file():
      kinds = ' '.join(sorted(EXTENSIONS))
      raise InputError(
          f'--input={str(path)!r} is no file and holds none of {kinds}'
      )
    files |= images or {os.fsencode(path)}
  for line in left_out_line(left_out):
    print(line)
  return sorted(map(os.fsdecode, files))


class ImageFiles(objects.Source):
  """Files, with the ids 1, 2, ..., as a source of images without objects.

  The ids and names given are of the categories that labels stand for.
  """

  def __init__(self, paths: Sequence[str], ids: Sequence[int], names: Sequence):
    self.paths, self.category_ids, self.class_names = paths, ids, names

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = read_file(self.paths[index])
    return dict(image=image, image_id=index + 1, objects=objects.NOTHING)

  def place(self, index: int) -> str:
    """Returns which file it is."""
    return one_line(os.path.abspath(self.paths[index]))


def batches(paths: Sequence[str], detector: Any) -> EvalBatches:
  """Returns batches as of `data.create`, of every file once.

  Args:
    paths: the files.
    detector: of `inference.load`, which has the sizes and the categories.
  """
  config, source = detector.config, ImageFiles(paths, *detector.categories)
  # Each that cannot be read is told; the others are wanted all the same.
  options = {**config.data, 'max_bad_fraction': 1.0}
  options |= dict(batch_size=config.eval_batch_size, train=False, seed=0)
  del options['name']
  return BoxedImages(lambda dir, split: source, **options).create()
