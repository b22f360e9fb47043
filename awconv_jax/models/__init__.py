"""Networks, detectors and segmenters by name: `create('resnet50')`."""

from collections.abc import Mapping
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax import errors
from awconv_jax.models.detection import faster_rcnn, presets
from awconv_jax.models.registry import MODELS
from awconv_jax.models.segmentation import semantic_fpn
from awconv_jax.options import marker_of, options_of

DETECTORS = {'faster_rcnn': faster_rcnn.FasterRCNN}
SEGMENTERS = {'semantic_fpn': semantic_fpn.SemanticFPN}
IMAGENET_SIDE = 224  # Pixels of the images that weights for ImageNet are for.


def _check_names(target: Any, options: Mapping[str, Any], kind: str) -> None:
  """Raises InputError for an option, or one of a group, that target has not."""
  known = {
      k: v for k, v in options_of(target).items() if v.default is not v.empty
  }
  for name, value in options.items():
    option = errors.look_up(f'option of {kind}', name, known)
    if value and (group := marker_of(option)):
      by = group.by and options.get(group.by)
      if group.by and by is None:
        raise errors.unnamed(name, value, group.by)
      _check_names(group.target(by) if by else group.of, value, name)


def create(name: str, **options: Any) -> nn.Module:
  """Returns a network by name: `model.apply(variables, images, train=False)`.

  Args:
    name: one of `MODELS`, such as 'resnet50'.
    **options: fields of its class, such as `models.resnet.ResNet`, and of
      `models.network.Network`.

  Raises:
    InputError: the name or an option is unknown, or options do not fit.
  """
  network = errors.look_up('model', name, MODELS)
  _check_names(network, options, name)
  return network(**options)


def create_detector(
    name: str = 'faster_rcnn',
    *,
    backbone: str | Mapping[str, Any] = 'resnet50',
    preset: str = presets.DEFAULT,
    **options: Any,
) -> nn.Module:
  """Returns a detector by name, which has the methods `detect` and `losses`.

  Args:
    name: one of `DETECTORS`.
    backbone: name of a network in `MODELS`, or its name and options as for
      `create`: dict(name='resnet50', aw_conv=True).
    preset: name in `detection.presets.PRESETS`, of the options not given.
    **options: of the detector, such as num_classes; see `FasterRCNN`. Groups
      need not be complete.

  Raises:
    InputError: a name or an option is unknown.
  """
  detector = errors.look_up('detector', name, DETECTORS)
  options = presets.with_preset(preset, **options)
  return _over(detector, name, backbone, options)


def create_segmenter(
    name: str = 'semantic_fpn',
    *,
    backbone: str | Mapping[str, Any] = 'resnet50',
    **options: Any,
) -> nn.Module:
  """Returns a network by name that gives every pixel a class.

  Args:
    name: one of `SEGMENTERS`.
    backbone: as for `create_detector`.
    **options: such as num_classes; see `SemanticFPN`.

  Raises:
    InputError: a name or an option is unknown.
  """
  segmenter = errors.look_up('segmenter', name, SEGMENTERS)
  return _over(segmenter, name, backbone, options)


def _over(
    whole: Any,
    name: str,
    backbone: str | Mapping[str, Any],
    options: Mapping[str, Any],
) -> nn.Module:
  """Returns what stands over a backbone, of checked options."""
  _check_names(whole, options, name)
  fields = dict(name=backbone) if isinstance(backbone, str) else backbone
  return whole(create(**fields, num_classes=None), **options)


def shapes_of(model: nn.Module, side: int = 64, channels: int = 3) -> Any:
  """Returns the shapes of the variables of any of these.

  Nothing is computed. They are a tree of `jax.ShapeDtypeStruct`, 'params' and
  'batch_stats', for images [side, side, channels].
  """
  arrays = [jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)]
  init = model.init
  if isinstance(model, tuple(DETECTORS.values())):
    arrays += [jnp.ones((1, 2)), jnp.ones((1, 1, 4))]  # Sizes and regions.
  elif isinstance(model, tuple(SEGMENTERS.values())):
    arrays.append(jnp.ones((1, 2)))
  else:
    init = functools.partial(init, train=False)
  return jax.eval_shape(init, jax.random.key(0), *arrays)
