"""Reads data sets of labelled images that TFDS has prepared as array_record.

They lie in `<data_dir>/<name>/[<config>/]<version>` and are read without the
code that built them, and without TensorFlow. Images stay encoded.
"""

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


class TfdsSource:
  """One split of a prepared TFDS data set; its builder code is not needed."""

  category_ids = None

  def __init__(self, directory: str, split: str, embedded: bool = False):
    """Opens a split.

    Args:
      directory: the version directory, which holds dataset_info.json.
      split: name of the split, or a TFDS slice of one such as 'train[:90%]'.
      embedded: whether `sources.prepare` can build the set.

    Raises:
      InputError: the split is unknown or empty, the set is not in array_record
        form, one of its files is missing or damaged, or it is not one of
        labelled images.
    """
    self._arguments = (directory, split, embedded)
    self._split = split
    self._remedy = _remedy(directory, embedded)
    builder = _open_builder(directory, self._remedy)
    features = builder.info.features
    self._take(builder.info, directory)
    self._files = _files(builder.info.splits, split, directory)
    try:
      self._records = _encoded_records(builder, split)
    except NotImplementedError as error:
      raise _not_random_access(directory) from error
    self.channels = features['image'].shape[-1] or 3
    self._check_files()

  def _take(self, info: Any, directory: str) -> None:
    """Takes what is needed of TFDS's info; InputError if it is not there."""
    self._label = _label_feature(info.features, directory)
    label = info.features[self._label]
    classes = _class_label(label)
    self.num_classes, self.class_names = classes.num_classes, classes.names

  def _check_files(self) -> None:
    """Raises InputError for files whose loss would end a run half-way."""
    for file in self._files:
      if not os.path.exists(file.filename):
        raise InputError(f'{file.filename} is missing; {self._remedy}')
    # Files cut short show at once: array_record keeps its index at the end.
    # What lies between them is a sample: reading all takes hours for some.
    last = len(self) - 1
    for index in sorted({last * i // _CHECKED for i in range(_CHECKED + 1)}):
      try:
        record = self._record(index)
      except UnreadableError as error:
        if index in (0, last):
          raise InputError(self.describe(index, str(error))) from error
        continue
      # A broken image alone may be tolerated; it is told of in its turn.
      with contextlib.suppress(UnreadableError):
        self._example(record, index)

  def _checked(self, label: Any, index: int) -> Any:
    """Returns the label, or all labels of an image padded with -1."""
    labels = np.atleast_1d(label)
    wrong = labels[(labels < 0) | (labels >= self.num_classes)]
    if wrong.size:
      raise InputError(
          f'label {wrong[0]} of record {index} of split {self._split!r} in '
          f'{self._file_of(index)} is not in 0..{self.num_classes - 1}; take '
          'a split that has labels'
      )
    if np.ndim(label) == 0:
      return label
    if len(labels) > _MOST_LABELS:
      raise InputError(
          f'record {index} of split {self._split!r} in {self._file_of(index)} '
          f'has {len(labels)} labels; at most {_MOST_LABELS} are supported'
      )
    padded = np.full(_MOST_LABELS, -1, np.int32)
    padded[: len(labels)] = labels
    return padded

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._example(self._record(index), index)

  def _record(self, index: int) -> dict[str, Any]:
    try:
      return self._records[index]
    except Exception as error:  # Each reader has its own kinds.
      raise UnreadableError(_reason(error)) from error

  def _example(self, record: dict[str, Any], index: int) -> dict[str, Any]:
    """Returns what is offered of record number `index`."""
    return {
        'image': record['image'],
        'label': self._checked(record[self._label], index),
        'id': next((record[key] for key in _IDS if key in record), index),
    }

  def describe(self, index: int, reason: str) -> str:
    """Returns which record could not be read, why, and what can be done."""
    return (
        f'record {index} of split {self._split!r} cannot be read from '
        f'{self._file_of(index)}: {reason}; {self._remedy}'
    )

  def _file_of(self, index: int) -> str | None:
    """Returns the path of the file that holds record `index`."""
    for file in self._files:
      if index < file.take:
        return file.filename
      index -= file.take
    return None

  def __reduce__(self):
    # A worker process opens the files itself: readers cannot be sent to it.
    return (type(self), self._arguments)


def _encoded_records(builder: Any, split: str) -> Any:
  """Returns the records with their images as bytes."""
  import tensorflow_datasets as tfds

  skip = {'image': tfds.decode.SkipDecoding()}
  return builder.as_data_source(split, decoders=skip)


def _open_builder(directory: str, remedy: str) -> Any:
  """Returns the TFDS builder, without data, of a prepared directory."""
  import tensorflow_datasets as tfds

  try:
    return tfds.builder_from_directory(directory)
  except OSError:
    raise  # Not of damage; `open_tfds` reports it.
  except Exception as error:  # Of JSON, of protocol buffers and of TFDS.
    raise InputError(
        f'cannot open {directory}: {_reason(error)}; {remedy}'
    ) from error


def _remedy(directory: str, embedded: bool) -> str:
  if embedded:
    return f'remove {directory}, it is made anew'
  return 'copy or prepare it again'


def _reason(error: Exception) -> str:
  """Returns the first line of a message, or the error's kind if it is empty."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0].rstrip('.')


def _files(splits: Any, split: str, directory: str) -> list[Any]:
  """Returns the TFDS instructions which files hold the split, and where."""
  known = ', '.join(sorted(splits))
  try:
    files = splits[split].file_instructions
  except ValueError as error:
    raise InputError(
        f'unknown split {split!r} of {directory}; known: {known}'
    ) from error
  # A slice whose end comes before its start takes less than nothing.
  if not files or min(file.take for file in files) < 1:
    raise InputError(
        f'split {split!r} of {directory} holds no examples; known: {known}'
    )
  return files


def _label_feature(features: Any, directory: str) -> str:
  """Returns the name of the feature that holds the label, or the labels."""
  label = next((name for name in _LABELS if name in features), None)
  missing = [] if 'image' in features else ['image']
  missing += [] if label else ['label']
  if missing:
    raise InputError(
        f'{directory} has no feature {", ".join(missing)}; images with'
        f' labels are needed, and its features are {", ".join(features)}'
    )
  return label


def _class_label(feature: Any) -> Any:
  """Returns the feature of one label; several are a sequence of such."""
  return feature if hasattr(feature, 'num_classes') else feature.feature


def _not_random_access(directory: str) -> InputError:
  return InputError(
      f'{directory} is not in array_record form; convert it to another '
      'directory by: python -m awconv_jax.tools.prepare '
      f'--from_tfrecord={directory} --data_dir=DIRECTORY'
  )


def open_tfds(
    name: str,
    data_dir: str | None,
    split: str,
    embedded: bool = False,
    source_class: type[TfdsSource] = TfdsSource,
) -> TfdsSource:
  """Opens any prepared data set of labelled images that TFDS can write.

  Args:
    name: the TFDS name, 'cifar10' or 'name/config'; its newest version is
      read.
    data_dir: the TFDS data directory, or None for the default of TFDS.
    split: name of the split.
    embedded: whether `sources.prepare` can build the set.
    source_class: `TfdsSource`, or one for images with more than labels.

  Returns:
    The source.

  Raises:
    InputError: the directory holds no such data set, cannot be read, or one
      of the reasons that `TfdsSource` gives.
  """
  root = os.path.join(data_directory(data_dir), name)
  try:
    directory = _newest_version(root)
    if directory is not None:
      return source_class(directory, split, embedded)
  except OSError as error:
    raise InputError(f'cannot read {root}: {error.strerror}') from error
  data_dir = data_directory(data_dir)
  raise InputError(
      f'no data set {name!r} in {data_dir}; prepare it by: python -m '
      f'awconv_jax.tools.prepare --data={name} --data_dir={data_dir}'
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
      and is_prepared(os.path.join(root, entry))
  ]
  if not versions:
    return None
  return os.path.join(root, max(versions, key=tfds_version.Version))


def is_prepared(directory: str) -> bool:
  """Returns whether it holds a data set; TFDS writes this file last."""
  return os.path.exists(os.path.join(directory, 'dataset_info.json'))


def data_directory(data_dir: str | None) -> str:
  """Returns the directory meant; None means what it means to TFDS.

  That is $TFDS_DATA_DIR as it was when TFDS was first imported, or
  ~/tensorflow_datasets.
  """
  if data_dir is None:
    from tensorflow_datasets.core import constants

    data_dir = constants.DATA_DIR
  return os.path.abspath(os.path.expanduser(data_dir))
