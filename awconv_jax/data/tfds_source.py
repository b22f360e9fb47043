"""Reads data sets that TFDS has prepared as array_record.

They lie in `<data_dir>/<name>/[<config>/]<version>` and are read without the
code that built them, and without TensorFlow. Images stay encoded.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
from typing import Any
import urllib.parse

import numpy as np

from awconv_jax import places
from awconv_jax.data.decode import EncodedImage, UnreadableError, below
from awconv_jax.data.detection import objects
from awconv_jax.data.segmentation import masks
from awconv_jax.errors import InputError, of_the_system, some
from awconv_jax.options import any_path

# Of these features the first that a data set has is taken.
_IDS = ('id', 'file_name')
_LABELS = ('label', 'real_label')
# Of TFDS's sets with masks the numbers in these, and what they stand for
# (https://www.tensorflow.org/datasets/catalog/oxford_iiit_pet).
_MASK = 'segmentation_mask'
MASK_CLASSES = {'oxford_iiit_pet': {1: 'pet', 2: 'background', 3: 'border'}}
_ENCODED = 'image', _MASK
# More than any image of ReaL has (https://arxiv.org/abs/2006.07159).
_MOST_LABELS = 20
# What features may be of: TFDS would import any module that a file names.
_FEATURES = 'tensorflow_datasets.core.features.'
_REMEDY = 'copy or prepare it again'
# TFDS does not keep the ids. COCO's are 1..90 without those that were given
# to categories of which no object has been outlined.
_NOT_OUTLINED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = {
    'coco': tuple(i for i in range(1, 91) if i not in _NOT_OUTLINED)
}


class TfdsRecords:
  """The records of one split, as TFDS has them but with encoded images.

  Attributes:
    directory: the version directory, which holds dataset_info.json.
    split: name of the split, or a TFDS slice of one such as 'train[:90%]'.
    info: of the data set, by TFDS.
    paths: of the split's files.
  """

  faults = ()

  def __init__(self, directory: str, split: str):
    """Opens a split; InputError if it is unknown, empty or damaged."""
    import tensorflow_datasets as tfds

    self.directory, self.split = directory, split
    try:
      _check_features(os.path.join(directory, 'features.json'))
      builder = tfds.builder_from_directory(directory)
    except Exception as error:  # Of JSON, of protocol buffers and of TFDS.
      reason = f'{_reason(error)}; {_REMEDY}'
      raise InputError(f'cannot open {directory}: {reason}') from error
    self.info = builder.info
    encoded = [name for name in _ENCODED if name in self.info.features]
    decoders = dict.fromkeys(encoded, tfds.decode.SkipDecoding())
    try:
      self._records: Any = builder.as_data_source(split, decoders=decoders)
      len(self)  # Raises for a slice that ends before its start.
    except NotImplementedError as error:
      raise InputError(
          f'{directory} is not in array_record form; where TensorFlow is '
          'installed, add it by: tfds convert_format --dataset_version_dir='
          f'{directory} --out_file_format=array_record'
      ) from error
    except ValueError as error:
      fault = f'split {split!r} of {directory} is unknown or holds no examples'
      raise InputError(f'{fault}: {_reason(error)}') from error
    # Not before: where there are files of several forms, these are of the one.
    self._files = self.info.splits[split].file_instructions
    self.paths = [file.filename for file in self._files]
    if missing := [path for path in self.paths if not places.at(path).exists()]:
      raise InputError(f'{some(missing)} is missing; {_REMEDY}')
    # Files cut short show at once: array_record keeps its index at the end.
    for index in (0, len(self) - 1):
      try:
        self.record(index)
      except UnreadableError as error:
        fault = f'{self.place(index)} cannot be read: {error}'
        raise InputError(fault) from error

  def __len__(self) -> int:
    return len(self._records)

  def record(self, index: int) -> dict[str, Any]:
    """Returns a record by the names of its features."""
    try:
      record = self._records[index]
    except Exception as error:  # Each reader has its own kinds.
      if of_the_system(error):
        raise
      # Of a bucket, which keeps what it has: it is the way there. To leave out
      # what could not be had once would make another run.
      if places.in_bucket(self.directory):
        fault = f'{self.place(index)} cannot be read: {_reason(error)}'
        raise InputError(fault) from error
      raise UnreadableError(f'{_reason(error)}; {_REMEDY}') from error
    if record.get('image', b'') is None:  # Of files that are cut short later.
      raise UnreadableError(f'the file does not hold it any more; {_REMEDY}')
    return record

  def place(self, index: int) -> str:
    """Returns where a record is."""
    ends = np.cumsum([file.take for file in self._files])
    path = self.paths[np.searchsorted(ends, index, side='right')]
    return f'record {index} of split {self.split!r} in {path}'

  def __reduce__(self):
    # A worker process opens the files itself: readers cannot be sent to it.
    return (type(self), (self.directory, self.split))


def _check_features(path: str) -> None:
  """Raises ValueError for kinds of features that TFDS would have to import."""
  # TFDS knows more than one form of the file.
  kinds, keys = [], ('pythonClassName', 'python_class_name', 'type')
  with places.at(path).open(encoding='utf-8') as file:
    json.load(
        file, object_hook=lambda entry: kinds.extend(map(entry.get, keys))
    )
  for kind in kinds:
    if isinstance(kind, str) and not kind.startswith(_FEATURES) and '.' in kind:
      raise ValueError(f'{path} has {kind!r}, want kinds of {_FEATURES}*')


def _reason(error: Exception) -> str:
  """Returns the first line of a message, or the error's kind if it is empty."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0].rstrip('.')


