"""What pycocotools makes of ground truth and detections in files."""

import contextlib
import io
import pathlib

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def stats(
    truth: pathlib.Path, found: pathlib.Path, category_id: int | None = None
) -> list[float]:
  """Returns the twelve numbers, of all categories or of one alone."""
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(str(truth))
    evaluation = COCOeval(truth, truth.loadRes(str(found)), 'bbox')
    if category_id is not None:
      evaluation.params.catIds = [category_id]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return evaluation.stats.tolist()
