"""Trained networks as functions of images, wherever they lie; see `load`.

  classifier = inference.load('runs/digits')
  found = classifier.predict(images)  # uint8 [H, W, C] each, of any sizes
  print(found.names, found.probabilities.max(1))

  detector = inference.load('runs/digit_scenes')
  (found,) = detector.detect([photo])
  print(found.names, found.scores, found.boxes)

  classifier = inference.load('resnet50.pth', name='resnet50')

The newest checkpoint in good order is read, the averages where a run has them.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import config as engine
from awconv_jax import models, tasks, weights
from awconv_jax.data import decode, order, sources
from awconv_jax.data.detection import canvases
from awconv_jax.data.detection.objects import NOTHING
from awconv_jax.errors import InputError, look_up
from awconv_jax.evaluators import coco
from awconv_jax.tasks.flipped import Flipped
from awconv_jax.train import rundir, settings, warm_start
from awconv_jax.weights import state_dict

Images = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Classes:
  """What N images are: probabilities float32 [N, classes].

  The labels int [N], from 0 on, are those of the greatest probability; and
  there are the names of their classes.
  """

  probabilities: np.ndarray
  labels: np.ndarray
  names: list[str]


@dataclasses.dataclass(frozen=True)
class Found:
  """What was found on an image, the best first; labels are from 0 on.

  The boxes float32 [D, 4] are x1, y1, x2, y2 in pixels of the image; there are
  as many scores float32 [D], labels int32 [D], and names of their classes.
  """

  boxes: np.ndarray
  scores: np.ndarray
  labels: np.ndarray
  names: list[str]


@dataclasses.dataclass(repr=False)
class Model:
  """A trained network: what classifiers and detectors have in common.

  Reading its names raises InputError if the run's list of them is damaged.

  Attributes:
    task: gives its outputs; see `tasks`.
    config: the whole config; None of a file that came with a name.
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

  def _kept(self, name: str, read: Callable[[Any], Any]) -> list[Any] | None:
    """Returns what a file of the run has for each label, if it is there."""
    path, number = pathlib.Path(self.source) / name, self.task.num_classes
    told = weights.describe(self.source)
    try:
      listed = told[path.stem] if told else json.loads(path.read_text())
      if told and listed is None:
        return None
      kept = [read(entry) for entry in listed]
    except (FileNotFoundError, NotADirectoryError):
      return None
    except (KeyError, TypeError, ValueError):
      kept = []
    if len(kept) != number:
      raise InputError(f'{path} is no list of {number} classes; mend or remove')
    return kept

  def _outputs(self, variables: Any, batch: Any, flip: bool) -> Any:
    raise NotImplementedError

  @functools.cached_property
  def _compiled(self) -> Callable[..., Any]:
    outputs = jax.jit(self._outputs, static_argnums=2)
    return functools.partial(outputs, jax.device_put(self.variables))

  def _run(self, size: int, flip: bool, **rows: np.ndarray) -> Any:
    """Returns the outputs of a batch, filled up to `size` to compile once."""
    number = len(rows['image'])
    if number < size:
      rows = {k: np.resize(a, (size, *a.shape[1:])) for k, a in rows.items()}
    outputs = jax.device_get(self._compiled(rows, flip))
    return jax.tree.map(lambda array: array[:number], outputs)

  def _checked(self, images: Images) -> Images:
    """Returns arrays that OpenCV takes; ValueError for what is no images."""
    # It takes no views that run backwards, such as BGR turned to RGB.
    images = [np.ascontiguousarray(image) for image in images]
    colors = 'RGB' if self.channels == 3 else 'grey'
    for image in images:
      like = image.shape[:2] + (self.channels,)
      if image.dtype != np.uint8 or image.shape != like or not image.size:
        raise ValueError(
            f'an image is {image.dtype} {list(image.shape)}, want uint8 [H, W, '
            f'{self.channels}] in 0..255, {colors}'
        )
    return images


@dataclasses.dataclass(repr=False)
class Classifier(Model):
  """Classifies images; brings them to size as in evaluation.

  The preparation holds the options of `decode.center_crop`.
  """

  preparation: Mapping[str, Any]

  def _outputs(self, variables: Any, batch: Any, flip: bool) -> jax.Array:
    logits = self.task.forward(variables, batch)
    if flip:
      mirrored = {'image': batch['image'][:, :, ::-1]}
      logits = (logits + self.task.forward(variables, mirrored)) / 2
    return jax.nn.softmax(logits)

  def predict(
      self, images: Images, *, batch_size: int = 32, flip: bool = False
  ) -> Classes:
    """Classifies images; the first batch compiles.

    Args:
      images: uint8 [H, W, C] each, of any sizes.
      batch_size: images at a time at most.
      flip: whether each is looked at mirrored, too, and the logits averaged.

    Raises:
      ValueError: they are not such arrays.
    """
    cut = functools.partial(decode.center_crop, **self.preparation)
    images = self._checked(images)
    found = [np.zeros((0, self.task.num_classes), np.float32)]
    size = max(min(batch_size, len(images)), 1)
    for start in range(0, len(images), size):
      rows = np.stack([*map(cut, images[start : start + size])])
      found.append(self._run(size, flip, image=rows))
    probabilities = np.concatenate(found)
    labels = probabilities.argmax(1)
    return Classes(probabilities, labels, [self.names[i] for i in labels])


