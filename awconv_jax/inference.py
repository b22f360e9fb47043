"""Trained networks as functions of images: of a run, or of a file of weights.

  classifier = inference.load('runs/digits')
  found = classifier.predict(images)  # uint8 [H, W, C] each, of any sizes
  print(found.names, found.probabilities.max(1))

  detector = inference.load('runs/digit_scenes')
  (found,) = detector.detect([photo])
  print(found.names, found.scores, found.boxes)

  classifier = inference.load('resnet50.pth', name='resnet50')

The newest checkpoint in good order is read, the averages where a run has them.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import json
import os
import pathlib
import types
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from awconv_jax import config as engine
from awconv_jax import models, tasks, weights
from awconv_jax.data import crops, order, sources
from awconv_jax.data.detection import canvases
from awconv_jax.data.detection.boxed_images import Geometry
from awconv_jax.data.detection.objects import NOTHING
from awconv_jax.errors import InputError
from awconv_jax.evaluators import coco
from awconv_jax.options import Named
from awconv_jax.tasks.flipped import Flipped
from awconv_jax.train import rundir, settings, warm_start

Images = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Classes:
  """What images are, by a classifier.

  Attributes:
    probabilities: float32 [N, classes].
    labels: int [N], of the greatest probability, from 0 on.
    names: of the labels' classes, N of them.
  """

  probabilities: np.ndarray
  labels: np.ndarray
  names: list[str]


@dataclasses.dataclass(frozen=True)
class Found:
  """What was found on an image, the best first.

  Attributes:
    boxes: float32 [D, 4], x1, y1, x2, y2 in pixels of the image.
    scores: float32 [D].
    labels: int32 [D], from 0 on.
    names: of the labels' classes, D of them.
  """

  boxes: np.ndarray
  scores: np.ndarray
  labels: np.ndarray
  names: list[str]


@dataclasses.dataclass
class Model:
  """A trained network.

  Attributes:
    task: gives its outputs; see `tasks`.
    variables: 'params' and 'batch_stats', arrays on the host.
    weights: which they are, such as 'averages of step 400'.
    source: where they are from.
    channels: of the images.
    config: the whole config; None of a file that came with a name.
  """

  task: Any
  variables: Any
  weights: str
  source: str
  channels: int
  config: Any = None

  @functools.cached_property
  def names(self) -> Sequence[str]:
    """Names of the classes by label; numbers from 0 where none are known."""
    return class_names(self.source) or list(map(str, self._numbers))

  @property
  def _numbers(self) -> range:
    return range(self.task.num_classes)

  @functools.cached_property
  def _on_device(self) -> Any:
    return jax.device_put(self.variables)

  def _check(self, images: Images) -> None:
    """Raises ValueError for what is no images."""
    for image in images:
      shape = np.shape(image)
      if image.dtype != np.uint8 or not (
          len(shape) == 3 and shape[2] == self.channels and image.size
      ):
        raise ValueError(
            f'an image is {image.dtype} {list(shape)}, want uint8 [H, W, '
            f'{self.channels}]{", RGB" * (self.channels == 3)} in 0..255'
        )


@dataclasses.dataclass
class Classifier(Model):
  """Classifies images; brings them to size as in evaluation.

  Attributes:
    preparation: options of `crops.center_crop`.
  """

  preparation: Mapping[str, Any] = dataclasses.field(kw_only=True)

  @functools.cached_property
  def _probabilities(self) -> Any:
    def probabilities(variables, images, flip):
      logits = self.task.forward(variables, {'image': images})
      if flip:
        mirrored = {'image': images[:, :, ::-1]}
        logits = (logits + self.task.forward(variables, mirrored)) / 2
      return jax.nn.softmax(logits)

    return jax.jit(probabilities, static_argnums=2)

  def predict(
      self, images: Images, *, batch_size: int = 32, flip: bool = False
  ) -> Classes:
    """Classifies images; the first batch compiles.

    Args:
      images: at least one, uint8 [H, W, C] each, of any sizes.
      batch_size: images at a time at most.
      flip: whether each is looked at mirrored, too, and the logits averaged.

    Raises:
      ValueError: they are not such arrays.
    """
    images = [np.asarray(image) for image in images]
    self._check(images)
    prepared = [self._prepared(image) for image in images]
    found = []
    for chunk in _chunks(range(len(images)), batch_size):
      rows = np.stack([prepared[i] for i in chunk])
      rows = _filled(rows, min(batch_size, len(images)))
      outputs = self._probabilities(self._on_device, rows, flip)
      found.append(np.asarray(outputs)[: len(chunk)])
    probabilities = np.concatenate(found)
    labels = probabilities.argmax(1)
    return Classes(probabilities, labels, [self.names[i] for i in labels])

  def _prepared(self, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    decoded = types.SimpleNamespace(
        # OpenCV takes no views that run backwards, such as BGR turned to RGB.
        pixels=lambda: np.ascontiguousarray(image),
        height=height,
        width=width,
    )
    return crops.center_crop(decoded, **self.preparation)


@dataclasses.dataclass
class Detector(Model):
  """Detects objects: to the canvas, predicted, and the boxes taken back."""

  @functools.cached_property
  def categories(self) -> tuple[Sequence[int], Sequence[str]]:
    """Ids and names of what the labels stand for.

    The run itself says them; one that does not is asked for its data set, and
    where that is not to be had they are numbered from 1, which is printed.

    Raises:
      InputError: the run's list is damaged.
    """
    kept = _kept_categories(self.source)
    if len(kept) == len(self._numbers):
      return [row['id'] for row in kept], [row['name'] for row in kept]
    section = self.config.data
    try:
      source = sources.open_source(
          section.name, section.dir, section.eval_split
      )
      if source.num_classes == len(self._numbers):
        return source.category_ids, source.class_names
      reason = f'{section.name} has {source.num_classes}'
    except InputError as error:
      reason = str(error)
    ids = [1 + label for label in self._numbers]
    print(f'the {len(ids)} categories are numbered from 1: {reason}')
    names = class_names(self.source) or ()
    return ids, names if len(names) == len(ids) else list(map(str, ids))

  @functools.cached_property
  def names(self) -> Sequence[str]:
    """Names of the classes by label."""
    return self.categories[1]

  def predictor(self, flip: bool) -> Any:
    """Returns what has `predict`, as tasks do; see `tasks.flipped`."""
    if not flip:
      return self.task
    return Flipped(self.task, self.config.model.detections.threshold)

  @functools.cached_property
  def _predict(self) -> dict[bool, Any]:
    return {
        flip: jax.jit(self.predictor(flip).predict) for flip in (False, True)
    }

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
    images = [np.asarray(image) for image in images]
    self._check(images)
    geometry = Geometry.of(self.config.data)
    size = min(batch_size, len(images)) or 1
    sizes = np.array([image.shape[:2] for image in images]).reshape(-1, 2)
    found = {}
    for group, members in enumerate(order.groups(sizes)):
      for chunk in _chunks(members, size):
        rows = [
            geometry.plain(np.ascontiguousarray(images[i]), NOTHING)[0]
            for i in chunk
        ]
        canvas = geometry.canvas_of(group)
        pasted = np.stack([canvases.paste(row, canvas) for row in rows])
        areas = np.int32([row.shape[:2] for row in rows])
        batch = {'image': _filled(pasted, size), 'image_size': areas}
        # An area of nothing would be divided by.
        batch['image_size'] = np.maximum(_filled(areas, size), 1)
        outputs = self._predict[flip](self._on_device, batch)
        outputs = jax.device_get(outputs)
        for row, i in enumerate(chunk):
          one = {name: array[row] for name, array in outputs.items()}
          found[i] = self._found(one, areas[row], images[i].shape[:2])
    return [found[i] for i in range(len(images))]

  def _found(self, one, size, original_size) -> Found:
    finite = np.isfinite(one['boxes']).all(-1) & np.isfinite(one['scores'])
    kept = np.flatnonzero(one['valid'] & finite)
    kept = kept[np.argsort(-one['scores'][kept], kind='stable')]
    boxes = coco.in_original_pixels(one['boxes'][kept], size, original_size)
    labels = one['labels'][kept]
    return Found(
        boxes=boxes.astype(np.float32),
        scores=one['scores'][kept],
        labels=labels,
        names=[self.names[label] for label in labels],
    )


def _chunks(members: Sequence[int], size: int) -> Iterator[Sequence[int]]:
  for start in range(0, len(members), size):
    yield members[start : start + size]


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
  """Returns the rows with zeros after them, so that a batch compiles once."""
  out = np.zeros((size, *rows.shape[1:]), rows.dtype)
  out[: len(rows)] = rows
  return out


@dataclasses.dataclass
class _ByName:
  model: Annotated[Mapping[str, Any], Named(models.MODELS, 'model')]


def load(
    source: str | os.PathLike,
    config: Any = None,
    *,
    name: str | None = None,
    image_size: int = 224,
    **options: Any,
) -> Classifier | Detector:
  """Loads a trained network, ready to be used.

  Args:
    source: a run's directory, or a file that `weights.read` takes.
    config: the whole config, sparse or complete; that of the run if None.
    name: of a network in `models.MODELS`, in place of a config: for a file of
      weights for ImageNet, whose usual central crop (7/8 of the shorter side,
      bicubic), mean and standard deviation images get.
    image_size: height and width that images are brought to, with `name`.
    **options: of the network, with `name`, such as attention='se'.

  Raises:
    InputError: there are no weights, or they are of another network.
  """
  source = str(source)
  if name is not None:
    network = engine.complete({'model': dict(name=name) | options}, _ByName)
    task = tasks.TASKS['classification'](network.model.to_dict())
    found = _variables(source, task, (image_size, image_size), (3,))
    preparation = dict(size=image_size, share=0.875, interpolation='bicubic')
    return Classifier(task, *found, preparation=preparation)
  config = read_config(source) if config is None else settings.complete(config)
  task, section = tasks.create(config), config.data
  # Where one mean serves all channels, the weights say how many there are.
  channels = (3, 1) if len(config.task.mean) == 1 else (len(config.task.mean),)
  if config.task.name == 'detection':
    found = _variables(source, task, section.canvas, channels)
    return Detector(task, *found, config)
  side = section.eval_image_size
  found = _variables(source, task, (side, side), channels)
  preparation = dict(
      size=side,
      share=section.eval_crop,
      interpolation=section.eval_interpolation,
  )
  return Classifier(task, *found, config, preparation=preparation)


def read_config(run: str | os.PathLike) -> ml_collections.ConfigDict:
  """Returns the whole config that a run was made with.

  Raises:
    InputError: the directory has none, or one that is not in order.
  """
  path = pathlib.Path(run) / 'config.json'
  try:
    return settings.complete(json.loads(path.read_text()))
  except (OSError, TypeError, ValueError) as error:
    raise InputError(
        f'cannot read {path} (give the directory of a run as --run, or the '
        f'config by --config): {getattr(error, "strerror", None) or error}'
    ) from error


def _variables(
    source: str, task: Any, size: Sequence[int], channels: Sequence[int]
) -> tuple[Any, str, str, int]:
  """Returns variables, which they are, their source, and images' channels.

  Raises:
    InputError: they are not there, or of another network than the task's.
  """
  is_run = pathlib.Path(source).is_dir()
  found = warm_start.read_run(source) if is_run else None
  faults = []
  for number in channels:
    image = jax.ShapeDtypeStruct((1, *size, number), jnp.uint8)
    shapes = jax.eval_shape(task.init, jax.random.key(0), {'image': image})
    if found is not None:
      differences = _differences(shapes, found[0])
      if not differences:
        return *found, source, number
      faults.append((len(differences), differences[0]))
      continue
    try:
      return weights.load(source, shapes), 'weights', source, number
    except InputError as error:
      faults.append((len(str(error)), str(error)))
  _, fault = min(faults)
  if is_run:
    fault = f'--run={source} is of another network than its config: {fault}'
  raise InputError(fault)


def _differences(here: Any, there: Any) -> list[str]:
  """Returns a line for each variable that is absent, or of another shape."""
  here, there = (
      {
          jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
      }
      for tree in (here, there)
  )
  return [
      f'{name} is {there.get(name, "absent")} there, want '
      f'{here.get(name, "absent")}'
      for name in {**here, **there}
      if here.get(name) != there.get(name)
  ]


def class_names(run: str | os.PathLike) -> list[str] | None:
  """Returns the names of a run's classes by label; None if it has none."""
  path = pathlib.Path(run) / rundir.CLASSES
  return json.loads(path.read_text()) if path.is_file() else None


def _kept_categories(run: str) -> list[dict[str, Any]]:
  """Returns what `rundir.write_classes` wrote; nothing if it did not."""
  path = pathlib.Path(run) / rundir.CATEGORIES
  if not path.is_file():
    return []
  try:
    return [
        {'id': int(row['id']), 'name': str(row['name'])}
        for row in json.loads(path.read_text())
    ]
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(
        f'{path} is no list of {{"id": 1, "name": "heron"}}; mend it, or '
        'remove it to take the categories from the data set'
    ) from error
