"""Builds data sets of TFDS as array_record, without TensorFlow.

They are listed at https://www.tensorflow.org/datasets/catalog. A builder
writes to a directory of its own beside the final place and moves it there at
the end, so that a set is either whole or not there.
"""

from collections.abc import Iterator
import contextlib
import difflib
import io
import os
import tarfile
from typing import Any
from unittest import mock
import zlib

from awconv_jax.data import sources, tf_stand_in
from awconv_jax.data.tfds_source import data_directory, is_prepared
from awconv_jax.errors import InputError, ReportedError, unknown_name

CATALOG = 'https://www.tensorflow.org/datasets/catalog'
# What has to be downloaded by hand, for builders that would leave out a split
# of which the file is missing, or say no more than its name.
MANUAL_FILES = {
    'imagenet2012': ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'),
    'imagenet2012_real': ('ILSVRC2012_img_val.tar',),
}
# Files that TFDS holds open at once while it shuffles, and some more.
OPEN_FILES = 2048


def create_builder(name: str, data_dir: str | None) -> Any:
  """Returns the TFDS builder of a data set of labelled images.

  Args:
    name: its name in TFDS, such as 'cifar10' or 'imagenet_v2/topimages'.
    data_dir: the TFDS data directory, or None for the default of TFDS.

  Raises:
    InputError: there is no such set, it has no images with labels, or its
      builder needs what is not installed.
  """
  import tensorflow_datasets as tfds

  base, _, config = name.partition('/')
  try:
    builder_class = tfds.builder_cls(base)
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
    known = set(tfds.list_builders(with_community_datasets=False))
    near = difflib.get_close_matches(base, known, n=5)
    raise unknown_name(
        'data set of TFDS', base, near or [f'those of {CATALOG}']
    ) from error
  except ImportError as error:
    raise InputError(f'the builder of {base} needs {error.name}') from error
  configs = [known.name for known in builder_class.BUILDER_CONFIGS]
  if configs and config not in configs:
    raise unknown_name(f'configuration of {base}', config, configs)
  if config and not configs:
    raise InputError(
        f'{base} has no configurations, but --data names {config!r}'
    )
  options = {'config': config} if config else {}
  with tf_stand_in.installed():
    builder = builder_class(data_dir=data_directory(data_dir), **options)
    _check_features(name, builder.info.features)
  return builder


def _check_features(name: str, features: Any) -> None:
  # ImageNet-ReaL has several labels for an image, under a name of its own.
  wanted = {'label', 'real_label', 'objects'}
  if 'image' not in features or not wanted & set(features):
    raise InputError(
        f'{name} is not a set of images with labels; its features are '
        f'{", ".join(features)}, and image and label or objects are needed'
    )