class TfdsLabels(TfdsRecords):
  """Images with one label each, or with several; see `sources`."""

  category_ids = None

  def __init__(self, directory: str, split: str):
    super().__init__(directory, split)
    features = self.info.features
    self._label = next((n for n in _LABELS if n in features), None)
    if self._label is None or 'image' not in features:
      raise InputError(
          f'{directory} has no features image and {" or ".join(_LABELS)}; it '
          f'has {", ".join(features)}'
      )
    label = features[self._label]
    # Of several labels, a sequence, which has the attributes of its elements.
    self.class_names = label.names
    self.label_shape = (_MOST_LABELS,) if label.shape else ()
    self.channels = features['image'].shape[-1] or 3

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self.record(index)
    label = record[self._label]
    labels = np.atleast_1d(label)
    number = len(self.class_names)
    wrong = labels[(labels < 0) | (labels >= number)]
    if wrong.size:
      raise InputError(
          f'label {wrong[0]} of {self.place(index)} is not in 0..'
          f'{number - 1}; take a split that has labels'
      )
    if self.label_shape:
      blank = (0, _MOST_LABELS - len(labels))
      label = np.pad(labels, blank, constant_values=-1)
    name = next((record[key] for key in _IDS if key in record), index)
    return {'image': record['image'], 'label': label, 'id': name}


