"""The digits data set of scikit-learn as a TFDS builder, made from no download.

E. Alpaydin and C. Kaynak, 'Optical Recognition of Handwritten Digits', UCI
1998, https://doi.org/10.24432/C50P49: 1,797 scans of 8 x 8 pixels, 0..16.

The set is ordered by writer. Its last 360 scans are the test split, so they
are mostly of writers whose hands were never trained on; a random split would
be easier and would say less.
"""

import io

import cv2
import numpy as np
import tensorflow_datasets as tfds

NUM_TRAIN = 1437
SIZE = 32


def enlarge(scan: np.ndarray) -> np.ndarray:
  """Enlarges one scan to the size that networks for small images expect.

  Args:
    scan: ink per pixel, [8, 8], values 0..16.

  Returns:
    The grey image, uint8 [32, 32, 1]: bicubic, with 0..16 drawn as 0..255.
  """
  grey = scan.astype(np.float32) * (255 / 16)
  grey = cv2.resize(grey, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
  # Bicubic weights overshoot at edges, and a plain cast would wrap around.
  return np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None]


class Digits(tfds.core.GeneratorBasedBuilder):
  """Handwritten digits, 32 x 32 grey, 10 classes."""

  # The data set is called after the class: 'digits'.
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First version.'}

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
        'image': tfds.features.Image(
            shape=(SIZE, SIZE, 1), dtype=np.uint8, encoding_format='png'
        ),
        'label': tfds.features.ClassLabel(num_classes=10),
        'id': tfds.features.Scalar(np.int64),
    }
    return tfds.core.DatasetInfo(
        builder=self,
        description=__doc__,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=('image', 'label'),
        homepage='https://doi.org/10.24432/C50P49',
        # Keeps the order of the set, so that a test split read in order is
        # the last 360 scans in order.
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # scikit-learn carries the data.
    from sklearn import datasets

    scans, labels = datasets.load_digits(return_X_y=True)
    scans = scans.reshape(-1, 8, 8)
    last = len(scans)
    return {
        'train': self._generate_examples(scans, labels, range(NUM_TRAIN)),
        'test': self._generate_examples(scans, labels, range(NUM_TRAIN, last)),
    }

  def _generate_examples(self, scans, labels, indices):
    for index in indices:
      _, png = cv2.imencode('.png', enlarge(scans[index]))
      # An encoded file passes as it is; TFDS encodes arrays by TensorFlow.
      yield index, {
          'image': io.BytesIO(png.tobytes()),
          'label': int(labels[index]),
          'id': index,
      }
