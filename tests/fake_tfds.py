"""Data sets as TFDS prepares them, written without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds


def write(data_dir, name, features, splits, *, metadata=None):
  """Writes a set as array_record; returns its directory.

  Args:
    data_dir: the TFDS data directory.
    name: of the set, with its configuration after a slash if it has one.
    features: of TFDS, by name.
    splits: lists of examples by split; images are encoded.
    metadata: kept with the set.
  """

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      kept = dict(metadata=tfds.core.MetadataDict(metadata or {}))
      kept |= dict(features=tfds.features.FeaturesDict(features))
      return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, **kept)

    def _split_generators(self, dl_manager):
      return {split: self._generate(rows) for split, rows in splits.items()}

    def _generate(self, rows):
      for key, row in enumerate(rows):
        # An encoded file passes as it is; TFDS encodes arrays by TensorFlow.
        yield key, row | {'image': io.BytesIO(row['image'])}

    _generate_examples = None

  Tiny.name, _, config = name.partition('/')
  if config:
    Tiny.BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)]
  builder = Tiny(data_dir=str(data_dir), file_format='array_record')
  offline = tfds.download.DownloadConfig(try_download_gcs=False)
  builder.download_and_prepare(download_config=offline)
  return builder.data_dir


def labelled(num_classes, **more):
  """Returns the features of images with labels, and `more`."""
  image = tfds.features.Image(encoding_format='png')
  label = tfds.features.ClassLabel(num_classes=num_classes)
  return dict(image=image, label=label, **more)


def boxed(num_classes):
  """Returns the features of coco/2017."""
  objects = {
      'id': np.int64,
      'area': np.int64,
      'bbox': tfds.features.BBoxFeature(),
      'label': tfds.features.ClassLabel(num_classes=num_classes),
      'is_crowd': np.bool_,
  }
  return {
      'image': tfds.features.Image(encoding_format='jpeg'),
      'image/filename': tfds.features.Text(),
      'image/id': np.int64,
      'objects': tfds.features.Sequence(objects),
  }
