"""Data sets and the batches made of them.

A batch is a dict of numpy arrays, b rows of a global batch per host:
  image: uint8 [b, H, W, C]; the task normalises it on the device.
  label: int32 [b]; or [b, L], all labels that are right, padded with -1.
  index: int32 [b], the example's number in its split; -1 in blank rows.
  mask: bool [b]; False for rows that only fill up the last eval batch, and for
    what cannot be evaluated: an unreadable image, one without any label.
Batches of images with boxes are described in `data.detection`.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any


# Imported when called, so that models can be used without Grain and TFDS.
def reader_of(name: str) -> Callable[..., Any]:
  """Returns the function that makes batches of a data set.

  Args:
    name: of the data set, see `sources.open_source`.

  Returns:
    `(*, train, batch_size, seed, process_index, process_count, **options) ->
    batches`, whose other options are those of `config.data`; see
    `pipeline.images` and `detection.pipeline.boxed_images`.

  Raises:
    InputError: for unknown names.
  """
  from awconv_jax.data import pipeline, sources
  from awconv_jax.data.detection import pipeline as detection

  readers = {'images': pipeline.images, 'objects': detection.boxed_images}
  reader = readers[sources.kind(name)]
  return functools.partial(reader, functools.partial(sources.open_source, name))


def create(
    options: Mapping[str, Any],
    *,
    train: bool,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Any:
  """Returns the train or eval batches of a data set.

  All batches have the attributes
    num_examples: N, examples that are read in an epoch.
    num_left_out: of the split, as there is nothing on them to train on.
    num_classes: labels are 0..num_classes-1.
    class_names: the name of each label.
    category_ids: the data set's number of each label, or None.
    batches_per_epoch: N / batch_size in training, where batches may straddle
      epochs; a whole number in evaluation.
    unreadable: what could not be read so far; see `pipeline.Unreadable`.

  Args:
    options: `config.data`: the `name` and the options of its reader.
    train: endless shuffled augmented batches, or one pass in order.
    batch_size: rows of a batch over all hosts.
    seed: at least 0; fixes order and augmentation, and evaluation has no use
      for it.
    process_index: this host.
    process_count: all hosts.

  Raises:
    InputError: for a data set or options that cannot be used.
  """
  options = dict(options)
  return reader_of(options.pop('name'))(
      train=train,
      batch_size=batch_size,
      seed=seed,
      process_index=process_index,
      process_count=process_count,
      **options,
  )


def prepare(name: str, data_dir: str | None) -> None:
  """Builds an embedded data set if needed; see `sources.prepare`."""
  from awconv_jax.data import sources

  sources.prepare(name, data_dir)
