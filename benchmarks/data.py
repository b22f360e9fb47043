"""Reading images: this project's pipelines, and tf.data where it is installed.

Batches are read, decoded, cut, resized, mirrored, normalised and put to use;
'product' is the least use, the others are training steps. On the CPU the
consumer computes on the cores that read.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import os
import tempfile
from typing import Any

import jax
import numpy as np

from awconv_jax import errors
from awconv_jax.train import partition
from benchmarks import picture

TF = 'tf.data'
PICTURE = picture.Picture(
    bars='label',
    groups=('consumer', 'batch', 'side'),
    height='bar',
    title='images a second',
)


@dataclasses.dataclass
class Row:
  """One line of the table; what cannot be measured here is None.

  Attributes:
    pipeline: 'threads' or 'workers' of this project, or 'tf.data'.
    interpolation: by which boxes are brought to size.
    consumer: what takes the batches; see `data_consumers`.
    batch: images of a batch.
    side: height and width of the results, in pixels.
    images_per_second: median of the rounds.
    per_core: of them, for each core.
    ratio: to tf.data with the same consumer.
    data_wait: share of the time in which there was no batch to go on with.
    consumer_ms: of the consumer alone.
    grown_mib: growth of all processes while they read and use the batches,
      the largest seen.
    worker_mib: of that, each worker.
  """

  pipeline: str
  interpolation: str
  consumer: str
  batch: int
  side: int
  images_per_second: float | None = None
  per_core: float | None = None
  ratio: float | None = None
  data_wait: float | None = None
  consumer_ms: float | None = None
  grown_mib: float | None = None
  worker_mib: float | None = None

  @property
  def label(self) -> str:
    """Of the bar."""
    return f'{self.pipeline} {self.interpolation}'

  @property
  def bar(self) -> float:
    """Height of the bar."""
    return self.images_per_second or math.nan


def cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _cases(pipelines: Sequence[Any], mesh: jax.sharding.Mesh) -> list[Any]:
  """Returns all pipelines with a product, and the first with steps, too."""
  from benchmarks import data_consumers, data_rates

  cases = []
  for pipeline in pipelines:
    names = ['product']
    if pipeline is pipelines[0]:
      names += data_consumers.TRAINING
    opened = pipeline.open()
    try:
      # By way of JAX, whose memory has the alignment that TensorFlow's has,
      # too: what has it not is copied with every call.
      batch = {
          k: np.asarray(jax.numpy.array(v)) for k, v in next(opened).items()
      }
    finally:
      opened.close()
    for name in names:
      consumer = data_consumers.create(name, mesh, batch)
      cases.append(data_rates.Case(pipeline, name, consumer, batch))
  return cases


def _largest(values: Sequence[float | None]) -> float | None:
  return max((v for v in values if v is not None), default=None)


def _row(case: Any, seen: Sequence[Any], batch: int, side: int) -> Row:
  from benchmarks import data_rates

  rate = batch * float(np.median([s.batches_per_second for s in seen]))
  return Row(
      pipeline=case.pipeline.name,
      interpolation=case.pipeline.interpolation,
      consumer=case.consumer_name,
      batch=batch,
      side=side,
      images_per_second=rate,
      per_core=rate / cores(),
      data_wait=float(np.median([s.waited for s in seen])),
      consumer_ms=data_rates.milliseconds(case),
      grown_mib=_largest([s.grown_mib for s in seen]),
      worker_mib=_largest([s.worker_mib for s in seen]),
  )


def _measure(pipelines, mesh, *, batch, side, seconds) -> list[Row]:
  """Returns the rows of one batch size, that of tf.data last."""
  from benchmarks import data_rates

  cases = _cases(pipelines, mesh)
  seen = data_rates.measure(cases, seconds)
  rows = [_row(c, s, batch, side) for c, s in zip(cases, seen, strict=True)]
  if rows[-1].pipeline != TF:
    return [*rows, Row(TF, 'cubic', 'product', batch, side)]
  for row in rows:
    if row.consumer == rows[-1].consumer:
      row.ratio = row.images_per_second / rows[-1].images_per_second
  return rows


def run(
    *,
    batches: Sequence[int],
    side: int,
    images: int,
    workers: int | None,
    interpolations: Sequence[str],
    seconds: float,
) -> Iterator[Row]:
  """Measures, and yields rows as they come.

  Args:
    batches: batch sizes.
    side: height and width of the results, in pixels.
    images: JPEGs to make.
    workers: processes that read; None for one each core, 0 for none.
    interpolations: to measure this project's pipeline with.
    seconds: for each pipeline with each consumer.

  Raises:
    InputError: for what cannot be measured.
  """
  # Here, as other subjects are measured without what data need.
  from benchmarks import data_jpegs, data_readers, data_tf

  data_readers.check(interpolations)
  mesh = partition.create_mesh()
  _check(batches, images, mesh)
  with tempfile.TemporaryDirectory() as folder:
    made = data_jpegs.write(folder, images)
    print(made, flush=True)
    records = None
    if data_tf.is_installed():
      records = os.path.join(folder, 'images.tfrecord')
      data_tf.write_records(made.files, records)
    options = dict(
        side=side,
        interpolations=interpolations,
        workers=cores() if workers is None else workers,
        cores=cores(),
    )
    for batch in batches:
      pipelines = data_readers.create(made, records, batch=batch, **options)
      with jax.set_mesh(mesh):
        yield from _measure(
            pipelines, mesh, batch=batch, side=side, seconds=seconds
        )


def _check(batches: Sequence[int], images: int, mesh: Any) -> None:
  """Raises InputError for numbers that do not go together."""
  for batch in batches:
    if batch % mesh.size:
      raise errors.InputError(
          f'--batches: the {mesh.size} devices cannot share {batch} images '
          'evenly'
      )
    if batch > images:
      raise errors.InputError(
          f'--images={images} are less than a batch of {batch}; make more, or '
          'give smaller --batches'
      )


def summarize(rows: Sequence[Row]) -> list[str]:
  """Returns lines with the ratios, and the shares of time spent waiting."""
  from benchmarks import data_tf

  lines = []
  for row in rows:
    place = f'{row.label}, batch {row.batch}'
    if row.pipeline != TF and row.ratio is not None:
      lines.append(f'{place}: {row.ratio:.2f} times tf.data')
    elif row.consumer != 'product':
      lines.append(
          f'{place}: {100 * row.data_wait:.1f} % of the time of training '
          f'{row.consumer} without a batch; its step alone takes '
          f'{row.consumer_ms:.0f} ms'
      )
  if any(r.pipeline == TF and r.images_per_second is None for r in rows):
    lines.append(data_tf.REMEDY)
  return lines
