"""Grad-CAM: which parts of an image a class, or a detection, is found by.

"Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", https://arxiv.org/abs/1610.02391, equations 1 and 2: for features
F [h, w, k] and a score y, relu(sum over k of w[k] F[..., k]), where w[k] is the
mean over h and w of dy / dF[..., k].

The score of a detection depends on one place of the image alone, and a mean
over all others says little. There w is dy / dF itself, at each place ("Use
HiResCAM instead of Grad-CAM", https://arxiv.org/abs/2011.08891).
"""

import collections
import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import errors, inference
from awconv_jax.data import any_image
from awconv_jax.evaluators import coco
from awconv_jax.explain.prepared import in_pixels, prepare
from awconv_jax.models.detection.fpn import FPN

# What is pooled for the head of a classifier.
LAST = 'last'


class NothingFound(errors.InputError):
  """A detector finds nothing, or less, on an image."""


@dataclasses.dataclass(frozen=True)
class Cam:
  """Where an image holds what it is taken for.

  Attributes:
    map: float32 [H, W] in 0..1, its greatest value being 1 (or all are 0); NaN
      where the model does not look, beyond its central crop.
    layer: whose features it is of.
    label, name: of the class.
    score: of the class a probability; of a detection its score.
    box: of the detection, x1, y1, x2, y2 in pixels of the image; or None.
  """

  map: np.ndarray = dataclasses.field(repr=False)
  layer: str
  label: int
  name: str
  score: float
  box: np.ndarray | None


def _classified(task, variables, batch, label, number):
  """Returns the logit of a class (-1: the first), and what it is."""
  (logits,) = task.forward(variables, batch)
  label = jnp.where(label < 0, logits.argmax(), label)
  found = dict(label=label, score=jax.nn.softmax(logits)[label], there=True)
  return logits[label], found


def _detected(task, variables, batch, label, number):
  """Returns the score of a detection, and what it is."""
  outputs = task.predict(variables, batch)
  boxes, scores, labels, valid = (
      outputs[name][0] for name in ('boxes', 'scores', 'labels', 'valid')
  )
  counts = valid & ((label < 0) | (labels == label))
  index = (counts & (jnp.cumsum(counts) == number + 1)).argmax()
  found = dict(label=labels[index], score=scores[index], box=boxes[index])
  return scores[index], found | dict(there=counts.sum() > number)


def _score_of(model):
  """Returns which of these a model has."""
  found = isinstance(model, inference.Detector)
  return functools.partial(_detected if found else _classified, model.task)


def _run(score_of, variables, batch, added):
  """Returns a score, and (features by layer, how often, what the score is of).

  `added` is added to the features of the layers that it names: the gradient for
  it is the one for these.
  """
  features, calls = {}, collections.Counter()

  def tap(name, x):
    if getattr(x, 'ndim', 0) != 4 or x.shape[0] != 1:
      return x
    calls[name] += 1
    features[name] = x
    return x + added[name] if name in added else x

  def intercept(call, args, kwargs, context):
    module, method = context.module, context.method_name
    if method == 'classify':
      return call(tap(LAST, args[0]), *args[1:], **kwargs)
    if method != '__call__':
      return call(*args, **kwargs)
    if isinstance(module, FPN):
      stages = {name: tap(name, x) for name, x in args[0].items()}
      levels = call(stages, *args[1:], **kwargs)
      return {name: tap(name, x) for name, x in levels.items()}
    out = call(*args, **kwargs)
    return tap('/'.join(module.path), out) if module.path else out

  asked = (batch[name][0] for name in ('cam_label', 'cam_number'))
  with nn.intercept_methods(intercept):
    score, found = score_of(variables, batch, *asked)
  once = {name: x for name, x in features.items() if calls[name] == 1}
  return score, (once, found)


def _maps(score_of, names, local, variables, batch):
  """Returns Grad-CAM of each of these layers, with how much depends on it.

  `local` says that the score is of one place.
  """

  def run(added):
    return _run(score_of, variables, batch, added)

  shapes = jax.eval_shape(lambda: run({})[1][0])
  added = {n: jnp.zeros(shapes[n].shape, shapes[n].dtype) for n in names}
  gradients, (features, found) = jax.grad(run, has_aux=True)(added)
  maps = {}
  for name, slope in gradients.items():
    weights = slope.astype(jnp.float32)
    if not local:
      weights = weights.mean((1, 2), keepdims=True)
    values = (weights * features[name]).sum(-1)[0]
    maps[name] = jax.nn.relu(values), jnp.abs(slope).sum()
  return maps, found