@dataclasses.dataclass(repr=False)
class Detector(Model):
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

  @functools.cached_property
  def names(self) -> Sequence[str]:
    """Names of the classes by label."""
    return self.categories[1]

  def predictor(self, flip: bool) -> Any:
    """Returns what has `predict`, as tasks do; see `tasks.flipped`."""
    threshold = self.config.model.detections.threshold
    return Flipped(self.task, threshold) if flip else self.task

  def _outputs(self, variables: Any, batch: Any, flip: bool) -> Any:
    return self.predictor(flip).predict(variables, batch)

  def detect(
      self, images: Images, *, batch_size: int = 8, flip: bool = False
  ) -> list[Found]:
    """Returns the objects on each image.

    The first batch of each orientation compiles; the others do not.

    Args:
      images: uint8 [H, W, 3] each, RGB, of any sizes.
      batch_size: images at a time at most.
      flip: whether each is looked at mirrored, too; see `tasks.flipped`.

    Raises:
      ValueError: they are not such arrays.
    """
    images = self._checked(images)
    geometry = canvases.Geometry.of(self.config.data)
    size = max(min(batch_size, len(images)), 1)
    sizes = np.array([image.shape[:2] for image in images]).reshape(-1, 2)
    found = {}
    for group, members in enumerate(order.groups(sizes)):
      canvas = geometry.canvas_of(group)
      # One batch at a time, as canvases are large.
      for start in range(0, len(members), size):
        part = members[start : start + size]
        rows = [geometry.plain(images[i], NOTHING)[0] for i in part]
        areas = np.int32([row.shape[:2] for row in rows])
        pasted = np.stack([canvases.paste(row, canvas) for row in rows])
        outputs = self._run(size, flip, image=pasted, image_size=areas)
        for row, i in enumerate(part):
          one = {name: array[row] for name, array in outputs.items()}
          found[i] = self._found(one, areas[row], sizes[i])
    return [found[i] for i in range(len(images))]

  def _found(self, one, size, original_size) -> Found:
    finite = np.isfinite(one['boxes']).all(-1) & np.isfinite(one['scores'])
    kept = np.flatnonzero(one['valid'] & finite)
    kept = kept[np.argsort(-one['scores'][kept], kind='stable')]
    boxes = coco.in_original_pixels(one['boxes'][kept], size, original_size)
    scores, labels = one['scores'][kept], one['labels'][kept]
    names = [self.names[label] for label in labels]
    return Found(boxes.astype(np.float32), scores, labels, names)


def load(
    source: str | os.PathLike,
    config: Any = None,
    *,
    name: str | None = None,
    image_size: int = models.IMAGENET_SIDE,
    **options: Any,
) -> Classifier | Detector:
  """Loads a trained network, ready to be used.

  Args:
    source: a run's directory; a model's directory or file, as of
      `save_pretrained`; 'hf-hub:owner/name', with '@revision' or without; the
      name of a model that the package ships, 'digits' or 'digit_scenes'; or any
      file that `weights.read` takes.
    config: the whole config, sparse or complete; that of the run or the model
      if None.
    name: of a network in `models.MODELS`, in place of a config: for a file of
      weights for ImageNet, whose mean, standard deviation and usual central
      crop (`decode.IMAGENET_CROP`) images get.
    image_size: height and width that images are brought to, with `name`.
    **options: of the network, with `name`, such as attention='se'.

  Raises:
    InputError: there are no weights, or they are of another network.
  """
  source = weights.locate(source)
  if name is not None:
    network = look_up('model', name, models.MODELS)
    network = engine.complete(options, network).to_dict()
    task = tasks.TASKS['classification'](models.create(name, **network))
    loaded = _variables(source, task, (image_size, image_size), (3,))
    crop = dict(size=image_size, **decode.IMAGENET_CROP)
    return Classifier(task, None, source, *loaded, crop)
  if options:
    raise InputError(f'{", ".join(options)}: they are for a name=...')
  config = settings.complete(config or rundir.read_config(source))
  task, data = settings.create_task(config), config.data
  # Where one mean serves all channels, the weights say how many there are.
  channels = (3, 1) if len(config.task.mean) == 1 else (len(config.task.mean),)
  if config.task.name == 'detection':
    loaded = _variables(source, task, data.canvas, channels)
    return Detector(task, config, source, *loaded)
  side, kind = data.eval_image_size, data.eval_interpolation
  loaded = _variables(source, task, (side, side), channels)
  crop = dict(size=side, share=data.eval_crop, interpolation=kind)
  crop['how'] = data.eval_resize
  return Classifier(task, config, source, *loaded, crop)


def _variables(
    source: str, task: Any, size: Sequence[int], channels: Sequence[int]
) -> tuple[Any, str, int]:
  """Returns variables, which they are, and the number of images' channels."""
  arrays, kind = warm_start.read(source, network=task.model)
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
