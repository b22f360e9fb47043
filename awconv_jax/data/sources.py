"""Data sets by name, as random-access sources of encoded images.

A source has `len(source)`, `source.num_classes`, `source.class_names`,
`source.category_ids` (the data set's number of each label, or None),
`source.channels` and `source[i]`, of labelled images a record `{'image':
bytes, 'label': int, 'id': int or str}`, where 'label' is an array of ints if an
image may have several. A record that cannot be read raises `UnreadableError`,
and `source.describe(i, reason)` names it. A new data set is one more entry of
`DATASETS`. What sources of images with boxes have, `detection.objects` says.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from awconv_jax.data.batches import Reader
from awconv_jax.data.detection.boxed_images import BoxedImages
from awconv_jax.data.detection.coco_json import CocoJson
from awconv_jax.data.detection.digit_scenes import DigitScenes
from awconv_jax.data.detection.tfds_objects import TfdsObjects
from awconv_jax.data.digits import Digits
from awconv_jax.data.folder_source import FolderSource
from awconv_jax.data.labelled_images import LabelledImages
from awconv_jax.data.tfds_source import open_tfds
from awconv_jax.errors import look_up


@dataclasses.dataclass(frozen=True)
class Dataset:
  """How a data set is opened, and what makes batches of it.

  Attributes:
    open: `(dir, split) -> source`.
    reader: class of the options of `config.data`.
  """

  open: Callable[[str | None, str], Any]
  reader: type[Reader] = LabelledImages


def _prepared(name: str) -> Dataset:
  return Dataset(lambda dir, split: open_tfds(name, dir, split))


DATASETS = {
    'digits': Dataset(lambda dir, split: Digits(split)),
    'imagenet2012': _prepared('imagenet2012'),
    'cifar10': _prepared('cifar10'),
    'cifar100': _prepared('cifar100'),
    'digit_scenes': Dataset(lambda dir, split: DigitScenes(split), BoxedImages),
    'coco/2017': Dataset(
        lambda dir, split: open_tfds('coco/2017', dir, split, TfdsObjects),
        BoxedImages,
    ),
}
# What follows the colon names the data set.
KINDS = {
    'tfds': _prepared,
    'folder': lambda path: Dataset(
        lambda dir, split: FolderSource(path, split)
    ),
    'coco_json': lambda path: Dataset(
        lambda dir, split: CocoJson(path, split), BoxedImages
    ),
}


def dataset(name: str) -> Dataset:
  """Returns a data set; InputError for unknown names.

  Args:
    name: a key of `DATASETS`, 'tfds:<name>' for any other data set of labelled
      images of TFDS, 'folder:<path>' for a folder of images, or
      'coco_json:<path>' for images with boxes; see `detection.coco_json`.
  """
  prefix, colon, rest = name.partition(':')
  if colon and rest and prefix in KINDS:
    return KINDS[prefix](rest)
  return look_up(
      'dataset', name, DATASETS | {f'{k}:<name>': None for k in KINDS}
  )


def open_source(name: str, data_dir: str | None, split: str) -> Any:
  """Returns the source of a split.

  Args:
    name: as for `dataset`.
    data_dir: directory of prepared sets, or None for the default of TFDS.
    split: name of the split.

  Raises:
    InputError: for unknown names and for data that cannot be used.
  """
  return dataset(name).open(data_dir, split)
