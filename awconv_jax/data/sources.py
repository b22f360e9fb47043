"""Data sets by name, as random-access sources of encoded images.

A source has `len(source)`, `source.class_names`,
`source.category_ids` (the data set's number of each label, or None),
`source.channels`, `source.faults` (lines about what it left out) and
`source[i]`, which raises `UnreadableError` if it cannot be read;
`source.place(i)` names it. Of labelled images it is a record `{'image': bytes,
'label': int, 'id': int or str}`, where 'label' is an array of ints if an image
may have several, and `source.label_shape` is the array's. What sources of
images with boxes have, `detection.objects` says, and those of images with masks
`segmentation.masks`. A new data set is one more entry of `DATASETS`.
"""

import functools
from typing import Any

from awconv_jax.data.cluttered_digits import ClutteredDigits
from awconv_jax.data.detection.boxed_images import BoxedImages
from awconv_jax.data.detection.coco_json import CocoJson
from awconv_jax.data.detection.digit_scenes import DigitScenes
from awconv_jax.data.digits import Digits
from awconv_jax.data.folder_source import FolderSource
from awconv_jax.data.labelled_images import LabelledImages
from awconv_jax.data.segmentation.digit_masks import DigitMasks
from awconv_jax.data.segmentation.mask_folder import MaskFolder
from awconv_jax.data.segmentation.masked_images import MaskedImages
from awconv_jax.data.tfds_source import TfdsMasks, TfdsObjects, open_tfds
from awconv_jax.errors import look_up

# What reads each, and what opens a split of it, given its name and the folder.
DATASETS = {
    'digits': (LabelledImages, lambda name, dir, split: Digits(split)),
    'cluttered_digits': (
        LabelledImages,
        lambda name, dir, split: ClutteredDigits(split),
    ),
    'imagenet2012': (LabelledImages, open_tfds),
    'cifar10': (LabelledImages, open_tfds),
    'cifar100': (LabelledImages, open_tfds),
    'digit_scenes': (BoxedImages, lambda name, dir, split: DigitScenes(split)),
    'coco/2017': (
        BoxedImages,
        functools.partial(open_tfds, source_class=TfdsObjects),
    ),
}
# What has masks, and what follows the first colon of 'masks:<kind>:<name>'.
MASKS = {'digit_scenes': lambda name, dir, split: DigitMasks(split)}
MASK_KINDS = {
    'tfds': functools.partial(open_tfds, source_class=TfdsMasks),
    'folder': lambda path, dir, split: MaskFolder(path, split),
}


def _open_masks(name: str, dir: str | None, split: str) -> Any:
  name, opened = _chosen('data set with masks', name, MASKS, MASK_KINDS)
  return opened(name, dir, split)


def _chosen(what: str, name: str, known: dict, kinds: dict) -> tuple[str, Any]:
  """Returns what is known by a name, or '<kind>:<name>', and the name."""
  kind, _, rest = name.partition(':')
  if rest and kind in kinds:
    return rest, kinds[kind]
  known = known | {f'{kind}:<name>': None for kind in kinds}
  return name, look_up(what, name, known)


# What follows the colon takes the place of the name.
KINDS = {
    'tfds': (LabelledImages, open_tfds),
    'folder': (LabelledImages, lambda path, dir, s: FolderSource(path, s)),
    'coco_json': (BoxedImages, lambda path, dir, s: CocoJson(path, s)),
    'masks': (MaskedImages, _open_masks),
}


def reader_of(name: str) -> functools.partial:
  """Returns what takes the options that `config.data` holds for a data set.

  Args:
    name: a key of `DATASETS`, 'tfds:<name>' for any other data set of labelled
      images of TFDS, 'folder:<path>' for a folder of images, 'coco_json:
      <path>' for images with boxes (see `detection.coco_json`), or for images
      with masks 'masks:digit_scenes', 'masks:tfds:<name>' or 'masks:folder:
      <path>'.

  Returns:
    A partial of `LabelledImages`, `BoxedImages` or `MaskedImages`, which list
    the options.
  """
  name, (reader, open_split) = _chosen('dataset', name, DATASETS, KINDS)
  return functools.partial(reader, functools.partial(open_split, name))


def open_source(name: str, data_dir: str | None, split: str) -> Any:
  """Returns the source of a split; `Reader.dir` says what `data_dir` is."""
  (open_split,) = reader_of(name).args
  return open_split(data_dir, split)
