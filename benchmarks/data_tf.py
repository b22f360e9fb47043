"""What most JAX training reads images with: tf.data, to be measured beside.

The steps are those of Flax's ImageNet example: encoded JPEGs from TFRecords,
shuffled; a distorted bounding box of 8 to 100 % of the area, of which alone is
decoded; bicubic resizing without antialiasing; flip; mean and standard
deviation; AUTOTUNE, a private pool of 48 threads, ten batches ahead. That the
order may vary is granted to it beyond the example, as it can only gain by it.
TensorFlow is imported when it is asked for.
"""

from collections.abc import Iterator, Sequence
import importlib.util
import os
from typing import Any

import numpy as np

MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
PREFETCH = 10
_THREADS = 48
_SHUFFLED_BATCHES = 16
REMEDY = (
    'tf.data is not measured, as TensorFlow is not installed; in the checkout: '
    "pip install '.[benchmark]'"
)


def is_installed() -> bool:
  """Returns whether there is a TensorFlow."""
  return importlib.util.find_spec('tensorflow') is not None


def load() -> Any:
  """Returns the module, which keeps off the accelerator and off the screen."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')
  return tf


def write_records(files: Sequence[str], path: str) -> None:
  """Writes images into one TFRecord file.

  Args:
    files: encoded images.
    path: of the file.
  """
  tf = load()
  with tf.io.TFRecordWriter(path) as writer:
    for i, name in enumerate(files):
      with open(name, 'rb') as file:
        image = tf.train.BytesList(value=[file.read()])
      label = tf.train.Int64List(value=[i])
      features = {
          'image': tf.train.Feature(bytes_list=image),
          'label': tf.train.Feature(int64_list=label),
      }
      example = tf.train.Example(features=tf.train.Features(feature=features))
      writer.write(example.SerializeToString())


def _crop(tf: Any, data: Any, size: int) -> Any:
  """Returns a random box of an encoded image, float [size, size, 3]."""
  shape = tf.io.extract_jpeg_shape(data)
  begin, extent, _ = tf.image.sample_distorted_bounding_box(
      shape,
      bounding_boxes=tf.zeros((1, 0, 4)),
      min_object_covered=0.1,
      aspect_ratio_range=(3 / 4, 4 / 3),
      area_range=(0.08, 1.0),
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
  )
  window = tf.concat([begin[:2], extent[:2]], axis=0)
  image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
  return tf.image.resize(image, (size, size), tf.image.ResizeMethod.BICUBIC)


def _dataset(tf: Any, path: str, batch_size: int, size: int) -> Any:
  features = {
      'image': tf.io.FixedLenFeature((), tf.string),
      'label': tf.io.FixedLenFeature((), tf.int64),
  }

  def example(record):
    parsed = tf.io.parse_single_example(record, features)
    image = _crop(tf, parsed['image'], size)
    image = tf.image.random_flip_left_right(image)
    image = (image - tf.constant(MEAN)) / tf.constant(STD)
    return {'image': image, 'label': tf.cast(parsed['label'], tf.int32)}

  options = tf.data.Options()
  options.threading.private_threadpool_size = _THREADS
  options.deterministic = False
  dataset = tf.data.TFRecordDataset(path).with_options(options).repeat()
  dataset = dataset.shuffle(_SHUFFLED_BATCHES * batch_size, seed=0)
  dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.batch(batch_size, drop_remainder=True)
  return dataset.prefetch(PREFETCH)


def batches(
    path: str, batch_size: int, size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields endless batches, image float32 [batch, size, size, 3], normalised.

  Args:
    path: as of `write_records`.
    batch_size: images of a batch.
    size: height and width of the results, in pixels.
  """
  for batch in _dataset(load(), path, batch_size, size):
    # Views of TensorFlow's own memory: nothing is copied.
    yield {name: tensor._numpy() for name, tensor in batch.items()}
