"""Reads data sets of images with boxes that TFDS has prepared: coco/2017.

A record has the features of TFDS's coco/2017
(https://www.tensorflow.org/datasets/catalog/coco): boxes are [ymin, xmin, ymax,
xmax] in 0..1, labels 0..K-1 stand for the sorted ids of the categories.
"""

import contextlib
import functools
import hashlib
import os
from typing import Any
import urllib.parse

import numpy as np

from awconv_jax.data.decode import EncodedImage
from awconv_jax.data.detection.objects import Source, create
from awconv_jax.data.tfds_source import TfdsRecords

# TFDS does not keep the ids. COCO's are 1..90 without those that were given
# to categories of which no object has been outlined.
_NOT_OUTLINED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = {
    'coco': tuple(i for i in range(1, 91) if i not in _NOT_OUTLINED)
}


class TfdsObjects(Source, TfdsRecords):
  """One split of a prepared data set."""

  def __init__(self, directory: str, split: str):
    super().__init__(directory, split)
    label = self.info.features['objects']['label']
    self.class_names = tuple(label.names)
    # Kept with the set, or COCO's, or without gaps.
    kept = (self.info.metadata or {}).get('label_to_category_id')
    known = CATEGORY_IDS.get(self.info.name, range(1, label.num_classes + 1))
    self.category_ids = tuple(int(i) for i in kept or known)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self.record(index)
    # Of the header only: the pixels are not needed yet.
    image = EncodedImage(record['image'], self.channels)
    sides = np.float32([image.width, image.height] * 2)
    found = record['objects']
    boxes = np.asarray(found['bbox'], np.float32).reshape(-1, 4)
    boxes = boxes[:, [1, 0, 3, 2]] * sides
    others = (found[name] for name in ('label', 'is_crowd', 'area'))
    return {
        'image': record['image'],
        'image_id': int(record['image/id']),
        'objects': create(boxes, *others),
    }

  @functools.cached_property
  def index(self) -> np.ndarray:
    """See `Source`; for it, the headers of all images have to be read.

    This takes 20 s for COCO [one core], or as long as reading all files; so it
    is kept beside the data where all images can be read, as others may be the
    next time. Its last row is another when the files have been made anew.
    """
    name = urllib.parse.quote(self.split, safe='')
    path = os.path.join(self.directory, f'image_index-{name}.npy')
    files = [(os.path.basename(p), os.stat(p)) for p in self.paths]
    stats = repr([(name, s.st_size, s.st_mtime_ns) for name, s in files])
    digest = hashlib.blake2b(stats.encode(), digest_size=16).digest()
    key = np.frombuffer(digest, np.int32)
    with contextlib.suppress(OSError, ValueError, EOFError):
      kept = np.load(path)
      # Neither of other files nor half written by another process.
      whole = kept.shape == (len(self) + 1, 4) and kept[:-1, :2].all()
      if whole and np.array_equal(kept[-1], key):
        return kept[:-1]
    index = super().index
    if index[:, :2].all():
      # Where it belongs to somebody else, it is looked up every time.
      with contextlib.suppress(OSError):
        np.save(path, np.vstack([index, key]))
    return index
