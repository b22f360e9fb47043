"""COCO's average precision and recall, every image once.

AP = mean over categories and IoU thresholds .50, .55 ... .95 of the precision
at recall 0, .01 ... 1; T.-Y. Lin et al., https://arxiv.org/abs/1405.0312,
https://cocodataset.org/#detection-eval
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

# As `COCOeval.stats` has them: small, medium and large are by COCO below
# 32 x 32, up to 96 x 96 and above; AR1 has one detection an image.
METRICS = (
    *('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'),
    *('AR1', 'AR10', 'AR100', 'ARs', 'ARm', 'ARl'),
)


@dataclasses.dataclass(frozen=True)
class _Image:
  """One image, in its original pixels.

  Attributes:
    size: height and width.
    found: float64 [N, 6], per detection x, y, w, h, score and label.
    truth: float64 [M, 7], per object x, y, w, h, area, crowd and label.
  """

  size: tuple[int, int]
  found: np.ndarray
  truth: np.ndarray


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
    self._images: dict[int, _Image] = {}
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
      self._images[image_id] = _Image(
          size=tuple(map(int, one['original_size'])),
          found=_found(one),
          truth=_truth(one),
      )

  def results(self) -> list[dict[str, Any]]:
    """Returns the detections in COCO's format of results, for `json.dump`."""
    return [
        {
            'image_id': image_id,
            'category_id': self._ids[int(label)],
            'bbox': xywh,
            'score': score,
        }
        for image_id, image in sorted(self._images.items())
        for *xywh, score, label in image.found.tolist()
    ]

  def dataset(self) -> dict[str, Any]:
    """Returns images, objects and categories in COCO's format, as results."""
    images = sorted(self._images.items())
    rows = [(i, row) for i, image in images for row in image.truth.tolist()]
    return {
        'info': {},  # Some readers want it.
        'images': [
            {'id': i, 'height': image.size[0], 'width': image.size[1]}
            for i, image in images
        ],
        'annotations': [
            {
                'id': number,
                'image_id': image_id,
                'category_id': self._ids[int(label)],
                'bbox': xywh,
                'area': area,
                'iscrowd': int(crowd),
            }
            # COCO's tools take an id of 0 for 'no match'.
            for number, (image_id, (*xywh, area, crowd, label)) in enumerate(
                rows, start=1
            )
        ],
        'categories': [
            {'id': i, 'name': name}
            for i, name in zip(self._ids, self._names, strict=True)
        ],
    }

  def compute(self) -> dict[str, float]:
    """Returns `METRICS` as fractions, and 'num_images'.

    As in COCO's own tables a metric is -1 where there is nothing to find, such
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

  Args:
    boxes: [N, 4], x1, y1, x2, y2.
    size: height and width that the image has on the canvas.
    original_size: height and width that it had before.

  Returns:
    float64 [N, 4].
  """
  # In float64, or boxes would lose pixels' fractions on their way to JSON.
  scale = np.asarray(original_size, np.float64) / np.asarray(size, np.float64)
  return np.asarray(boxes, np.float64) * np.tile(scale[::-1], 2)


def _original_xywh(
    one: Mapping[str, np.ndarray], boxes: np.ndarray
) -> np.ndarray:
  """Returns boxes on the canvas [N, 4] as x, y, w, h in the file's pixels."""
  boxes = in_original_pixels(boxes, one['image_size'], one['original_size'])
  return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _found(one: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns `_Image.found` of the arrays of one image."""
  valid = one['valid'].astype(bool) & np.isfinite(one['scores'])
  valid &= np.isfinite(one['boxes']).all(-1)
  boxes = _original_xywh(one, one['boxes'][valid])
  return np.column_stack([boxes, one['scores'][valid], one['labels'][valid]])


def _truth(one: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns `_Image.truth` of the arrays of one image."""
  if 'gt_boxes' not in one:
    return np.zeros((0, 7))
  valid = one['gt_valid'].astype(bool)
  boxes = _original_xywh(one, one['gt_boxes'][valid])
  area = boxes[:, 2] * boxes[:, 3]
  if 'gt_area' in one:
    area = one['gt_area'][valid]
  return np.column_stack(
      [boxes, area, one['gt_crowd'][valid], one['gt_labels'][valid]]
  )


def score(
    dataset: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float], dict[int, float]]:
  """Evaluates boxes.

  Args:
    dataset: ground truth in COCO's format.
    results: detections in COCO's format; there may be none.

  Returns:
    `METRICS`, and the AP of every category by its id; -1 where there is no
    object.
  """
  from faster_coco_eval import COCO, COCOeval_faster

  # Not by `COCO.loadRes`, which fails without any detection.
  found = [
      {**result, 'id': number, 'area': result['bbox'][2] * result['bbox'][3]}
      for number, result in enumerate(results, start=1)
  ]
  # Of copies, as the annotations get further keys.
  pair = [
      COCO({**dataset, 'annotations': rows}, use_deepcopy=True)
      for rows in (dataset['annotations'], found)
  ]
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
