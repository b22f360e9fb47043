"""Scanned digits on photographs as a TFDS builder, made from no download.

The scans are those of data/digits.py (E. Alpaydin and C. Kaynak, UCI 1998,
https://doi.org/10.24432/C50P49), the photographs the two of scikit-learn,
'china.jpg' and 'flower.jpg'. Records have the features of coco/2017: 0 to 5
digits on an image of either orientation, some under the box of a crowd, some
images without any, and categories whose ids have gaps.

Nothing leaks from train to test: the test's scans are the last 360, mostly of
other writers, and its backgrounds are of another part of the photographs.
"""

import io

import cv2
import numpy as np
import tensorflow_datasets as tfds

from awconv_jax.data.detection import scenes
from awconv_jax.data.digits import NUM_TRAIN as TRAIN_SCANS

NUM_TRAIN, NUM_TEST = 1000, 200
# Of the photographs' 640 columns; the rest of them is for the test.
TRAIN_COLUMNS = 440
# With gaps, as COCO's; label 0 is the digit 0.
LABEL_TO_CATEGORY_ID = (1, 2, 4, 7, 11, 16, 22, 29, 37, 46)


class DigitScenes(tfds.core.GeneratorBasedBuilder):
  """Digits on photographs, about 96 x 128 pixels, 10 classes."""

  # The data set is called after the class: 'digit_scenes'.
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First version.'}

  def _info(self) -> tfds.core.DatasetInfo:
    objects = {
        'id': np.int64,
        'area': np.int64,
        'bbox': tfds.features.BBoxFeature(),
        'label': tfds.features.ClassLabel(num_classes=10),
        'is_crowd': np.bool_,
    }
    features = {
        'image': tfds.features.Image(encoding_format='jpeg'),
        'image/filename': tfds.features.Text(),
        'image/id': np.int64,
        'objects': tfds.features.Sequence(objects),
    }
    return tfds.core.DatasetInfo(
        builder=self,
        description=__doc__,
        features=tfds.features.FeaturesDict(features),
        homepage='https://doi.org/10.24432/C50P49',
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(
            label_to_category_id=list(LABEL_TO_CATEGORY_ID)
        ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # scikit-learn carries the data.
    from sklearn import datasets

    scans, labels = datasets.load_digits(return_X_y=True)
    scans = scans.reshape(-1, 8, 8)
    photos = datasets.load_sample_images().images
    return {
        'train': self._generate_examples(
            range(NUM_TRAIN),
            scans[:TRAIN_SCANS],
            labels[:TRAIN_SCANS],
            [photo[:, :TRAIN_COLUMNS] for photo in photos],
        ),
        'test': self._generate_examples(
            range(NUM_TRAIN, NUM_TRAIN + NUM_TEST),
            scans[TRAIN_SCANS:],
            labels[TRAIN_SCANS:],
            [photo[:, TRAIN_COLUMNS:] for photo in photos],
        ),
    }

  def _generate_examples(self, indices, scans, labels, photos):
    # Ids differ from the numbers of the rows, so that none pass for the other.
    for index in indices:
      rng = np.random.default_rng(index)
      image, drawn = scenes.scene(scans, labels, photos, rng)
      _, jpeg = cv2.imencode(
          '.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]
      )
      number = 100 + 3 * index
      yield index, {
          # An encoded file passes as it is; TFDS encodes arrays by TensorFlow.
          'image': io.BytesIO(jpeg.tobytes()),
          'image/filename': f'{number:06}.jpg',
          'image/id': number,
          'objects': [
              _object(d, 10 * number + i, image.shape)
              for i, d in enumerate(drawn)
          ],
      }


def _object(drawn: scenes.Drawn, number: int, shape: tuple[int, ...]) -> dict:
  y0, x0, y1, x1 = drawn.box
  height, width = shape[:2]
  return {
      'id': number,
      'area': drawn.area,
      'bbox': tfds.features.BBox(
          ymin=y0 / height, xmin=x0 / width, ymax=y1 / height, xmax=x1 / width
      ),
      'label': drawn.label,
      'is_crowd': drawn.is_crowd,
  }
