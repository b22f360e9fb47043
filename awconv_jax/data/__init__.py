"""Data sets and the batches made of them.

A batch is a dict of numpy arrays, b rows of a global batch per host:
  image: uint8 [b, H, W, C]; the task normalises it on the device.
  label: int32 [b]; or [b, L], all labels that are right, padded with -1.
  index: int32 [b], the example's number in its split; -1 in blank rows.
  mask: bool [b]; False for rows that only fill up the last eval batch, and for
    what cannot be evaluated: an unreadable image, one without any label.
Batches of images with boxes are described in `data.detection`.
"""

from typing import Any


# Imported when called, so that models can be used without Grain and TFDS.
def _images() -> Any:
  from awconv_jax.data import pipeline

  return pipeline


def _objects() -> Any:
  from awconv_jax.data.detection import pipeline

  return pipeline


# By what the data sets hold; `sources.kind` says it of each.
PIPELINES = {'images': _images, 'objects': _objects}


def create(
    config: Any,
    *,
    train: bool,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Any:
  """Returns the batches of `config.data`; see `create` of the pipelines."""
  from awconv_jax.data import sources

  return PIPELINES[sources.kind(config.data.name)]().create(
      config,
      train=train,
      batch_size=batch_size,
      seed=seed,
      process_index=process_index,
      process_count=process_count,
  )


def prepare(name: str, data_dir: str | None) -> None:
  """Builds an embedded data set if needed; see `sources.prepare`."""
  from awconv_jax.data import sources

  sources.prepare(name, data_dir)
