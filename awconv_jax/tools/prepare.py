r"""Prepares a data set once, for runs to read; without TensorFlow.

  python -m awconv_jax.tools.prepare --data=cifar10
  python -m awconv_jax.tools.prepare --data=imagenet2012 \
      --manual_dir=/data/downloads --data_dir=/data/tfds
  python -m awconv_jax.tools.prepare --data=tfds:imagenet_v2/matched-frequency
  python -m awconv_jax.tools.prepare \
      --from_tfrecord=/old/imagenet2012/5.1.0 --data_dir=/data/tfds

The first three run the builder of TFDS, which downloads what it may; the last
converts a copy that has been prepared as tfrecord. What is there is left as it
is. See docs/data.md.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from awconv_jax import command_line, errors, text_table
from awconv_jax.data import sources, tfds_build, tfds_source, tfrecord

FLAGS = flags.FLAGS
# Images of the sets that are made of archives without checksums.
COMPLETE = {
    'imagenet2012': {'train': 1_281_167, 'validation': 50_000},
    'imagenet2012_real': {'validation': 50_000},
}


def prepare(name: str, data_dir: str | None, manual_dir: str | None) -> str:
  """Builds a data set, unless it is there, and returns its directory.

  Args:
    name: what `config.data.name` may be, but for a folder, or a name of TFDS.
    data_dir: the TFDS data directory, or None for the default of TFDS.
    manual_dir: see `tfds_build.build`.

  Raises:
    InputError: there is no such set, or it cannot be built.
  """
  kind, colon, rest = name.partition(':')
  if colon and kind != 'tfds':
    raise errors.InputError(
        f'--data={name} cannot be prepared; a folder is read as it is, and '
        'names are such as cifar10 or tfds:food101'
    )
  name = rest if colon else name
  dataset = sources.DATASETS.get(name)
  if dataset is None or dataset.builder is None:
    return tfds_build.build(name, data_dir, manual_dir)
  sources.prepare(name, data_dir)
  root = tfds_source.data_directory(data_dir)
  return f'{root}/{name}/{dataset.builder().VERSION}'


def _info(directory: str) -> Any:
  """Returns what TFDS knows of a prepared directory."""
  import tensorflow_datasets as tfds

  return tfds.builder_from_directory(directory).info


def describe(directory: str) -> str:
  """Returns in one line what a prepared directory holds."""
  info = _info(directory)
  splits = ', '.join(
      f'{name} {text_table.thousands(split.num_examples)}'
      for name, split in info.splits.items()
  )
  return f'{info.full_name} is in {directory}: {splits} images'


def shortfall(directory: str) -> str | None:
  """Returns a warning if a split has fewer images than it should, or None.

  A damaged header in a tar is no error to Python, but the end of the archive.
  """
  info = _info(directory)
  for name, whole in COMPLETE.get(info.name, {}).items():
    count = info.splits[name].num_examples if name in info.splits else 0
    if count < whole:
      return (
          f'warning: split {name} has {count:,} images of {whole:,}: an '
          f'archive is damaged; remove {directory}, and download it again'
      )
  return None


def main(arguments: Sequence[str]) -> None:
  """Prepares what the flags name."""
  command_line.refuse_arguments(arguments)
  if bool(FLAGS.data) == bool(FLAGS.from_tfrecord):
    raise errors.InputError(
        'give either --data=NAME, such as imagenet2012, or --from_tfrecord='
        'DIRECTORY'
    )
  logging.set_verbosity(logging.ERROR)  # TFDS warns of ImageNet's test split.
  if FLAGS.from_tfrecord:
    directory = tfrecord.convert(FLAGS.from_tfrecord, FLAGS.data_dir)
  else:
    directory = prepare(FLAGS.data, FLAGS.data_dir, FLAGS.manual_dir)
  print(describe(directory))
  warning = shortfall(directory)
  if warning is not None:
    print(warning)


if __name__ == '__main__':
  flags.DEFINE_string('data', None, 'Name, as config.data.name or in TFDS.')
  flags.DEFINE_string(
      'data_dir', None, '$TFDS_DATA_DIR or ~/tensorflow_datasets if not given.'
  )
  flags.DEFINE_string(
      'manual_dir',
      None,
      'Where files downloaded by hand lie; DATA_DIR/downloads/manual if not'
      ' given.',
  )
  flags.DEFINE_string(
      'from_tfrecord', None, 'Directory of a version, to convert instead.'
  )
  command_line.run(main)
