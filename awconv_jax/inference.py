"""Trained networks as functions of images, wherever they lie; see `load`.

  classifier = inference.load('runs/digits')
  classifier('photo.jpg')  # Prediction(7 98.1%, 1 0.9%, 9 0.3%)
  classifier.features('photo.jpg')['embedding']

  detector = inference.load('runs/digit_scenes')
  found = detector('photo.jpg')  # Found(2 objects: 7 97% [12, 40, 36, 71], ...)
  print(found.names, found.scores, found.boxes)

  segmenter = inference.load('runs/ink')
  segmenter('photo.jpg').classes  # uint8 [H, W].

  classifier = inference.load('resnet50.pth', name='resnet50')

The newest checkpoint in good order is read, the averages where a run has them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from awconv_jax import config as engine
from awconv_jax import models, places, weights
from awconv_jax.data import (
    any_image,
    canvases,
    decode,
    order,
    sources,
    streams,
)
from awconv_jax.data.detection.objects import NOTHING
from awconv_jax.data.segmentation import masks
from awconv_jax.errors import InputError, look_up, one_line
from awconv_jax.evaluators import coco
from awconv_jax.models.segmentation import semantic_fpn
from awconv_jax.results import (
    SHOWN,
    Classes,
    Found,
    Prediction,
    Segmented,
    listed,
)
from awconv_jax.tasks.flipped import Flipped, mirror
from awconv_jax.train import partition, rundir, settings, warm_start
from awconv_jax.weights import state_dict

Images = Sequence[any_image.AnyImage]


@dataclasses.dataclass(repr=False)
class Model:
  """A trained network: what those of all tasks have in common.

    model('photo.jpg')  # What is on it.
    model([image, ...])  # A list of that.
    model.features('photo.jpg')  # {'c2': [h, w, c], ...}

  An image is a path, an image of Pillow's, or an array uint8 [H, W] or
  [H, W, 1, 3 or 4]; see `data.any_image`. It is brought to size as in
  evaluation. Reading its names raises InputError if the run's list of them is
  damaged.

  Attributes:
    task: gives its outputs; see `tasks`.
    config: the whole config.
    source: where the weights are from.
    variables: 'params' and 'batch_stats', arrays on the host.
    weights: which they are, such as 'averages of step 400'.
    channels: of the images.
  """

  task: Any
  config: Any
  source: str
  variables: Any
  weights: str
  channels: int

  @functools.cached_property
  def kept_names(self) -> list[str] | None:
    """Names of the classes by label, if the run has kept them."""
    return self._kept(rundir.CLASSES, str)

  @functools.cached_property
  def kept_categories(self) -> list[tuple[int, str]] | None:
    """The data set's numbers and names by label, if the run has kept them."""
    return self._kept(rundir.CATEGORIES, lambda c: (int(c['id']), c['name']))

  @functools.cached_property
  def names(self) -> Sequence[str]:
    """Names of the classes by label; numbers from 0 where none are known."""
    return self.kept_names or list(map(str, range(self.task.num_classes)))

  @property
  def classes(self) -> Sequence[str]:
    """The same as `names`."""
    return self.names

  @property
  def category_ids(self) -> Sequence[int] | None:
    """The data set's number of each label, of a detector."""
    return None

  def __repr__(self) -> str:
    network = self.task.model
    network = getattr(network, 'backbone', network)
    options = self.config.model
    kind = options.get('backbone', options).name
    count = sum(
        array.size for array in jax.tree.leaves(self.variables['params'])
    )
    with_aw = ' with AW-convolutions' * getattr(network, 'aw_conv', False)
    shown = [*map(one_line, self.names[:SHOWN])]
    return (
        f'{type(self).__name__}({kind}{with_aw}, {count:,} parameters; images '
        f'{self._image_size}; {len(self.names)} classes: '
        f'{listed(shown, self.names)}; {self.weights} of {self.source})'
    )

  def _kept(self, name: str, read: Callable[[Any], Any]) -> list[Any] | None:
    """Returns what a file of the run has for each label, if it is there."""
    path, number = places.at(self.source) / name, self.task.num_classes
    told = weights.describe(self.source)
    try:
      entries = told[path.stem] if told else json.loads(path.read_text())
      if told and entries is None:
        return None
      kept = [read(entry) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
      return None
    except (KeyError, TypeError, ValueError):
      kept = []
    if len(kept) != number:
      raise InputError(f'{path} is no list of {number} classes; mend or remove')
    return kept

  # Of a task each: how images are prepared, what is computed of a batch, and
  # what is made of a row of that.
  @property
  def _image_size(self) -> str:
    raise NotImplementedError

  def row(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
    raise NotImplementedError

  def outputs(self, variables: Any, batch: Any, flip: bool) -> dict[str, Any]:
    raise NotImplementedError

  def result(self, one: dict[str, np.ndarray]) -> Any:
    raise NotImplementedError

  def _features(self, variables: Any, batch: Any) -> dict[str, jax.Array]:
    return self.task.features(variables, batch)

  def _cut(self, one: dict[str, np.ndarray], row: Any) -> dict[str, np.ndarray]:
    return one

  def __call__(
      self, images: Any, *, batch_size: int = 32, flip: bool = False
  ) -> Any:
    """Returns what is on an image; of a list of images, a list of that.

    What is computed is compiled for batches of 1, 2, 4, ... images, up to
    batch_size, and kept: the first list that needs a size, of an orientation,
    compiles.

    Args:
      images: one, or a list; see `Model`.
      batch_size: images at a time at most.
      flip: whether each is looked at mirrored, too.

    Raises:
      InputError: one of them is no image.
    """
    images, whole = _as_list(images)
    size = size_of_batches(len(images), batch_size)
    return whole(self.stream(images, batch_size=size, flip=flip))

  def stream(
      self, images: Iterable[Any], *, batch_size: int = 32, flip: bool = False
  ) -> Iterator[Any]:
    """Yields what is on each of any number of images, in their order.

    No more of them are held than those of a few batches; the arguments are
    those of a call. In the place of what is no image there is its InputError.
    """
    images, _ = _iterable(images)
    batch_size = _checked(batch_size)
    outputs = functools.partial(self.outputs, flip=flip)
    run = self.compiled(('outputs', flip), outputs, batch_size)
    yield from self.streamed(images, batch_size, run, self.result)

  def features(
      self,
      images: Any,
      names: Sequence[str] | None = None,
      *,
      batch_size: int = 32,
  ) -> Any:
    """Returns the outputs of every stage for an image, or for each of a list.

    Args:
      images: one, or a list; see `Model`.
      names: of those wanted; None is all.
      batch_size: images at a time at most.

    Returns:
      name -> float32 array. Of a classifier these are the stages 'c2', 'c3',
      ..., [h, w, c], and the 'embedding' [d] that the head makes logits of; of
      a detector the levels 'p2', 'p3', ... of its pyramid, cut to the image.

    Raises:
      InputError: one of them is no image, or a name is unknown.
    """
    images, whole = _as_list(images)
    size = size_of_batches(len(images), batch_size)

    def chosen(variables, batch):
      found = self._features(variables, batch)
      found = {n: look_up('feature', n, found) for n in names or found}
      # NumPy would sum bfloat16 in bfloat16.
      return {n: array.astype(jnp.float32) for n, array in found.items()}

    run = self.compiled(('features', names and tuple(names)), chosen, size)
    return whole(self.streamed(images, size, run, self._cut))

  def streamed(
      self, images: Iterable[Any], size: int, run: Any, result: Any
  ) -> Iterator[Any]:
    """Yields what is made of each of any number of images, in their order.

    No more of them are held than those of a few batches.

    Args:
      images: see `Model`.
      size: of a batch.
      run: of `compiled`.
      result: (outputs of an image by name, its row without the image) -> what
        is yielded. In the place of what is no image there is its InputError.
    """
    done, next_one = {}, 0

    def row_of(image):
      try:
        return self.row(any_image.pixels_of(image, self.channels))
      except InputError as error:
        return error

    def rows():
      for number, row in enumerate(streams.ahead(row_of, images, 2 * size)):
        if isinstance(row, Exception):
          done[number] = row
        else:
          yield number, row

    for part, outputs in streams.one_behind(streams.batches(rows(), size), run):
      for place, (number, row) in enumerate(part):
        one = {name: array[place] for name, array in outputs.items()}
        done[number] = result(one, row)
      while next_one in done:
        yield done.pop(next_one)
        next_one += 1
    yield from (done[number] for number in sorted(done))

  def compiled(
      self, key: Any, function: Callable[..., Any], size: int
  ) -> Callable[[Any], Any]:
    """Returns (rows) -> outputs of batches filled up to a size.

    All devices share it where they can. What is compiled lives as long as the
    model, as do the weights on the devices.

    Args:
      key: of the function: one of the same key and size is compiled once.
      function: (variables, rows) -> arrays.
      size: of a batch.
    """
    programs, key = self.__dict__.setdefault('_programs', {}), (key, size)
    if key not in programs:
      devices = jax.local_devices()
      mesh = partition.create_mesh(
          devices if size % len(devices) == 0 else devices[:1]
      )
      whole, over = partition.replicated(mesh), partition.over_batch(mesh)
      compiled = jax.jit(
          function, in_shardings=(whole, over), out_shardings=whole
      )
      on_devices = programs.setdefault(
          ('variables', mesh.size), jax.device_put(self.variables, whole)
      )

      def run(rows):
        if len(rows['image']) < size:  # Filled up, to compile once.
          rows = {
              k: np.resize(a, (size, *a.shape[1:])) for k, a in rows.items()
          }
        with jax.set_mesh(mesh):
          return compiled(on_devices, rows)

      programs[key] = run
    return programs[key]


def _checked(batch_size: Any) -> int:
  if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
    raise InputError(f'batch_size={batch_size!r} is no number of at least 1')
  return int(batch_size)


def size_of_batches(number: int, batch_size: Any) -> int:
  """Returns the size of batches: few different ones, as each compiles."""
  return min(1 << max(number - 1, 0).bit_length(), _checked(batch_size))


def _iterable(images: Any) -> tuple[Iterable[Any], bool]:
  """Returns what gives the images, and whether it was one alone."""
  if isinstance(images, (str, os.PathLike, Image.Image)):
    return [images], True
  axes = getattr(images, 'ndim', None)
  if axes == 3 and images.shape[2] not in (1, 3, 4):
    raise InputError(
        f'{list(images.shape)} is no image, which has 1, 3 or 4 channels last; '
        'of several grey images give a list'
    )
  if axes in (2, 3):
    return [images], True
  if axes == 0 or not isinstance(images, Iterable):
    name = type(images).__name__
    raise InputError(f'{name} is neither an image nor a list of images')
  return images, False


def _as_list(images: Any) -> tuple[Any, Callable[[Iterator[Any]], Any]]:
  """Returns images as a list, and what makes of results what is returned."""
  images, one = _iterable(images)
  images = list(images)

  def whole(results):
    found = results_of(images, results)
    return found[0] if one else found

  return images, whole


def results_of(images: Images, results: Iterable[Any]) -> list[Any]:
  """Returns the results of images as a list.

  Raises:
    InputError: one of them is no image, and its result therefore an InputError.
  """
  found = []
  for image, result in zip(images, results, strict=True):
    if isinstance(result, InputError):
      name = any_image.name_of(image)
      raise InputError(f'{name} cannot be read: {result}')
    found.append(result)
  return found


@dataclasses.dataclass(repr=False)
class Classifier(Model):
  """Classifies images; brings them to size as in evaluation.

  The preparation holds the options of `decode.center_crop`.
  """

  preparation: Mapping[str, Any]

  @property
  def _image_size(self) -> str:
    side = self.preparation['size']
    return f'{side}x{side}x{self.channels}'

  def row(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
    return {'image': decode.center_crop(pixels, **self.preparation)}

  def outputs(self, variables: Any, batch: Any, flip: bool) -> dict[str, Any]:
    """Returns probabilities, and what the batch has beside the images."""
    logits = self.task.forward(variables, batch)
    if flip:
      mirrored = {'image': batch['image'][:, :, ::-1]}
      logits = (logits + self.task.forward(variables, mirrored)) / 2
    others = {k: v for k, v in batch.items() if k != 'image'}
    return others | {'probabilities': jax.nn.softmax(logits)}

  def result(self, one: dict[str, np.ndarray], row: Any = None) -> Prediction:
    return Prediction(one['probabilities'], self.names)

  def predict(
      self, images: Images, *, batch_size: int = 32, flip: bool = False
  ) -> Classes:
    """Classifies a list of images as one; see a call for the arguments."""
    images = _as_list(images)[0]
    each = self(images, batch_size=batch_size, flip=flip)
    empty = np.zeros((0, self.task.num_classes), np.float32)
    rows = [one.probabilities[None] for one in each]
    labels = np.array([one.label for one in each], int)
    names = [one.name for one in each]
    return Classes(np.concatenate([empty, *rows]), labels, names)


@dataclasses.dataclass(repr=False)
class OnCanvas(Model):
  """What looks at images of any aspect ratio, each on a canvas."""

  @property
  def _image_size(self) -> str:
    height, width = self.config.data.canvas
    return f'on {height}x{width}, or its transpose'

  @functools.cached_property
  def _geometry(self) -> canvases.Geometry:
    return canvases.Geometry.of(self.config.data)

  @property
  def _strides(self) -> Sequence[int]:
    raise NotImplementedError

  def row(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
    small = self._geometry.plain(pixels, NOTHING)[0]
    height, width = pixels.shape[:2]
    canvas = self._geometry.canvas_of(order.PORTRAIT * (height > width))
    return {
        'image': canvases.paste(small, canvas),
        'image_size': np.int32(small.shape[:2]),
        'original_size': np.int32([height, width]),
    }

  def _cut(self, one: dict[str, np.ndarray], row: Any) -> dict[str, np.ndarray]:
    """Returns what of each level is of the image."""
    strides, cut = self._strides, {}
    for name, level in one.items():
      stride = strides[int(name.removeprefix('p')) - 2]
      height, width = -(-row['image_size'] // stride)
      cut[name] = level[:height, :width]
    return cut


@dataclasses.dataclass(repr=False)
class Detector(OnCanvas):
  """Detects objects: on the canvas, with the boxes taken back from there."""

  @functools.cached_property
  def categories(self) -> tuple[Sequence[int], Sequence[str]]:
    """Ids and names of what the labels stand for.

    The run itself says them; one that does not is asked for its data set, and
    where that is not to be had they are numbered from 1, which is printed.
    """
    number, data = self.task.num_classes, self.config.data
    if kept := self.kept_categories:
      return [c[0] for c in kept], [c[1] for c in kept]
    try:
      source = sources.open_source(data.name, data.dir, data.eval_split)
      if len(source.class_names) == number:
        return source.category_ids, source.class_names
      reason = f'{data.name} has {len(source.class_names)}'
    except InputError as error:
      reason = str(error)
    print(f'the {number} categories are numbered from 1: {reason}')
    ids = range(1, number + 1)
    return ids, self.kept_names or list(map(str, ids))

  @property
  def category_ids(self) -> Sequence[int]:
    """The data set's number of each label."""
    return self.categories[0]

  @functools.cached_property
  def names(self) -> Sequence[str]:
    """Names of the classes by label."""
    return self.categories[1]

  @property
  def _strides(self) -> Sequence[int]:
    return self.config.model.anchors.strides

  def outputs(self, variables: Any, batch: Any, flip: bool) -> dict[str, Any]:
    threshold = self.config.model.detections.threshold
    task = Flipped(self.task, threshold) if flip else self.task
    return task.predict(variables, batch)

  def detect(
      self, images: Images, *, batch_size: int = 8, flip: bool = False
  ) -> list[Found]:
    """Returns the objects on each image of a list; see a call."""
    images = _as_list(images)[0]
    return self(images, batch_size=batch_size, flip=flip)

  def result(self, one: dict[str, np.ndarray], row: Any = None) -> Found:
    finite = np.isfinite(one['boxes']).all(-1) & np.isfinite(one['scores'])
    kept = np.flatnonzero(one['valid'] & finite)
    kept = kept[np.argsort(-one['scores'][kept], kind='stable')]
    sizes = one['image_size'], one['original_size']
    boxes = coco.in_original_pixels(one['boxes'][kept], *sizes)
    scores, labels = one['scores'][kept], one['labels'][kept]
    names = [self.names[label] for label in labels]
    size = tuple(map(int, one['original_size']))
    return Found(boxes.astype(np.float32), scores, labels, names, size)


@dataclasses.dataclass(repr=False)
class Segmenter(OnCanvas):
  """Gives every pixel a class: on the canvas, and taken back from there."""

  @property
  def _strides(self) -> Sequence[int]:
    return [semantic_fpn.STRIDE * 2**i for i in range(4)]

  def outputs(self, variables: Any, batch: Any, flip: bool) -> dict[str, Any]:
    """Returns 'classes' on the canvas, and what else the batch has."""
    logits = self.task.forward(variables, batch)
    if flip:
      widths = batch['image_size'][:, 1]
      mirrored = {**batch, 'image': mirror(batch['image'], widths)}
      other = self.task.forward(variables, mirrored)
      logits = (logits + mirror(other, widths)) / 2
    return self.task.outputs(logits, batch)

  def result(self, one: dict[str, np.ndarray], row: Any = None) -> Segmented:
    height, width = one['image_size']
    size = tuple(map(int, one['original_size']))
    classes = masks.nearest(one['classes'][:height, :width], size)
    return Segmented(classes, self.names)


ON_CANVAS = {'detection': Detector, 'segmentation': Segmenter}


def imagenet_config(
    name: str, *, image_size: int = models.IMAGENET_SIDE, **options: Any
) -> Any:
  """Returns a config for weights that others have trained on ImageNet.

  Of the whole config, that has the mean and the standard deviation that images
  get, and the usual central crop; it knows nothing of their training.

  Args:
    name: of a network in `models.MODELS`.
    image_size: height and width that images are brought to.
    **options: of the network.

  Raises:
    InputError: there is no such network, or it has no such options.
  """
  network = look_up('model', name, models.MODELS)
  network = engine.complete(options, network).to_dict()
  data = dict(
      name='imagenet2012',
      eval_split='validation',
      image_size=image_size,
      eval_image_size=image_size,
      # 'Resize the shorter side to 256, cut 224', at once: as most of them.
      eval_crop=0.875,
      eval_interpolation='bicubic',
  )
  return settings.complete(
      dict(
          num_epochs=1.0,
          batch_size=64,
          eval_batch_size=64,
          data=data,
          task=dict(name='classification'),
          model=dict(name=name, **network),
          optimizer=dict(learning_rate=0.1, base_batch_size=256),
      )
  )


def load(
    source: str | os.PathLike,
    config: Any = None,
    *,
    name: str | None = None,
    entry: str | None = None,
    **options: Any,
) -> Classifier | Detector | Segmenter:
  """Loads a trained network, ready to be used.

  Args:
    source: a run's directory; a model's directory or file, as of
      `save_pretrained`; 'hf-hub:owner/name', with '@revision' or without; the
      name of a model that the package ships, 'digits' or 'digit_scenes'; or any
      file that `weights.read` takes.
    config: the whole config, sparse or complete; that of the run or the model
      if None.
    name: of a network in `models.MODELS`, in place of a config: for a file of
      weights for ImageNet; see `imagenet_config`.
    entry: of a file, as in `weights.read`.
    **options: of `imagenet_config`, with `name`, such as attention='se'.

  Raises:
    InputError: there are no weights, or they are of another network.
  """
  source = weights.locate(source)
  if name is not None:
    config = imagenet_config(name, **options)
  elif options:
    raise InputError(f'{", ".join(options)}: they are for a name=...')
  config = settings.complete(config or rundir.read_config(source))
  task, data = settings.create_task(config), config.data
  # Where one mean serves all channels, the weights say how many there are.
  channels = (3, 1) if len(config.task.mean) == 1 else (len(config.task.mean),)
  if on_canvas := ON_CANVAS.get(config.task.name):
    loaded = _variables(source, task, data.canvas, channels, entry)
    return on_canvas(task, config, source, *loaded)
  side, kind = data.eval_image_size, data.eval_interpolation
  loaded = _variables(source, task, (side, side), channels, entry)
  crop = dict(size=side, share=data.eval_crop, interpolation=kind)
  crop['how'] = data.eval_resize
  return Classifier(task, config, source, *loaded, crop)


def _variables(
    source: str, task: Any, size: Sequence[int], channels: Sequence[int], entry
) -> tuple[Any, str, int]:
  """Returns variables, which they are, and the number of images' channels."""
  arrays, kind = warm_start.read(source, network=task.model, entry=entry)
  faults = []
  for number in channels:
    image = jax.ShapeDtypeStruct((1, *size, number), jnp.uint8)
    shapes = jax.eval_shape(task.init, jax.random.key(0), {'image': image})
    try:
      loaded = state_dict.from_state_dict(arrays, shapes, source=source)
      return loaded, kind, number
    except InputError as error:
      faults.append(error)
  raise min(faults, key=lambda error: len(str(error)))
