"""Tiny originals in the format of COCO: JSON and folders of images.

Image `seed` is always the same picture. Two in three are landscape, every
fifth has no boxes, and every fourth of the others a crowd.
"""

import json
import pathlib

import fake_tfds
import ml_collections
import numpy as np
import pictures
import tensorflow_datasets as tfds

from awconv_jax.data.tfds_source import CATEGORY_IDS

COCO_IDS = CATEGORY_IDS['coco']
# Height and width, by the seed.
SIZES = ((30, 40), (40, 30), (36, 36))


def image(seed: int) -> bytes:
  height, width = SIZES[seed % len(SIZES)]
  pixels = pictures.smooth(height, width, seed)
  return pictures.encode(pixels, 'JPEG', quality=95)


def annotations(seed: int, category_ids=COCO_IDS) -> list[dict]:
  """Returns the annotations of an image; their ids begin at 1000 * seed + 1."""
  if seed % 5 == 4:
    return []
  rng = np.random.default_rng(seed)
  height, width = SIZES[seed % len(SIZES)]
  found = []
  for i in range(1 + seed % 3):
    # Quarters of pixels, as COCO's hundredths lose in float32.
    left, top = rng.integers(0, [4 * width // 2, 4 * height // 2]) / 4
    sides = rng.integers([8, 8], [2 * width, 2 * height]) / 4
    category = int(rng.choice(category_ids))
    entry = dict(id=1000 * seed + i + 1, image_id=seed, category_id=category)
    entry |= dict(bbox=[float(v) for v in (left, top, *sides)], segmentation=[])
    entry |= dict(area=round(float(sides.prod()) * 0.75))
    found.append(entry | dict(iscrowd=int(i == 0 and seed % 4 == 3)))
  return found


def xyxy(annotations: list[dict]) -> np.ndarray:
  """Returns their boxes, [n, 4], by both corners."""
  boxes = np.reshape([a['bbox'] for a in annotations], (-1, 4))
  return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def assert_record(source, index, seed, wanted, atol=0.0) -> None:
  """A source's record is image `seed` with the wanted annotations."""
  record = source[index]
  objects = record['objects']
  assert record['image'] == image(seed) and record['image_id'] == seed
  ids = [source.category_ids[label] for label in objects.labels]
  assert ids == [a['category_id'] for a in wanted]
  np.testing.assert_allclose(objects.boxes, xyxy(wanted), rtol=0, atol=atol)
  assert objects.area.tolist() == [a['area'] for a in wanted]
  assert objects.crowd.tolist() == [bool(a['iscrowd']) for a in wanted]


def document(seeds, category_ids=COCO_IDS) -> dict:
  """Returns what the JSON of a split holds."""
  images = []
  for seed in seeds:
    height, width = SIZES[seed % len(SIZES)]
    entry = dict(id=seed, file_name=f'{seed:012}.jpg')
    images.append(entry | dict(height=height, width=width))
  found = [a for seed in seeds for a in annotations(seed, category_ids)]
  found.sort(key=lambda a: a['id'] % 1000)  # Not image by image.
  # Not in the order of the ids.
  categories = [dict(id=i, name=f'thing {i}') for i in reversed(category_ids)]
  return {'images': images, 'annotations': found, 'categories': categories}


def write(root: pathlib.Path, splits: dict, category_ids=(3, 5, 9)) -> None:
  """Writes splits, seeds by name, as `CocoJson` reads them."""
  (root / 'annotations').mkdir(parents=True, exist_ok=True)
  for split, seeds in splits.items():
    path = root / 'annotations' / f'instances_{split}.json'
    path.write_text(json.dumps(document(seeds, category_ids)))
    (root / split).mkdir(exist_ok=True)
    for seed in seeds:
      (root / split / f'{seed:012}.jpg').write_bytes(image(seed))


def examples(seeds, broken=()) -> list[dict]:
  """Returns what TFDS keeps of images, by seed; some are no images."""
  found = []
  for seed in seeds:
    height, width = SIZES[seed % len(SIZES)]
    objects = []
    for a in annotations(seed):
      x0, y0, x1, y1 = (xyxy([a])[0] / ([width, height] * 2)).clip(0, 1)
      kept = dict(id=a['id'], area=a['area'], is_crowd=bool(a['iscrowd']))
      kept['label'] = COCO_IDS.index(a['category_id'])
      objects.append(kept | dict(bbox=tfds.features.BBox(y0, x0, y1, x1)))
    content = b'no image' if seed in broken else image(seed)
    entry = {'image': content, 'image/filename': f'{seed:012}.jpg'}
    found.append(entry | {'image/id': seed, 'objects': objects})
  return found


def prepare(data_dir: pathlib.Path, splits: dict, broken=()) -> None:
  """Writes coco/2017 as TFDS does, of the seeds of each split."""
  features = fake_tfds.boxed(80)
  names = [f'thing {i}' for i in COCO_IDS]
  features['objects']['label'].names = names
  rows = {split: examples(seeds, broken) for split, seeds in splits.items()}
  fake_tfds.write(data_dir, 'coco/2017', features, rows)


def config(name: str, data_dir=None, **changes):
  """Returns the section `data` of a config, for tiny images."""
  options = dict(name=name, dir=None if data_dir is None else str(data_dir))
  options |= dict(canvas=(48, 64), short_side=48, long_side=60)
  options |= dict(train_short_sides=(48,), flip=0.0)
  options |= dict(max_boxes=6, train_empty=True)
  return ml_collections.ConfigDict(options | changes)
