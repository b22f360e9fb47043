"""The digits data set of scikit-learn, which brings it along.

E. Alpaydin and C. Kaynak, 'Optical Recognition of Handwritten Digits', UCI
1998, https://doi.org/10.24432/C50P49: 1,797 scans of 8 x 8 pixels, 0..16.

The set is ordered by writer. Its last 360 scans are the test split, so they
are mostly of writers whose hands were never trained on; a random split would
be easier and would say less.
"""

from typing import Any
import warnings

import cv2
import numpy as np

from awconv_jax.data import splits

NUM_TRAIN, NUM_ALL = 1437, 1797
SIZE = 32


def load() -> tuple[np.ndarray, np.ndarray]:
  """Returns all scans, ink per pixel [1797, 8, 8] in 0..16, and labels."""
  with warnings.catch_warnings():
    # Of a part of it that wants semaphores, and is not used.
    warnings.simplefilter('ignore')
    from sklearn import datasets

  scans, labels = datasets.load_digits(return_X_y=True)
  return scans.reshape(-1, 8, 8), labels


def enlarge(scan: np.ndarray) -> np.ndarray:
  """Enlarges a scan to the size that networks for small images expect.

  Ink per pixel, [8, 8] in 0..16, becomes a grey image, uint8 [32, 32, 1] in
  0..255, bicubic.
  """
  grey = scan.astype(np.float32) * (255 / 16)
  grey = cv2.resize(grey, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
  # Bicubic weights overshoot at edges, and a plain cast would wrap around.
  return np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None]


class Digits:
  """Handwritten digits, 32 x 32 grey, of 'train', 'test' or a slice of one."""

  channels, label_shape, category_ids, faults = 1, (), None, ()
  class_names = tuple('0123456789')

  def __init__(self, split: str):
    known = dict(train=range(NUM_TRAIN), test=range(NUM_TRAIN, NUM_ALL))
    self._numbers = splits.choose(split, known, 'digits')
    scans, self._labels = load()
    self._images = [
        cv2.imencode('.png', enlarge(scans[i]))[1].tobytes()
        for i in self._numbers
    ]

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> dict[str, Any]:
    number = self._numbers[index]
    label = int(self._labels[number])
    return {'image': self._images[index], 'label': label, 'id': number}

  def place(self, index: int) -> str:
    """Returns which scan it is."""
    return f'scan {self._numbers[index]}'