def build(name: str, data_dir: str | None, manual_dir: str | None) -> str:
  """Builds a data set, unless it is there; shows how far it is.

  Args:
    name: its name in TFDS.
    data_dir: the TFDS data directory, or None for the default of TFDS.
    manual_dir: where the files lie that must be downloaded by hand; None is
      `<data_dir>/downloads/manual`.

  Returns:
    The directory of the set.

  Raises:
    InputError: see `create_builder`; files are missing or damaged, nothing can
      be downloaded, or the directory cannot be written.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import downloader

  builder = create_builder(name, data_dir)
  target, root = os.fspath(builder.data_dir), data_directory(data_dir)
  if is_prepared(target):
    _check_format(builder, target)
    return target
  downloads = os.path.join(root, 'downloads')
  manual_dir = os.path.abspath(
      os.path.expanduser(manual_dir or os.path.join(downloads, 'manual'))
  )
  _check_manual(builder, manual_dir)
  with _one_line(builder, manual_dir, root):
    os.makedirs(root, exist_ok=True)
    sources.check_free(target)
    if os.path.isdir(target):
      os.rmdir(target)  # TFDS would take it for a whole set.
    _allow_open_files(OPEN_FILES)
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir, try_download_gcs=False
    )
    # TFDS prints sizes that it does not know; its progress is on stderr.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        tf_stand_in.installed(),
        # As it is, no network is said after minutes.
        mock.patch.object(downloader, 'MAX_RETRIES', 3),
    ):
      builder.download_and_prepare(
          download_dir=downloads,
          download_config=config,
          file_format='array_record',
      )
  return target


def _check_format(builder: Any, target: str) -> None:
  """Raises InputError for a finished set that is not in array_record form."""
  form = builder.info.file_format.value
  if form != 'array_record':
    raise InputError(
        f'{target} is there already, but as {form}; convert it by '
        f'--from_tfrecord={target} --data_dir=DIRECTORY, with another directory'
    )


def _check_manual(builder: Any, manual_dir: str) -> None:
  """Raises InputError for files that the user has to bring, whole."""
  paths = [
      os.path.join(manual_dir, name)
      for name in MANUAL_FILES.get(builder.name, ())
  ]
  missing = [os.path.basename(p) for p in paths if not os.path.isfile(p)]
  if missing:
    raise InputError(
        f'{manual_dir} lacks {" and ".join(missing)}; put it there, or say '
        f'where it is by --manual_dir: {_instructions(builder)}'
    )
  for path in paths:
    if not _is_whole(path):
      raise InputError(
          f'{path} is cut short: it has no end mark of a tar; download it again'
      )


def _is_whole(path: str) -> bool:
  """Returns whether a tar ends as it must, with two blocks of zeros.

  Where it is cut between two files, Python reads it without complaint.
  """
  with open(path, 'rb') as file:
    file.seek(max(os.path.getsize(path) - 1024, 0))
    return file.read() == bytes(1024)


def _instructions(builder: Any) -> str:
  """Returns in one line what TFDS says of files to download by hand."""
  return ' '.join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or '').split())


def _allow_open_files(number: int) -> None:
  """Raises this process's limit of open files, as far as it may."""
  import resource

  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  infinite = resource.RLIM_INFINITY
  if soft != infinite and soft < number:
    most = number if hard == infinite else min(number, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextlib.contextmanager
def _one_line(builder: Any, manual_dir: str, root: str) -> Iterator[None]:
  """Turns what goes wrong while a set is built into an `InputError`."""
  import requests
  from tensorflow_datasets.core import download

  name = builder.info.full_name
  try:
    yield
  except ReportedError as error:
    raise InputError(f'cannot build {name}: {error}') from error
  except requests.RequestException as error:  # Is an OSError, too.
    url = error.request.url if error.request is not None else 'its files'
    raise InputError(
        f'cannot download {url} for {name}: {_first_line(error)}; run this '
        'where there is a network, and copy the result'
    ) from error
  except (
      download.util.DownloadError,
      download.extractor.ExtractError,
      download.download_manager.NonMatchingChecksumError,
  ) as error:
    raise InputError(
        f'cannot download what {name} is made of: {_first_line(error)}; remove '
        f'{os.path.join(root, "downloads")} if it goes on'
    ) from error
  except (tarfile.TarError, EOFError, zlib.error) as error:
    raise InputError(
        f'an archive of {name} is damaged: {_first_line(error)}; download it '
        f'to {manual_dir} again'
    ) from error
  except ImportError as error:
    raise InputError(
        f'the builder of {name} needs {error.name}, which is not installed; '
        'where it and tensorflow are, run: tfds build --file_format='
        f'array_record {builder.name}'
    ) from error
  except AssertionError as error:
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
      raise
    raise InputError(
        f'cannot build {name} from {manual_dir}: {_instructions(builder)}'
    ) from error
  except OSError as error:
    raise InputError(
        f'cannot build {name} in {root}: {error.strerror or error}: '
        f'{error.filename or root}'
    ) from error


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0].rstrip('.')
