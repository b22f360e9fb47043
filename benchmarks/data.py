"""Reading images: this project's pipeline, and tf.data where it is installed.

The JPEGs have about the sizes of ImageNet's, in pixels and bytes, and are made
of scikit-learn's two photographs. Both pipelines cut a random box, bring it to
size and mirror every other one. Ours gives bytes, which the consumer normalises
on the device; tf.data normalised floats. On the CPU both share the cores.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from functools import partial
import importlib.util
import os
import pathlib
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import errors, models
from awconv_jax.options import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Seed,
)
from awconv_jax.train import partition
from benchmarks import network

# Width and height of 20 images.
SIZES = ((500, 375),) * 9 + ((375, 500), (500, 333)) * 3
SIZES += ((333, 500), (500, 400), (400, 300), (640, 480), (1024, 768))
# For 110 kB on average: photographs that were shrunk lack the noise, of 255.
_QUALITY, _NOISE = 96, 3.0
_CLASSES = 10
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # Of random boxes.
_MEAN = np.float32([0.485, 0.456, 0.406]) * 255
_STD = np.float32([0.229, 0.224, 0.225]) * 255
ROUNDS = 5
TF = 'tf.data'
_TF_AHEAD, _TF_THREADS, _TF_SHUFFLED_BATCHES = 10, 48, 16


class Case(NamedTuple):
  """A pipeline and what takes its batches, by the names in rows."""

  pipeline: str
  consumer: str
  open: Callable[[], Any]  # Starts endless batches, with a method `close`.
  ahead: int  # Batches that may be ready before they are asked for.
  consume: Callable[[Any], Any]  # Returns what can be waited for.


def run(
    *,
    batches: Sequence[PositiveInt] = (64,),
    side: PositiveInt = 224,
    images: PositiveInt = 512,
    workers: NonNegativeInt = 0,
    interpolation: str = 'linear',
    seconds: NonNegativeFloat = 10.0,
    seed: Seed = 0,
) -> Iterator[dict[str, Any]]:
  """Measures, and yields rows as they come.

  Args:
    batches: batch sizes.
    side: height and width of the results, in pixels.
    images: how many to make, and to read.
    workers: processes that read; 0 for a thread on each core.
    interpolation: by which boxes are brought to size; tf.data's is cubic.
    seconds, seed: for each pipeline with each consumer, and of all images.

  Yields:
    The 'consumer' of the batches is 'mean' of every image, the least that reads
    them as a network does, or 'training', a step of a small ResNet; and
    'consumer_ms' what it takes alone. 'images_per_second' is the median of the
    rounds, 'ratio' that to tf.data's with the same consumer, and 'data_wait'
    the share of the time without a batch, as 'train/data_wait' of a run.
  """
  # Other subjects do without what reading needs.
  from awconv_jax import data as pipelines
  from awconv_jax.data import decode

  errors.look_up('interpolation', interpolation, decode.INTERPOLATIONS)
  mesh = partition.create_mesh()
  for size in batches:
    partition.check_batch_size('--batches', size, mesh)
    if size > images:
      raise errors.InputError(
          f'--images={images} are less than a batch: {size}'
      )
  with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
    files = write_jpegs(folder, images, seed)
    size = np.mean([os.path.getsize(file) for file in files]) / 1e3
    print(f'{images} JPEGs, on average {size:.1f} kB', flush=True)
    threads = 1 if workers else os.cpu_count()
    ahead = 2 * workers or threads  # Each worker has one more on its way.
    crop = dict(area=AREA, ratio=RATIO, interpolation=interpolation)
    options = dict(
        name=f'folder:{folder}',
        augment=(('random_resized_crop', crop), ('flip', {})),
        **dict.fromkeys(('image_size', 'eval_image_size'), side),
        **dict.fromkeys(('num_threads', 'prefetch'), threads),
        num_workers=workers,
    )
    create = partial(pipelines.create, options, train=True, seed=seed)
    consumers = dict(mean=_mean, training=_training(mesh, side, seed))
    for batch in batches:
      start = partial(create, batch_size=batch)
      cases = [Case('ours', n, start, ahead, c) for n, c in consumers.items()]
      if importlib.util.find_spec('tensorflow'):
        start = partial(tf_batches, files, batch, side, seed)
        cases.append(Case(TF, 'mean', start, _TF_AHEAD, _mean))
      else:
        print('tf.data is not measured: TensorFlow is not installed')
      yield from measure(cases, batch, side, seconds)


def write_jpegs(path: str, number: int, seed: int) -> list[str]:
  """Writes JPEGs to `<path>/train/<class>/`, and returns their paths."""
  import cv2
  from sklearn import datasets

  photographs = datasets.load_sample_images().images
  files = []
  for i in range(number):
    rng = np.random.default_rng((seed, i))
    size, photograph = SIZES[i % len(SIZES)], photographs[i // len(SIZES) % 2]
    rows, columns = photograph.shape[:2]
    factor = min(rows / size[1], columns / size[0]) * rng.uniform(0.6, 1.0)
    wide, high = (int(length * factor) for length in size)
    top, left = rng.integers(rows - high + 1), rng.integers(columns - wide + 1)
    part = photograph[top : top + high, left : left + wide]
    image = cv2.resize(part, size, interpolation=cv2.INTER_CUBIC)
    image = image + rng.normal(0, _NOISE, image.shape)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)[..., ::-1]
    file = pathlib.Path(path, 'train', f'class{i % _CLASSES}', f'{i:05}.jpg')
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    files.append(str(file))
  return files


def tf_batches(
    files: Sequence[str], batch: int, side: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields endless batches of tf.data, image float32 [B, S, S, 3].

  As Flax's ImageNet example: a distorted bounding box, which alone is decoded;
  bicubic resizing; flip. Beyond it, the order may vary: it can only gain.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')  # It keeps off the accelerator.

  def example(file):
    encoded = tf.io.read_file(file)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(encoded),
        bounding_boxes=tf.zeros((1, 0, 4)),
        min_object_covered=0.1,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
        area_range=AREA,
        aspect_ratio_range=RATIO,
    )
    window = tf.concat([begin[:2], extent[:2]], axis=0)
    image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
    image = tf.image.resize(image, (side, side), tf.image.ResizeMethod.BICUBIC)
    image = tf.image.random_flip_left_right(image)
    return {'image': (image - tf.constant(_MEAN)) / tf.constant(_STD)}

  options = tf.data.Options()
  options.threading.private_threadpool_size = _TF_THREADS
  options.deterministic = False
  dataset = tf.data.Dataset.from_tensor_slices(list(files))
  dataset = dataset.with_options(options).repeat()
  dataset = dataset.shuffle(_TF_SHUFFLED_BATCHES * batch, seed=seed)
  dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.batch(batch, drop_remainder=True).prefetch(_TF_AHEAD)
  for tensors in dataset:  # Views of its memory: nothing is copied.
    yield {name: tensor._numpy() for name, tensor in tensors.items()}


@jax.jit
def _normal(images):
  if images.dtype != jnp.uint8:  # Floats are normalised already.
    return images
  return (images.astype(jnp.float32) - _MEAN) / _STD


@jax.jit
def _means(images):
  # One after the other: floats of a whole batch would cost the CPU as long for
  # new memory as a quarter of the reading.
  return jax.lax.map(lambda image: _normal(image).mean((0, 1)), images)


def _mean(batch):
  return _means(batch['image'])


def _training(mesh, side, seed):
  """Returns a training step that takes longer than reading the images."""
  fields = dict(stage_sizes=(1,), width=8, num_classes=_CLASSES)
  model = models.create('resnet18', **fields)
  init, step = network.create_step(model, mesh, (side, side, 3), seed)
  state = init()

  def consume(batch):
    nonlocal state
    rows = {name: batch[name] for name in ('image', 'label')}
    rows = partition.shard_batch(mesh, rows)
    state, loss = step(state, rows | {'image': _normal(rows['image'])})
    return loss

  return consume


def measure(
    cases: Sequence[Case], batch: int, side: int, seconds: float
) -> Iterator[dict[str, Any]]:
  """Measures all cases in turn, each anew in every round; yields their rows."""
  seen = [[] for _ in cases]
  for _ in range(ROUNDS):
    for case, found in zip(cases, seen, strict=True):
      with contextlib.closing(case.open()) as opened:
        # What lay ready is not counted.
        _consume(case, opened, seconds / 2 / ROUNDS, 2 * case.ahead)
        number, took, waited = _consume(case, opened, seconds / ROUNDS, 2)
        # By way of JAX, whose memory is aligned: other is copied by every call.
        first = {k: np.asarray(jnp.array(v)) for k, v in next(opened).items()}
      start = time.monotonic()
      jax.block_until_ready(case.consume(first))
      alone = 1e3 * (time.monotonic() - start)
      found.append((number * batch / took, waited / took, alone))
  medians = [np.median(found, axis=0).tolist() for found in seen]
  rates = {case[:2]: m[0] for case, m in zip(cases, medians, strict=True)}
  for case, (rate, waited, alone) in zip(cases, medians, strict=True):
    base = rates.get((TF, case.consumer))
    ratio = rate / base if base else None
    row = dict(consumer=case.consumer, batch=batch, side=side)
    row |= dict(pipeline=case.pipeline, images_per_second=rate, ratio=ratio)
    yield row | dict(data_wait=waited, consumer_ms=alone)


def _consume(case, batches, seconds, least):
  """Takes some batches; returns how many, the seconds, and those of waiting."""
  number, waited, newest = 0, 0.0, None
  start = time.monotonic()
  while number < least or time.monotonic() - start < seconds:
    before = time.monotonic()
    batch = next(batches)
    waited += time.monotonic() - before
    older, newest = newest, case.consume(batch)
    jax.block_until_ready(older)  # As in the train loop.
    number += 1
  jax.block_until_ready(newest)
  return number, time.monotonic() - start, waited
