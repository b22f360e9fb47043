"""Reads data sets of labelled images that TFDS has prepared as array_record.

They lie in `<data_dir>/<name>/[<config>/]<version>` and are read without the
code that built them, and without TensorFlow.
"""

import os
from typing import Any

from awconv_jax.errors import InputError


class TfdsSource:
  """One split of a prepared TFDS data set; its builder code is not needed."""

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
    _check_features(builder.info.features, directory)
    self._files = _files(builder.info.splits, split, directory)
    try:
      self._records = builder.as_data_source(split)
    except NotImplementedError as error:
      raise _not_random_access(directory) from error
    self.num_classes = builder.info.features['label'].num_classes
    self._check_files()

  def _check_files(self) -> None:
    """Raises InputError for files whose loss would end a run half-way."""
    for file in self._files:
      if not os.path.exists(file.filename):
        raise InputError(f'{file.filename} is missing; {self._remedy}')
    # Files cut short show at once: array_record keeps its index at the end.
    for index in (0, len(self) - 1):
      self[index]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      record = self._records[index]
    except Exception as error:  # Each reader and decoder has its own kinds.
      raise InputError(
          f'record {index} of split {self._split!r} cannot be read from'
          f' {self._file_of(index)}: {_reason(error)}; {self._remedy}'
      ) from error
    return {
        'image': record['image'],
        'label': int(record['label']),
        'id': record['id'] if 'id' in record else index,
    }

  def _file_of(self, index: int) -> str | None:
    """Returns the path of the file that holds record `index`."""
    for file in self._files:
      if index < file.take:
        return file.filename
      index -= file.take
    return None

  def __reduce__(self):
    # A worker process opens the files itself: readers cannot be sent to it.
    return (TfdsSource, self._arguments)


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


def _check_features(features, directory: str) -> None:
  missing = {'image', 'label'} - set(features)
  if missing:
    raise InputError(
        f'{directory} has no feature {", ".join(sorted(missing))}; images with'
        f' labels are needed, and its features are {", ".join(features)}'
    )


def _not_random_access(directory: str) -> InputError:
  # The command line of TFDS imports both packages, whatever the command.
  return InputError(
      f'{directory} is not in array_record form; where tensorflow and'
      ' apache-beam are installed, run: tfds convert_format'
      f' --dataset_version_dir={directory} --out_file_format=array_record'
  )


def open_tfds(
    name: str, data_dir: str | None, split: str, embedded: bool = False
) -> TfdsSource:
  """Opens any prepared data set of labelled images that TFDS can write.

  Args:
    name: the TFDS name, 'cifar10' or 'name/config'; its newest version is
      read.
    data_dir: the TFDS data directory, or None for the default of TFDS.
    split: name of the split.
    embedded: whether `sources.prepare` can build the set.

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
      return TfdsSource(directory, split, embedded)
  except OSError as error:
    raise InputError(f'cannot read {root}: {error.strerror}') from error
  raise InputError(
      f'no data set {name!r} in {data_directory(data_dir)}; where tensorflow'
      f' and apache-beam are installed, run: tfds build {name}'
      f' --file_format=array_record --data_dir={data_directory(data_dir)}'
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
