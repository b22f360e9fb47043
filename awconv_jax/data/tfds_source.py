"""Reads data sets of labelled images that TFDS has prepared as array_record.

They lie in `<data_dir>/<name>/[<config>/]<version>` and are read without the
code that built them, and without TensorFlow.
"""

import os
from typing import Any

from awconv_jax.errors import InputError


class TfdsSource:
  """One split of a prepared TFDS data set; its builder code is not needed."""

  def __init__(self, directory: str, split: str):
    """Opens a split.

    Args:
      directory: the version directory, which holds dataset_info.json.
      split: name of the split, or a TFDS slice of one such as 'train[:90%]'.

    Raises:
      InputError: the split is unknown, the set is not in array_record form,
        one of its files is missing, or it is not one of labelled images.
    """
    import tensorflow_datasets as tfds

    self._arguments = (directory, split)
    builder = tfds.builder_from_directory(directory)
    _check_features(builder.info.features, directory)
    known = sorted(builder.info.splits)
    try:
      self._records = builder.as_data_source(split)
    except NotImplementedError as error:
      raise _not_random_access(directory) from error
    except ValueError as error:
      raise InputError(
          f'unknown split {split!r} of {directory}; known: {", ".join(known)}'
      ) from error
    # Readers are opened late: a missing file would end a run half-way.
    for file in builder.info.splits[split].file_instructions:
      if not os.path.exists(file.filename):
        raise InputError(f'{file.filename} is missing; copy or build it again')
    self.num_classes = builder.info.features['label'].num_classes

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._records[index]
    return {
        'image': record['image'],
        'label': int(record['label']),
        'id': record['id'] if 'id' in record else index,
    }

  def __reduce__(self):
    # A worker process opens the files itself: readers cannot be sent to it.
    return (TfdsSource, self._arguments)


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


def open_tfds(name: str, data_dir: str | None, split: str) -> TfdsSource:
  """Opens any prepared data set of labelled images that TFDS can write.

  Args:
    name: the TFDS name, 'cifar10' or 'name/config'; its newest version is
      read.
    data_dir: the TFDS data directory, or None for the default of TFDS.
    split: name of the split.

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
      return TfdsSource(directory, split)
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
