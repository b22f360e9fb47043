"""What is told and drawn of an image, by the task of the network."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import json
import pathlib
import re
from typing import Any

import cv2
import numpy as np
from PIL import Image

from awconv_jax import places
from awconv_jax.evaluators.coco import CocoEvaluator
from awconv_jax.evaluators.confusion import Confusion
from awconv_jax.tools import (
    contact_sheet,
    draw_boxes,
    draw_masks,
    evaluate,
    prediction_files,
)

Names = Sequence[str]


@dataclasses.dataclass(frozen=True)
class Seen:
  """An image that was looked at.

  Attributes:
    number: of the image, from 1 on.
    name: path of the file, or what the data set calls it.
    result: of `inference`, or the error in its place.
    pixels: returns it as uint8 [H, W, C], on its canvas or not.
    row: what was computed of an image of the eval split, by name.
  """

  number: int
  name: str
  result: Any
  pixels: Callable[[], np.ndarray]
  row: dict[str, np.ndarray]


class Classes:
  """What is told of an image that was classified."""

  columns = ('label', 'name', 'probability')
  side = 240

  def __init__(self, top: int, score: float, names: Names, ids: Any):
    self._names, self._top = names, top
    self._hits: list[bool] = []

  def record(self, seen: Seen) -> dict[str, Any]:
    record = {'found': prediction_files.classes(seen.result, self._top)}
    if (truth := self._truth(seen)) is not None:
      self._hits.append(seen.result.name in truth)
      record['truth'] = ', '.join(truth)
    return record

  def _truth(self, seen: Seen) -> list[str] | None:
    if 'label' not in seen.row:
      return None
    labels = np.atleast_1d(seen.row['label'])
    return [self._names[label] for label in labels if label >= 0]

  def text(self, found: Sequence[dict[str, Any]]) -> str:
    return ', '.join(f'{c["name"]} ({c["probability"]:.1%})' for c in found)

  def tile(self, seen: Seen, record: dict[str, Any]) -> contact_sheet.Tile:
    truth, ink = self._truth(seen), contact_sheet.INK
    right = None if truth is None else seen.result.name in truth
    first, *others = (self.text([one]) for one in record['found'][:3])
    lines = [(seen.name, ink[None]), (first, ink[right])]
    lines += [(text, ink[None]) for text in others]
    if right is False:
      lines.append((f'is {record["truth"]}', ink[None]))
    return contact_sheet.fitted(seen.pixels(), self.side), lines

  def draw(self, seen: Seen, folder: pathlib.Path, side: int) -> None:
    """Draws nothing, as the contact sheet shows all."""

  def outputs(self, folder: pathlib.Path | None, files: bool) -> Any:
    del folder, files
    return contextlib.nullcontext(lambda seen: None)

  def update(self, outputs: Any) -> None:
    """Takes nothing, as the records are counted."""

  def metrics(self, folder: pathlib.Path | None) -> dict[str, Any]:
    """Returns the share that is right, and writes it."""
    hits = len(self._hits)
    metrics = {'top1': sum(self._hits) / max(hits, 1), 'num_examples': hits}
    if folder is not None:
      (folder / 'metrics.json').write_text(json.dumps(metrics))
    return metrics


class Boxes:
  """What is told of an image on which objects were detected."""

  columns = ('label', 'name', 'score', 'x1', 'y1', 'x2', 'y2')
  side = draw_boxes.LEAST_SIDE

  def __init__(self, top: int, score: float, names: Names, ids: Any):
    self._ids, self._names, self._score = ids, names, score
    self._evaluator = CocoEvaluator(self._ids, self._names)
    self.update = self._evaluator.update

  def record(self, seen: Seen) -> dict[str, Any]:
    return {'found': prediction_files.boxes(seen.result.above(self._score))}

  def text(self, found: Sequence[dict[str, Any]]) -> str:
    boxes = [
        f'{o["name"]} ({o["score"]:.0%}) '
        f'[{o["x1"]:.0f} {o["y1"]:.0f} {o["x2"]:.0f} {o["y2"]:.0f}]'
        for o in found
    ]
    return ', '.join(boxes) or f'nothing of a score of {self._score:g}'

  def picture(self, seen: Seen, side: int) -> np.ndarray:
    """Returns the image with its boxes, at most so large."""
    found, pixels = seen.result, seen.pixels()
    one = seen.row or dict(
        image_size=np.array(found.size),
        valid=np.ones(len(found), bool),
        **{k: getattr(found, k) for k in ('boxes', 'scores', 'labels')},
    )
    height, width = map(int, one['image_size'])
    factor = min(side / max(height, width), 1)
    size = np.maximum(np.rint(np.multiply((height, width), factor)), 1)
    if factor < 1:
      pixels = cv2.resize(
          pixels[:height, :width],
          size[::-1].astype(int).tolist(),
          interpolation=cv2.INTER_AREA,
      )
    scaled = {k: one[k] * factor for k in ('boxes', 'gt_boxes') if k in one}
    one = {**one, **scaled, 'image_size': size}
    return draw_boxes.draw(pixels, one, self._names, self._score)

  def tile(self, seen: Seen, record: dict[str, Any]) -> contact_sheet.Tile:
    number, black = len(record['found']), contact_sheet.INK[None]
    lines = [
        (seen.name, black),
        (f'{number} object{"s" * (number != 1)}', black),
    ]
    picture = self.picture(seen, self.side)
    return contact_sheet.fitted(picture, self.side), lines

  def draw(self, seen: Seen, folder: pathlib.Path, side: int) -> None:
    """Writes a picture of its own."""
    name = seen.name
    if not seen.row:
      # With the number, as files in two folders may have one name; of a length
      # that a file's name may have.
      name = f'{seen.number:06}_{pathlib.Path(seen.name).stem[:50]}'
    (folder / 'pictures').mkdir(exist_ok=True)
    with places.for_writing(folder / f'pictures/{name}.png') as file:
      Image.fromarray(self.picture(seen, side)).save(file)

  @contextlib.contextmanager
  def outputs(self, folder: pathlib.Path | None, files: bool) -> Iterator[Any]:
    """Gives what takes each image for files in COCO's format."""
    categories = zip(self._ids, self._names, strict=True)
    categories = [{'id': int(i), 'name': name} for i, name in categories]
    if folder is None or not files:
      yield lambda seen: None
      return
    tail = f'], "categories": {json.dumps(categories)}}}'
    array = prediction_files.json_array
    with (
        array(folder / 'results.json') as result,
        array(folder / 'images.json', '{"images": [', tail) as image,
    ):

      def write(seen):
        found, (height, width) = seen.result, seen.result.size
        entry = {'id': seen.number, 'height': height, 'width': width}
        image(entry | {'file_name': seen.name})
        rows = zip(found.boxes, found.scores, found.labels, strict=True)
        for (x1, y1, x2, y2), score, label in rows:
          bbox = [float(n) for n in (x1, y1, x2 - x1, y2 - y1)]
          place = dict(image_id=seen.number, category_id=int(self._ids[label]))
          result(place | {'bbox': bbox, 'score': float(score)})

      yield write

  def metrics(self, folder: pathlib.Path | None) -> dict[str, Any]:
    """Returns COCO's metrics, and writes what they are of."""
    evaluator = self._evaluator
    dataset, ap = evaluator.dataset(), evaluator.per_class()
    per_class = [
        {'category_id': c['id'], 'name': c['name'], 'AP': ap[c['id']]}
        for c in dataset['categories']
    ]
    metrics = evaluator.compute() | {'per_class': per_class}
    if folder is not None:
      written = {'results': evaluator.results(), 'ground_truth': dataset}
      written['metrics'] = metrics
      for name, content in written.items():
        (folder / f'{name}.json').write_text(json.dumps(content))
      text = f'{evaluate.table(metrics)}\n'
      (folder / 'metrics.txt').write_text(text, encoding='utf-8')
    return metrics


