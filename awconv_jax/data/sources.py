"""Data sets by name, as random-access sources of encoded images.

A source of labelled images has `len(source)`, `source.num_classes`,
`source.class_names`, `source.channels` and `source[i]`, a record `{'image':
bytes, 'label': int, 'id': int or str}`, where 'label' is an array of ints if an
image may have several. A record that cannot be read raises `UnreadableError`,
and `source.describe(i, reason)` names it. A new data set is one more entry of
`DATASETS`. What sources of images with boxes have, `detection.objects` says.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import io
import os
import tempfile
from typing import Any

from awconv_jax.data.detection.coco_json import CocoJson
from awconv_jax.data.detection.tfds_objects import open_objects
from awconv_jax.data.folder_source import FolderSource
from awconv_jax.data.tfds_source import (
    data_directory,
    is_prepared,
    open_tfds,
)
from awconv_jax.errors import InputError, unknown_name


def _digits_builder():
  from awconv_jax.data import digits

  return digits.Digits


def _scenes_builder():
  from awconv_jax.data.detection import digit_scenes

  return digit_scenes.DigitScenes


@dataclasses.dataclass(frozen=True)
class Dataset:
  """How a data set is opened and, if we can build it, built.

  Attributes:
    open: `(data_dir, split) -> source`.
    builder: returns the TFDS builder class; None where the user prepares it.
    kind: a key of `data.PIPELINES`, which makes the batches.
  """

  open: Callable[[str | None, str], Any]
  builder: Callable[[], type] | None = None
  kind: str = 'images'


def _prepared(name: str) -> Dataset:
  return Dataset(open=functools.partial(open_tfds, name))


def _folder(path: str) -> Dataset:
  return Dataset(open=lambda data_dir, split: FolderSource(path, split))


def _coco_json(path: str) -> Dataset:
  return Dataset(
      open=lambda data_dir, split: CocoJson(path, split), kind='objects'
  )


DATASETS = {
    'digits': Dataset(
        open=lambda data_dir, split: open_tfds(
            'digits', data_dir, split, embedded=True
        ),
        builder=_digits_builder,
    ),
    'imagenet2012': _prepared('imagenet2012'),
    'cifar10': _prepared('cifar10'),
    'cifar100': _prepared('cifar100'),
    'digit_scenes': Dataset(
        open=lambda data_dir, split: open_objects(
            'digit_scenes', data_dir, split, embedded=True
        ),
        builder=_scenes_builder,
        kind='objects',
    ),
    'coco/2017': Dataset(
        open=functools.partial(open_objects, 'coco/2017'), kind='objects'
    ),
}
# What follows the colon names the data set.
KINDS = {'tfds': _prepared, 'folder': _folder, 'coco_json': _coco_json}


def _dataset(name: str) -> Dataset:
  prefix, colon, rest = name.partition(':')
  if colon and rest and prefix in KINDS:
    return KINDS[prefix](rest)
  if name not in DATASETS:
    known = [*DATASETS, *(f'{prefix}:<name>' for prefix in KINDS)]
    raise unknown_name('dataset', name, known)
  return DATASETS[name]


def kind(name: str) -> str:
  """Returns the key of `data.PIPELINES` that makes batches of a data set."""
  return _dataset(name).kind


def open_source(name: str, data_dir: str | None, split: str) -> Any:
  """Opens a split of a registered data set, building the set if it must.

  Args:
    name: a key of `DATASETS`, 'tfds:<name>' for any other data set of labelled
      images of TFDS, 'folder:<path>' for a folder of images, or
      'coco_json:<path>' for images with boxes; see `detection.coco_json`.
    data_dir: the TFDS data directory, or None for the default of TFDS.
    split: name of the split.

  Returns:
    The source.

  Raises:
    InputError: for unknown names and for data that cannot be used.
  """
  prepare(name, data_dir)
  return _dataset(name).open(data_dir, split)


def prepare(name: str, data_dir: str | None) -> None:
  """Builds an embedded data set, unless it is there already.

  Sets that we cannot build are left to `open_source`, which says what to run.

  Args:
    name: as for `open_source`.
    data_dir: the TFDS data directory, or None for the default of TFDS.

  Raises:
    InputError: the name is unknown, or the directory cannot be written or
      holds an unfinished set.
  """
  dataset = _dataset(name)
  if dataset.builder is None:
    return
  builder_class, root = dataset.builder(), data_directory(data_dir)
  target = os.path.join(root, name, str(builder_class.VERSION))
  if is_prepared(target):
    return
  try:
    check_free(target)
    print(f'preparing {name} in {root} ...', flush=True)
    os.makedirs(root, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.preparing_', dir=root) as scratch:
      _build(builder_class, scratch)
      _publish(os.path.join(scratch, name, str(builder_class.VERSION)), target)
  except OSError as error:
    raise InputError(
        f'cannot write {name} to {root}: {error.strerror}'
    ) from error


def check_free(target: str) -> None:
  """Raises InputError if `target` is in the way; an empty directory is not."""
  # In this order, as another process may publish the set in between.
  occupied = os.path.isdir(target) and os.listdir(target)
  if occupied and not is_prepared(target):
    raise InputError(
        f'{target} has no dataset_info.json; remove {target}, it is made anew'
    )


def _build(builder_class: type, data_dir: str) -> None:
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  builder = builder_class(data_dir=data_dir, file_format='array_record')
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  # TFDS prints of downloads, of which there are none.
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(download_config=config)


def _publish(built: str, target: str) -> None:
  """Moves a finished directory to its place, which nobody sees half done."""
  os.makedirs(os.path.dirname(target), exist_ok=True)
  try:
    os.rename(built, target)
  except OSError:
    # Another process was faster; what it has built is the same.
    if not is_prepared(target):
      raise
