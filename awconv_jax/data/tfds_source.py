"""Reads data sets that TFDS has prepared as array_record.

They lie in `<data_dir>/<name>/[<config>/]<version>` and are read without the
code that built them, and without TensorFlow. Images stay encoded.
"""

from collections.abc import Callable
import contextlib
import os
from typing import Any

import numpy as np

from awconv_jax.data.decode import UnreadableError
from awconv_jax.errors import InputError

# Features by which records are told apart, and those of one label or several;
# the first that a data set has is taken.
_IDS = ('id', 'file_name')
_LABELS = ('label', 'real_label')
# More than any image of ReaL has (https://arxiv.org/abs/2006.07159).
_MOST_LABELS = 20
# Records, evenly spread, that are looked at before training starts.
_CHECKED = 100
_REMEDY = 'copy or prepare it again'


class TfdsRecords:
  """The records of one split, as TFDS has them but with encoded images.

  Attributes:
    directory: the version directory, which holds dataset_info.json.
    split: name of the split, or a TFDS slice of one such as 'train[:90%]'.
    info: of the data set, by TFDS.
    paths: of the split's files.
  """

  def __init__(self, directory: str, split: str):
    """Opens a split.

    Raises:
      InputError: the split is unknown or empty, the set is not in array_record
        form, or one of its files is missing or damaged.
    """
    import tensorflow_datasets as tfds

    self.directory, self.split = directory, split
    try:
      builder = tfds.builder_from_directory(directory)
    except OSError:
      raise  # Not of damage; `open_tfds` reports it.
    except Exception as error:  # Of JSON, of protocol buffers and of TFDS.
      raise InputError(
          f'cannot open {directory}: {_reason(error)}; {_REMEDY}'
      ) from error
    self.info = builder.info
    self._instructions()  # Says what is wrong with the split.
    decoders = {'image': tfds.decode.SkipDecoding()}
    try:
      self._records = builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
      raise InputError(
          f'{directory} is not in array_record form; where TensorFlow is '
          'installed, add it by: tfds convert_format --dataset_version_dir='
          f'{directory} --out_file_format=array_record'
      ) from error
    # Not before: where there are files of several forms, these are of the one.
    self._files = self._instructions()
    self.paths = [file.filename for file in self._files]
    for path in self.paths:
      if not os.path.exists(path):
        raise InputError(f'{path} is missing; {_REMEDY}')
    # Files cut short show at once: array_record keeps its index at the end.
    for index in (0, len(self) - 1):
      try:
        self[index]
      except UnreadableError as error:
        raise InputError(self.describe(index, str(error))) from error

  def _instructions(self) -> list[Any]:
    """Returns what TFDS says of the files that hold the split."""
    try:
      files = self.info.splits[self.split].file_instructions
    except ValueError:
      files = []
    # A slice whose end comes before its start takes less than nothing.
    if not files or min(file.take for file in files) < 1:
      known = ', '.join(sorted(self.info.splits))
      raise InputError(
          f'split {self.split!r} of {self.directory} is unknown or holds no '
          f'examples; known: {known}'
      )
    return files

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      return self._records[index]
    except Exception as error:  # Each reader has its own kinds.
      raise UnreadableError(_reason(error)) from error

  def features(self, needed: dict[str, bool], what: str) -> Any:
    """Returns the features by name.

    Args:
      needed: which must be there, and whether they are.
      what: these are features of.

    Raises:
      InputError: one of them is not there.
    """
    missing = [name for name, present in needed.items() if not present]
    if missing:
      raise InputError(
          f'{self.directory} has no feature {", ".join(missing)}; {what} are '
          f'needed, and its features are {", ".join(self.info.features)}'
      )
    return self.info.features

  def describe(self, index: int, reason: str) -> str:
    """Returns which record could not be read, why, and what can be done."""
    return f'{self.place(index)} cannot be read: {reason}; {_REMEDY}'

  def place(self, index: int) -> str:
    """Returns where a record is."""
    left = index
    for file in self._files:
      if left < file.take:
        return f'record {index} of split {self.split!r} in {file.filename}'
      left -= file.take
    raise IndexError(index)

  def __reduce__(self):
    # A worker process opens the files itself: readers cannot be sent to it.
    return (type(self), (self.directory, self.split))


