"""COCO's average precision and recall, every image once.

AP = mean over categories and IoU thresholds .50, .55 ... .95 of the precision
at recall 0, .01 ... 1; T.-Y. Lin et al., https://arxiv.org/abs/1405.0312,
https://cocodataset.org/#detection-eval
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# As `COCOeval.stats` has them: small, medium and large are by COCO below
# 32 x 32, up to 96 x 96 and above; AR1 has one detection an image.
METRICS = tuple('AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl'.split())


class CocoEvaluator:
  """Collects detections and ground truth; rows of padding do not count.

  Args:
    label_to_category_id: the category's id for each label 0, 1, ...; the ids
      may have gaps.
    names: of the categories, in the same order; if None, their ids.
  """

  def __init__(
      self,
      label_to_category_id: Sequence[int],
      names: Sequence[str] | None = None,
  ):
    self._ids = [int(i) for i in label_to_category_id]
    self._names = [str(n) for n in (self._ids if names is None else names)]
    # By the image's id: its size, detections and objects, see `dataset`.
    self._images: dict[int, tuple[dict, list[dict], list[dict]]] = {}
    self._scores: tuple[dict[str, float], dict[int, float]] | None = None

  def update(self, outputs: Mapping[str, np.ndarray]) -> None:
    """Adds a batch. Boxes are x1, y1, x2, y2 in pixels of the canvas.

    A detection whose box or score is not finite is no detection.

    Args:
      outputs: boxes float [B, D, 4], scores [B, D], labels int [B, D] and valid
        bool [B, D] of the detections; image_id int [B]; image_size and
        original_size [B, 2], height and width on the canvas and of the file;
        mask bool [B], False for rows that do not count. Where the ground truth
        is known, gt_boxes float [B, M, 4], gt_labels int [B, M], gt_valid and
        gt_crowd bool [B, M], and gt_area float [B, M] in original pixels, if
        objects have an area other than their box's.

    Raises:
      ValueError: an image came before.
    """
    self._scores = None
    outputs = {name: np.asarray(array) for name, array in outputs.items()}
    for row in np.flatnonzero(outputs['mask']):
      one = {name: array[row] for name, array in outputs.items()}
      image_id = int(one['image_id'])
      if image_id in self._images:
        raise ValueError(
            f'CocoEvaluator.update: image_id {image_id} came twice; mask rows '
            'that only fill up a batch, and take a new evaluator for a new pass'
        )
      height, width = map(int, one['original_size'])
      image = {'id': image_id, 'height': height, 'width': width}
      valid = one['valid'].astype(bool) & np.isfinite(one['scores'])
      valid &= np.isfinite(one['boxes']).all(-1)
      found = self._rows(one, valid, score=one['scores'])
      truth = []
      if 'gt_boxes' in one:
        objects = {k[3:]: v for k, v in one.items() if k.startswith('gt_')}
        more = {'area': objects['area']} if 'area' in objects else {}
        more['iscrowd'] = objects['crowd'].astype(int)
        valid = objects['valid'].astype(bool)
        truth = self._rows(one | objects, valid, **more)
        truth = [
            {'area': row['bbox'][2] * row['bbox'][3]} | row for row in truth
        ]
      self._images[image_id] = image, found, truth

  def _rows(self, one, valid, **more) -> list[dict[str, Any]]:
    """Returns detections or objects; `more` are columns besides the boxes."""
    boxes = in_original_pixels(
        one['boxes'][valid], one['image_size'], one['original_size']
    )
    boxes[:, 2:] -= boxes[:, :2]
    columns = {'bbox': boxes} | {k: column[valid] for k, column in more.items()}
    columns['category_id'] = np.array(self._ids)[one['labels'][valid]]
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    common = {'image_id': int(one['image_id'])}
    return [common | dict(zip(columns, row, strict=True)) for row in rows]

  def results(self) -> list[dict[str, Any]]:
    """Returns the detections in COCO's format of results, for `json.dump`."""
    images = sorted(self._images.items())
    return [row for _, (_, rows, _) in images for row in rows]

  def dataset(self) -> dict[str, Any]:
    """Returns images, objects and categories in COCO's format, as results."""
    images = [image for _, image in sorted(self._images.items())]
    objects = [row for _, _, rows in images for row in rows]
    categories = zip(self._ids, self._names, strict=True)
    return {
        'info': {},  # Some readers want it.
        'images': [image for image, _, _ in images],
        # COCO's tools take an id of 0 for 'no match'.
        'annotations': [{'id': n, **row} for n, row in enumerate(objects, 1)],
        'categories': [{'id': i, 'name': name} for i, name in categories],
    }

  def compute(self) -> dict[str, float]:
    """Returns `METRICS` as fractions, and 'num_images'.

    As in COCO's tables a metric is -1 where there is nothing to find, such
    as APl without any large object, and categories without objects are left
    out of the means.

    Raises:
      ValueError: nothing was added.
    """
    metrics, _ = self._score()
    return metrics | {'num_images': len(self._images)}

  def per_class(self) -> dict[int, float]:
    """Returns the AP of each category by its id; -1 without any object."""
    _, by_id = self._score()
    return {category_id: by_id[category_id] for category_id in self._ids}

  def _score(self) -> tuple[dict[str, float], dict[int, float]]:
    if not self._images:
      raise ValueError('CocoEvaluator.compute: no image was added')
    if self._scores is None:
      self._scores = score(self.dataset(), self.results())
    return self._scores


def in_original_pixels(
    boxes: np.ndarray, size: Sequence[int], original_size: Sequence[int]
) -> np.ndarray:
  """Returns boxes on the canvas in pixels of the image as it was.

  float64 [N, 4], x1, y1, x2, y2; sizes are height and width.
  """
  # In float64, or boxes would lose pixels' fractions on their way to JSON.
  scale = np.asarray(original_size, np.float64) / np.asarray(size, np.float64)
  return np.asarray(boxes, np.float64) * np.tile(scale[::-1], 2)


def score(
    dataset: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float], dict[int, float]]:
  """Returns `METRICS`, and the AP of every category by its id.

  Both arguments are in COCO's format. -1 is where there is no object.
  """
  from faster_coco_eval import COCO, COCOeval_faster

  # Not by `COCO.loadRes`, which fails without any detection.
  found = [
      {**result, 'id': number, 'area': result['bbox'][2] * result['bbox'][3]}
      for number, result in enumerate(results, 1)
  ]
  # Of copies, as the annotations get further keys; deep ones would take as long
  # as all the rest.
  truth = [dict(row) for row in dataset['annotations']]
  pair = [COCO({**dataset, 'annotations': rows}) for rows in (truth, found)]
  evaluation = COCOeval_faster(*pair, iouType='bbox')
  evaluation.run()
  stats = dict(zip(METRICS, map(float, evaluation.stats), strict=True))
  # [thresholds, recalls, categories], of all areas and 100 detections; -1 all
  # over where a category has no object.
  precision = evaluation.eval['precision'][..., 0, -1]
  by_id = {
      int(category_id): float(precision[:, :, column].ravel().mean())
      for column, category_id in enumerate(evaluation.params.catIds)
  }
  return stats, by_id
