"""Average precision by faster-coco-eval, which is used here, and pycocotools.

Objects and detections are drawn at random on a split as large as COCO's val2017
unless told otherwise. The twelve numbers of both must be equal.
"""

from collections.abc import Iterator
import contextlib
import io
import time
from typing import Any

import numpy as np

from awconv_jax import errors
from awconv_jax.evaluators import coco
from awconv_jax.options import PositiveInt, Seed

_SIZE = np.array([640.0, 480.0])


def split(
    images: int, objects: int, detections: int, classes: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Returns a data set and detections in COCO's format.

  Half of the detections are near an object, of its class; the others are
  anywhere. A fiftieth of the objects are crowds.
  """
  rng = np.random.default_rng(seed)
  size = images * objects
  corners = rng.random((size, 2)) * _SIZE * 0.8
  sides = (_SIZE - corners) * rng.random((size, 2)) ** 2 + 4
  truth = np.hstack([corners, sides]).reshape(images, objects, 4)
  labels = rng.integers(1, classes + 1, (images, objects))
  crowds = rng.random((images, objects)) < 0.02
  place = rng.integers(0, objects, (images, detections))
  near = np.take_along_axis(truth, place[..., None], 1)
  near = near + rng.normal(0, 0.05, near.shape) * near[..., [2, 3, 2, 3]]
  anywhere = np.roll(near, 1, axis=0)
  at_object = rng.random((images, detections)) < 0.5
  found = np.where(at_object[..., None], near, anywhere)
  found[..., 2:] = np.maximum(found[..., 2:], 1)
  found_labels = np.take_along_axis(labels, place, 1)
  scores = rng.random((images, detections))
  dataset = dict(
      info={},
      images=[dict(id=i, width=640, height=480) for i in range(1, images + 1)],
      categories=[dict(id=c, name=str(c)) for c in range(1, classes + 1)],
      annotations=[
          dict(image_id=i + 1, category_id=int(labels[i, j]), bbox=box)
          | dict(id=i * objects + j + 1, area=box[2] * box[3])
          | dict(iscrowd=int(crowds[i, j]))
          for i, row in enumerate(truth.tolist())
          for j, box in enumerate(row)
      ],
  )
  results = [
      dict(image_id=i + 1, category_id=int(found_labels[i, j]), bbox=box)
      | dict(score=float(scores[i, j]))
      for i, row in enumerate(found.tolist())
      for j, box in enumerate(row)
  ]
  return dataset, results


def _by_pycocotools(dataset: Any, results: Any) -> dict[str, float]:
  try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
  except ImportError as error:
    raise errors.InputError(
        f"{error.name!r} is wanted: pip install -e '.[test]'"
    ) from error
  truth = COCO()
  truth.dataset = dataset
  truth.createIndex()
  evaluation = COCOeval(truth, truth.loadRes(results), 'bbox')
  evaluation.evaluate()
  evaluation.accumulate()
  evaluation.summarize()
  return dict(zip(coco.METRICS, evaluation.stats.tolist(), strict=True))


EVALUATORS = {
    'pycocotools': _by_pycocotools,
    'faster-coco-eval': lambda dataset, results: coco.score(dataset, results)[
        0
    ],
}


def run(
    *,
    images: PositiveInt = 5000,
    objects: PositiveInt = 7,
    detections: PositiveInt = 100,
    classes: PositiveInt = 80,
    seed: Seed = 0,
) -> Iterator[dict[str, Any]]:
  """Measures, and yields rows as they come.

  Args:
    images: of the split; COCO's val2017 has 5,000.
    objects, detections: of an image; val2017 has 7.3 objects.
    classes: of the objects.
    seed: of all that is drawn.

  Yields:
    'seconds' from lists in COCO's format to the twelve numbers, 'cpu_seconds'
    of the process, which others on the machine do not change as much, and 'AP'.
  """
  dataset, results = split(images, objects, detections, classes, seed)
  first = {}
  for name, score in EVALUATORS.items():
    start, cpu_start = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
      stats = score(dataset, results)
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    first = first or stats
    for metric, value in stats.items():
      if abs(value - first[metric]) > 1e-12:
        raise errors.ReportedError(
            f'{metric} is {value} by {name}, and {first[metric]} by pycocotools'
        )
    yield dict(
        images=images,
        detections=detections,
        evaluator=name,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        images_per_second=images / seconds,
        AP=stats['AP'],
    )