class TfdsLabels:
  """Images with one label each, or with several; see `sources`."""

  category_ids = None

  def __init__(self, records: TfdsRecords):
    """Takes the records, and looks at some of their labels.

    Raises:
      InputError: they are not of labelled images, or a label has no class.
    """
    self._records = records
    names = records.info.features
    self._label = next((n for n in _LABELS if n in names), 'label')
    needed = {name: name in names for name in ('image', self._label)}
    features = records.features(needed, 'images with labels')
    label = features[self._label]
    # The feature of one label; several are a sequence of such.
    classes = label if hasattr(label, 'num_classes') else label.feature
    self.num_classes, self.class_names = classes.num_classes, classes.names
    self.channels = features['image'].shape[-1] or 3
    last = len(self) - 1
    for index in sorted({last * i // _CHECKED for i in range(_CHECKED + 1)}):
      # A broken image alone may be tolerated; it is told of in its turn.
      with contextlib.suppress(UnreadableError):
        self[index]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._records[index]
    return {
        'image': record['image'],
        'label': self._padded(record[self._label], index),
        'id': next((record[key] for key in _IDS if key in record), index),
    }

  def _padded(self, label: Any, index: int) -> Any:
    """Returns the label, or all labels of an image padded with -1."""
    labels = np.atleast_1d(label)
    wrong = labels[(labels < 0) | (labels >= self.num_classes)]
    if wrong.size:
      raise InputError(
          f'label {wrong[0]} of {self._records.place(index)} is not in 0..'
          f'{self.num_classes - 1}; take a split that has labels'
      )
    if np.ndim(label) == 0:
      return label
    return np.pad(labels, (0, _MOST_LABELS - len(labels)), constant_values=-1)

  def describe(self, index: int, reason: str) -> str:
    """Returns which record could not be read, why, and what can be done."""
    return self._records.describe(index, reason)


def _reason(error: Exception) -> str:
  """Returns the first line of a message, or the error's kind if it is empty."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0].rstrip('.')


def open_tfds(
    name: str,
    data_dir: str | None,
    split: str,
    source_class: Callable[[TfdsRecords], Any] = TfdsLabels,
) -> Any:
  """Opens any data set that TFDS has prepared.

  Args:
    name: the TFDS name, 'cifar10' or 'name/config'; its newest version is
      read.
    data_dir: the TFDS data directory, or None for the default of TFDS.
    split: name of the split.
    source_class: makes the source of the records.

  Returns:
    The source.

  Raises:
    InputError: the directory holds no such data set, cannot be read, or one
      of the reasons that `TfdsRecords` and the source give.
  """
  root = os.path.join(data_directory(data_dir), name)
  try:
    directory = _newest_version(root)
    if directory is not None:
      return source_class(TfdsRecords(directory, split))
  except OSError as error:
    raise InputError(f'cannot read {root}: {error.strerror}') from error
  data_dir = data_directory(data_dir)
  raise InputError(
      f'no data set {name!r} in {data_dir}; where TensorFlow is installed, '
      f'prepare it by: tfds build {name} --data_dir={data_dir} '
      '--file_format=array_record'
  )


def _newest_version(root: str) -> str | None:
  """Returns the path of the highest version under `root`, if there is one."""
  from tensorflow_datasets.core.utils import version as tfds_version

  if not os.path.isdir(root):
    return None
  versions = [
      entry
      for entry in os.listdir(root)
      if tfds_version.Version.is_valid(entry)
      # TFDS writes this file last.
      and os.path.exists(os.path.join(root, entry, 'dataset_info.json'))
  ]
  if not versions:
    return None
  return os.path.join(root, max(versions, key=tfds_version.Version))


def data_directory(data_dir: str | None) -> str:
  """Returns the directory meant; None means what it means to TFDS.

  That is $TFDS_DATA_DIR as it was when TFDS was first imported, or
  ~/tensorflow_datasets.
  """
  if data_dir is None:
    from tensorflow_datasets.core import constants

    data_dir = constants.DATA_DIR
  return os.path.abspath(os.path.expanduser(data_dir))
