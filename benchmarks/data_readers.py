"""The pipelines that are measured: this project's in some forms, and tf.data.

All cut a random box of 8 to 100 % of an image's area, bring it to size and
mirror every other one. This project's give bytes, which the consumer
normalises on the device; tf.data gives normalised floats.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any

import numpy as np

from awconv_jax import data, errors
from awconv_jax.data import decode
from benchmarks import data_jpegs, data_tf


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """A way from files to batches.

  Attributes:
    name: 'threads', 'workers' (processes) or 'tf.data'.
    interpolation: by which boxes are brought to size.
    open: starts it; returns endless batches, which have a method `close`.
    ahead: batches that may be ready before they are asked for.
  """

  name: str
  interpolation: str
  open: Callable[[], Iterator[dict[str, np.ndarray]]]
  ahead: int


def check(interpolations: Sequence[str]) -> None:
  """Raises InputError for names that are no interpolations."""
  if not interpolations:
    raise errors.InputError('--interpolations: want at least one name')
  for name in interpolations:
    if name not in decode.INTERPOLATIONS:
      raise errors.unknown_name('interpolation', name, decode.INTERPOLATIONS)


def _config(path, side, interpolation, workers, threads, prefetch):
  """Returns options as in the recipes for ImageNet."""
  crop = dict(area=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
  section = dict(
      name=f'folder:{path}',
      dir=None,
      train_split='train',
      eval_split='train',
      image_size=side,
      eval_image_size=side,
      eval_crop=0.875,
      eval_interpolation='bicubic',
      augment=(
          ('random_resized_crop', crop | dict(interpolation=interpolation)),
          ('flip', {}),
      ),
      repeats=1,
      max_bad_fraction=0.0,
      num_workers=workers,
      num_threads=threads,
      prefetch=prefetch,
  )
  return section


def _own(
    images: data_jpegs.Folder,
    batch: int,
    side: int,
    interpolation: str,
    **reading: Any,
) -> Pipeline:
  config = _config(images.path, side, interpolation, **reading)
  workers, prefetch = reading['workers'], reading['prefetch']
  return Pipeline(
      name='workers' if workers else 'threads',
      interpolation=interpolation,
      open=lambda: data.create(config, train=True, batch_size=batch, seed=0),
      # Each worker has one more, done, on its way to this process.
      ahead=workers * (prefetch + 1) if workers else prefetch,
  )


def create(
    images: data_jpegs.Folder,
    records: str | None,
    *,
    batch: int,
    side: int,
    interpolations: Sequence[str],
    workers: int,
    cores: int,
) -> list[Pipeline]:
  """Returns the pipelines.

  Args:
    images: to be read.
    records: the same in one TFRecord file; None to leave out tf.data.
    batch: images of a batch.
    side: height and width of the results, in pixels.
    interpolations: keys of `decode.INTERPOLATIONS`; 'workers' is measured with
      the first alone.
    workers: processes; 0 to leave them out.
    cores: threads of 'threads'.
  """
  threads = dict(workers=0, threads=cores, prefetch=cores)
  found = [_own(images, batch, side, i, **threads) for i in interpolations]
  if workers:
    processes = dict(workers=workers, threads=1, prefetch=1)
    found.append(_own(images, batch, side, interpolations[0], **processes))
  if records is not None:
    found.append(
        Pipeline(
            name='tf.data',
            interpolation='cubic',
            open=lambda: data_tf.batches(records, batch, side),
            ahead=data_tf.PREFETCH,
        )
    )
  return found