_GAP = (0, 0), (4, 0), (0, 0)  # White, to the left of a panel.


class Masks:
  """What is told of an image whose pixels got a class each."""

  columns = ('label', 'name', 'share')
  side = draw_boxes.LEAST_SIDE

  def __init__(self, top: int, score: float, names: Names, ids: Any):
    self._names, self._top = names, top
    self._evaluator = Confusion(len(names), names)
    self.update = self._evaluator.update

  def record(self, seen: Seen) -> dict[str, Any]:
    numbers = {name: label for label, name in enumerate(self._names)}
    shares = [*seen.result.shares().items()][: self._top]
    return {
        'found': [
            dict(label=numbers[name], name=name, share=float(f'{share:.6g}'))
            for name, share in shares
        ]
    }

  def text(self, found: Sequence[dict[str, Any]]) -> str:
    return ', '.join(f'{c["name"]} ({c["share"]:.1%})' for c in found)

  def picture(self, seen: Seen) -> np.ndarray:
    """Returns the image, the classes on it, and the right ones if known."""
    pixels, classes = seen.pixels(), [seen.result.classes]
    if seen.row:
      height, width = seen.row['image_size']
      pixels = pixels[:height, :width]
      names = [n for n in ('classes', 'gt_classes') if n in seen.row]
      classes = [seen.row[name][:height, :width] for name in names]
    shown = [pixels]
    for one in classes:
      painted = draw_masks.draw(pixels, one, self._names)
      shown.append(np.pad(painted, _GAP, constant_values=255))
    return np.concatenate(shown, axis=1)

  def tile(self, seen: Seen, record: dict[str, Any]) -> contact_sheet.Tile:
    right = seen.row and 'gt_classes' in seen.row
    what = 'image, predicted' + ', right (black does not count)' * bool(right)
    lines = [(text, contact_sheet.INK[None]) for text in (seen.name, what)]
    lines += [
        (self.text([one]), draw_masks.ink_of(one['label'], one['name']))
        for one in record['found']
    ]
    return contact_sheet.fitted(self.picture(seen), self.side), lines

  def draw(self, seen: Seen, folder: pathlib.Path, side: int) -> None:
    """Writes a picture of its own, and a PNG of the classes' numbers."""
    name = re.sub(r'\W+', '_', seen.name)
    if not seen.row:
      name = pathlib.Path(seen.name).stem[:50]
    name = f'{seen.number:06}_{name}.png'
    tile = self.picture(seen), self.tile(seen, self.record(seen))[1]
    picture = contact_sheet.make([tile], max(side, self.side))
    for kind, made in (
        ('pictures', picture),
        ('masks', Image.fromarray(seen.result.classes)),
    ):
      (folder / kind).mkdir(exist_ok=True)
      with places.for_writing(folder / kind / name) as file:
        made.save(file)

  def outputs(self, folder: pathlib.Path | None, files: bool) -> Any:
    del folder, files
    return contextlib.nullcontext(lambda seen: None)

  def metrics(self, folder: pathlib.Path | None) -> dict[str, Any]:
    """Returns mean IoU and that of each class, and writes them."""
    evaluator = self._evaluator
    metrics = evaluator.compute() | {'per_class': evaluator.per_class()}
    if folder is not None:
      (folder / 'metrics.json').write_text(json.dumps(metrics))
    return metrics


REPORTS = {
    'classification': Classes,
    'detection': Boxes,
    'segmentation': Masks,
}