class TfdsObjects(objects.Source, TfdsRecords):
  """Images with boxes, as TFDS's coco/2017 has them.

  Boxes are [ymin, xmin, ymax, xmax] in 0..1, labels 0..K-1 stand for the sorted
  ids of the categories (https://www.tensorflow.org/datasets/catalog/coco).
  """

  def __init__(self, directory: str, split: str):
    super().__init__(directory, split)
    label = self.info.features['objects']['label']
    self.class_names = tuple(label.names)
    # Kept with the set, or COCO's, or without gaps.
    kept = (self.info.metadata or {}).get('label_to_category_id')
    known = CATEGORY_IDS.get(self.info.name, range(1, label.num_classes + 1))
    self.category_ids = tuple(int(i) for i in kept or known)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self.record(index)
    # Of the header only: the pixels are not needed yet.
    image = EncodedImage(record['image'], self.channels)
    sides = np.float32([image.width, image.height] * 2)
    found = record['objects']
    boxes = np.asarray(found['bbox'], np.float32).reshape(-1, 4)
    boxes = boxes[:, [1, 0, 3, 2]] * sides
    others = (found[name] for name in ('label', 'is_crowd', 'area'))
    return {
        'image': record['image'],
        'image_id': int(record['image/id']),
        'objects': objects.create(boxes, *others),
    }

  @functools.cached_property
  def index(self) -> np.ndarray:
    """See `objects.Source`; for it, the headers of all images have to be read.

    This takes 20 s for COCO [one core], or as long as reading all files; so it
    is kept beside the data where all images can be read, as others may be the
    next time. Its last row is another when the files have been made anew.
    """
    name = urllib.parse.quote(self.split, safe='')
    path = os.path.join(self.directory, f'image_index-{name}.npy')
    files = [(os.path.basename(p), *places.stamp(p)) for p in self.paths]
    # Sizes are of upright images, which they were not before.
    stats = f'upright{files!r}'
    digest = hashlib.blake2b(stats.encode(), digest_size=16).digest()
    key = np.frombuffer(digest, np.int32)
    with contextlib.suppress(OSError, ValueError, EOFError):
      kept = np.load(io.BytesIO(places.at(path).read_bytes()))
      # Neither of other files nor half written by another process.
      whole = kept.shape == (len(self) + 1, 4) and kept[:-1, :2].all()
      if whole and np.array_equal(kept[-1], key):
        return kept[:-1]
    index = super().index
    if index[:, :2].all():
      # Where it belongs to somebody else, it is looked up every time.
      with contextlib.suppress(OSError):
        with places.for_writing(path) as file:
          np.save(file, np.vstack([index, key]))
    return index


class TfdsMasks(masks.Source, TfdsRecords):
  """Images with masks, of the sets in `MASK_CLASSES`."""

  def __init__(self, directory: str, split: str):
    super().__init__(directory, split)
    known = MASK_CLASSES.get(self.info.name)
    if known is None or _MASK not in self.info.features:
      raise InputError(
          f'{directory} has no masks whose numbers are known; those of '
          f'{", ".join(MASK_CLASSES)} are. Others are read as masks:folder:'
          '<path>'
      )
    self.class_names, self._values = [*known.values()], [*known]

  @property
  def values(self) -> list[int]:
    return self._values

  def __getitem__(self, index: int) -> dict[str, bytes]:
    record = self.record(index)
    return {'image': record['image'], 'classes': record[_MASK]}


def open_tfds(
    name: str,
    data_dir: str | None,
    split: str,
    source_class: type[TfdsRecords] = TfdsLabels,
) -> TfdsRecords:
  """Opens the newest version of any data set that TFDS has prepared.

  Args:
    name: the TFDS name, 'cifar10' or 'name/config'.
    data_dir: `batches.Reader.dir`; the variable is that of when TFDS was first
      imported.
    split: name of the split.
    source_class: of the source.

  Raises:
    InputError: the directory holds no such data set, cannot be read, or one
      of the reasons that `TfdsRecords` and the source give.
  """
  from tensorflow_datasets.core import constants
  from tensorflow_datasets.core.utils import version

  data_dir = any_path(data_dir or constants.DATA_DIR)
  if places.in_bucket(data_dir):
    folder = data_dir.replace('gs://', '/gs/', 1)
  else:
    folder = data_dir = os.path.abspath(data_dir)
  inside = os.path.relpath(
      os.fsdecode(below(os.fsencode(folder), name)), folder
  )
  root = places.at(data_dir) / inside
  entries = [p.name for p in root.iterdir()] if root.is_dir() else []
  versions = filter(version.Version.is_valid, entries)
  for newest in sorted(versions, key=version.Version, reverse=True):
    directory = str(root / newest)
    # TFDS writes this file last.
    if (root / newest / 'dataset_info.json').exists():
      return source_class(directory, split)
  raise InputError(
      f'no data set {name!r} in {data_dir}; where TensorFlow is installed, '
      f'prepare it by: tfds build {name} --data_dir={data_dir} '
      '--file_format=array_record'
  )
