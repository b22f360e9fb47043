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
from typing import Any


def reader_of(name: str) -> Callable[..., Any]:
  """See `sources`, which is imported late: models can do without Grain."""
  from awconv_jax.data import sources

  return sources.reader_of(name)


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
    channels: of the images.
    place: names an example by its number in the split.
    batches_per_epoch: N / batch_size in training, where batches may straddle
      epochs; a whole number in evaluation.
    unreadable: what could not be read so far, a `batches.Unreadable`.

  Args:
    options: `config.data`: the `name` and the options of its reader.
    train, batch_size, seed, process_index, process_count: of `batches.Reader`.

  Raises:
    InputError: for a data set or options that cannot be used.
  """
  options = dict(options)
  return reader_of(options.pop('name'))(
      **options,
      train=train,
      batch_size=batch_size,
      seed=seed,
      process_index=process_index,
      process_count=process_count,
  ).create()
