"""Converts data sets of TFDS from tfrecord to array_record, record by record.

A tfrecord file is a row of records: the length in 8 bytes, its checksum in 4,
the content, and the checksum of that in 4; little-endian. The checksums
(CRC-32C, masked) are not compared: a damaged file shows by its end or by the
number of its records, and a damaged image when it is read.
"""

from collections.abc import Iterator
import json
import os
import struct
import tempfile
from typing import Any

import tqdm

from awconv_jax.data.sources import check_free
from awconv_jax.data.tfds_source import data_directory, is_prepared
from awconv_jax.errors import InputError

_INFO = 'dataset_info.json'


def records(path: str) -> Iterator[bytes]:
  """Yields the contents of a tfrecord file.

  Raises:
    InputError: the file ends within a record.
  """
  with open(path, 'rb') as file:
    left = os.path.getsize(path)
    while left:
      header = file.read(12)
      length = struct.unpack('<Q', header[:8])[0] if len(header) == 12 else left
      left -= 12 + length + 4
      if left < 0:  # Before the length, perhaps a huge one, is believed.
        raise InputError(f'{path} is damaged or cut short; copy it again')
      yield file.read(length)
      file.read(4)


def convert(directory: str, data_dir: str | None) -> str:
  """Converts a prepared data set, unless the result is there; shows how far.

  Args:
    directory: the version directory of the set, such as
      `<path>/imagenet2012/5.1.0`; it is left as it is.
    data_dir: the TFDS data directory of the result, another than the set's
      own; None for the default of TFDS.

  Returns:
    The directory of the result.

  Raises:
    InputError: the set is not in tfrecord form, files of it are missing or
      damaged, or the result cannot be written.
  """
  directory = os.path.abspath(os.path.expanduser(directory))
  builder = _open(directory)
  name = os.path.join(builder.info.full_name)  # name/config/version
  target = os.path.join(data_directory(data_dir), *name.split('/'))
  if target == directory:
    raise InputError(
        f'--from_tfrecord={directory} lies in --data_dir; give another '
        '--data_dir for the result'
    )
  if is_prepared(target):
    return target
  try:
    check_free(target)
    parent = os.path.dirname(target)
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.converting_', dir=parent) as made:
      _convert_files(builder, directory, made)
      _copy_metadata(directory, made)
      os.chmod(made, 0o775)
      os.rename(made, target)
      os.mkdir(made)  # For the context to remove.
  except OSError as error:
    raise InputError(
        f'cannot convert {directory} to {target}: {error.strerror or error}: '
        f'{error.filename or target}'
    ) from error
  return target


def _open(directory: str) -> Any:
  """Returns the TFDS builder, without its code, of a set in tfrecord form."""
  import tensorflow_datasets as tfds

  if not is_prepared(directory):
    raise InputError(
        f'--from_tfrecord={directory} has no {_INFO}; name the directory of '
        'the version, such as imagenet2012/5.1.0'
    )
  try:
    builder = tfds.builder_from_directory(directory)
  except Exception as error:  # Of JSON, of protocol buffers and of TFDS.
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(f'cannot open {directory}: {reason}') from error
  form = builder.info.file_format.value
  if form != 'tfrecord':
    raise InputError(f'{directory} is not in tfrecord form, but in {form}')
  return builder


def _convert_files(builder: Any, directory: str, made: str) -> None:
  shards = [
      (os.path.basename(path), length)
      for split in builder.info.splits.values()
      for path, length in zip(split.filepaths, split.shard_lengths, strict=True)
  ]
  for name, length in tqdm.tqdm(shards, desc='converting', unit=' files'):
    path = os.path.join(directory, name)
    new = os.path.join(made, name.replace('.tfrecord', '.array_record'))
    count = _convert_file(path, new)
    if count != length:
      raise InputError(
          f'{path} holds {count} records, but {_INFO} says {length}; copy it '
          'again'
      )


def _convert_file(path: str, new: str) -> int:
  """Writes the same records as array_record; returns how many they are."""
  from array_record.python import array_record_module

  # As TFDS writes them: every record can be read by itself.
  writer, count = array_record_module.ArrayRecordWriter(new, 'group_size:1'), 0
  try:
    for record in records(path):
      writer.write(record)
      count += 1
  finally:
    writer.close()
  return count


def _copy_metadata(directory: str, made: str) -> None:
  """Copies all that is no record, and says which form the records have."""
  for name in os.listdir(directory):
    path = os.path.join(directory, name)
    if '.tfrecord' not in name and name != _INFO and os.path.isfile(path):
      with open(path, 'rb') as old, open(os.path.join(made, name), 'wb') as new:
        new.write(old.read())
  with open(os.path.join(directory, _INFO), encoding='utf-8') as file:
    info = json.load(file)
  info['fileFormat'] = 'array_record'
  info.pop('alternativeFileFormats', None)
  for split in info['splits']:
    template = split.get('filepathTemplate', '')
    split['filepathTemplate'] = template.replace('tfrecord', '{FILEFORMAT}')
  with open(os.path.join(made, _INFO), 'w', encoding='utf-8') as file:
    json.dump(info, file, indent=2)
