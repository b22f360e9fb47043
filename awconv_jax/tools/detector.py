"""A trained detector as a function of one image, for notebooks and programs.

detect = load_detector('runs/digit_scenes')
found = detect(image)  # uint8 [H, W, 3], RGB
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from awconv_jax import errors, tasks
from awconv_jax.data import order
from awconv_jax.data.detection import canvases
from awconv_jax.data.detection.boxed_images import Geometry
from awconv_jax.data.detection.objects import NOTHING
from awconv_jax.evaluators import coco
from awconv_jax.tools import categories, evaluate


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


class Detector:
  """Brings an image to the canvas, predicts, and takes the boxes back.

  The first image of each orientation compiles; the others do not.

  Args:
    task: a `tasks.detection.Detection`.
    variables: of its network.
    data: `config.data`, which has the sizes.
    names: of the classes, by label.

  Raises:
    InputError: the sizes cannot be used.
  """

  def __init__(
      self, task: Any, variables: Any, data: Any, names: Sequence[str]
  ):
    self.names = list(names)
    self._geometry = Geometry.of(data)
    self._variables = jax.device_put(variables)
    self._predict = jax.jit(task.predict)

  def __call__(self, image: np.ndarray) -> Found:
    """Returns the objects on an image.

    Args:
      image: uint8 [H, W, 3], RGB, of any size.

    Raises:
      ValueError: it is not such an array.
    """
    image = np.asarray(image)
    rank3 = image.ndim == 3 and image.shape[2] == 3 and image.size
    if image.dtype != np.uint8 or not rank3:
      raise ValueError(
          f'image is {image.dtype} {list(image.shape)}, want uint8 [H, W, 3], '
          'RGB in 0..255'
      )
    # OpenCV takes no views that run backwards, such as BGR turned to RGB.
    pixels, _ = self._geometry.plain(np.ascontiguousarray(image), NOTHING)
    _, portraits = order.groups(np.array([image.shape[:2]]))
    group = order.PORTRAIT if len(portraits) else order.LANDSCAPE
    canvas = self._geometry.canvas_of(group)
    batch = {
        'image': canvases.paste(pixels, canvas)[None],
        'image_size': np.int32([pixels.shape[:2]]),
    }
    outputs = jax.device_get(self._predict(self._variables, batch))
    one = {name: array[0] for name, array in outputs.items()}
    return self._found(one, pixels.shape[:2], image.shape[:2])

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


def load_detector(source: str, config: Any = None) -> Detector:
  """Returns the detector of a run: its newest checkpoint, averaged if it is.

  Args:
    source: a run's directory, or a file that `weights.read` takes.
    config: the whole config; that of the run if None.

  Raises:
    InputError: there is no run of detection, or it does not fit the config.
  """
  config = evaluate.read_config(source) if config is None else config
  if config.task.name != 'detection':
    raise errors.InputError(
        f'{source} is a run of {config.task.name}, want one of detection'
    )
  task = tasks.create(config)
  image = jax.ShapeDtypeStruct((1, *config.data.canvas, 3), np.uint8)
  shapes = jax.eval_shape(task.init, jax.random.key(0), {'image': image})
  variables, _ = evaluate.read_variables(source, shapes)
  _, names = categories.find(config, task.num_classes, source)
  return Detector(task, variables, config.data, names)