def _layers_of(model, batch) -> list[str]:
  """Returns the names of what has features [1, h, w, k], as they are called."""
  names = []

  def run():
    _, (features, _) = _run(_score_of(model), model.variables, batch, {})
    names.extend(features)

  jax.eval_shape(run)
  return names


def _choose(layer: str | None, names: list[str]) -> tuple[str, ...]:
  """Returns the layers that are meant; of several, the one that counts most."""
  levels = tuple(name for name in names if re.fullmatch(r'p\d+', name))
  if layer is None:
    return levels or (LAST,)
  if layer not in names and (stage := re.fullmatch(r'c(\d+)', layer)):
    # As a detector calls the stages of its backbone.
    start = f'stage{int(stage[1]) - 1}_'
    inside = [n for n in names if n.startswith(start) and '/' not in n]
    layer = inside[-1] if inside else layer
  if layer not in names:  # Those inside of blocks would fill a page.
    known = [n for n in names if n.removeprefix('backbone/').count('/') == 0]
    stages = {n[5] for n in known if re.match(r'stage\d_', n)}
    known += [f'c{int(stage) + 1}' for stage in stages]
    raise errors.unknown_name('layer', layer, known)
  return (layer,)


def class_activation(
    model: inference.Model,
    image: any_image.AnyImage,
    label: int | str | None = None,
    layer: str | None = None,
    *,
    number: int = 0,
) -> Cam:
  """Computes Grad-CAM of an image; the first call compiles.

  Args:
    model: of `inference.load`.
    image: of any size; see `inference.Model`.
    label: a class, or its name. None is the first by a classifier, and any by a
      detector.
    layer: whose features are looked at: a stage, 'c2' the first; a level of a
      detector's pyramid, 'p2' the finest; or a module's path, such as
      'stage4_block1'. None is what a classifier pools for its head, and of a
      detector the level that the score depends on most.
    number: of the detections of that label, from the best, 0, on.

  Raises:
    NothingFound: there is no such detection; it is an InputError.
    InputError: there is no such class or layer, or it is no image.
  """
  if isinstance(model, inference.Segmenter):
    raise errors.InputError(
        'Grad-CAM is of the class of an image, or of a box; of pixels look at '
        '--panels=maps,groups,deviation,kernels'
    )
  if isinstance(label, str):
    names = {name: i for i, name in reversed([*enumerate(model.names)])}
    label = errors.look_up('class', label, names)
  if label is not None and not 0 <= label < len(model.names):
    raise errors.InputError(
        f'label={label} must be from 0 to {len(model.names) - 1}'
    )
  pixels, row = prepare(model, image)
  wanted = dict(cam_label=-1 if label is None else label, cam_number=number)
  batch = {
      name: np.asarray(array)[None] for name, array in (row | wanted).items()
  }
  names = _choose(layer, _layers_of(model, batch))
  local = isinstance(model, inference.Detector)
  function = functools.partial(_maps, _score_of(model), names, local)
  run = model.compiled(('explain.cam', names), function, 1)
  maps, found = jax.device_get(run(batch))
  if not found['there']:
    of = '' if label is None else f' of {model.names[label]!r}'
    raise NothingFound(f'there is no detection {number}{of}')
  name = max(maps, key=lambda name: maps[name][1])
  values, label = maps[name][0], int(found['label'])
  values = values / (values.max() or 1.0)
  shape, box = pixels.shape[:2], None
  if 'box' in found:
    sizes = row['image_size'], row['original_size']
    (box,) = coco.in_original_pixels(found['box'][None], *sizes)
  spread = in_pixels(model, values, row, shape)
  score = float(found['score'])
  return Cam(spread, name, label, str(model.names[label]), score, box)


def grad_cam(
    model: inference.Model,
    image: any_image.AnyImage,
    label: int | str | None = None,
    layer: str | None = None,
    *,
    number: int = 0,
) -> np.ndarray:
  """Returns Grad-CAM of an image, [H, W] in 0..1; see `class_activation`."""
  return class_activation(model, image, label, layer, number=number).map
