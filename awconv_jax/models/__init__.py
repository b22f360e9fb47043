"""Networks by name: `create('resnet50', num_classes=1000, aw_conv=True)`."""

import functools
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax import errors
from awconv_jax.models import mobilenet_v2, resnet, wide_resnet

# The class of each network, and the fields that make it.
MODELS = {
    **{
        f'resnet{depth}': (resnet.ResNet, fields)
        for depth, fields in resnet.DEPTHS.items()
    },
    **{name: (resnet.ResNet, own) for name, own in resnet.RESNEXT.items()},
    **{
        name: (wide_resnet.WideResNet, own)
        for name, own in wide_resnet.SIZES.items()
    },
    'mobilenet_v2': (mobilenet_v2.MobileNetV2, {}),
}


def create(name: str, **options: Any) -> nn.Module:
  """Returns a network by name.

  Args:
    name: one of `MODELS`, such as 'resnet50'.
    **options: fields of the network; see its class, such as
      `models.resnet.ResNet`, and `models.network.Network`.

  Returns:
    A Flax module: `model.apply(variables, images, train=False)`.

  Raises:
    InputError: the name or an option is unknown, or a value impossible.
  """
  if name not in MODELS:
    raise errors.unknown_name('model', name, MODELS)
  module, defaults = MODELS[name]
  fields = set(inspect.signature(module).parameters) - {'parent', 'name'}
  for option in options:
    if option not in fields:
      raise errors.unknown_name(f'option of model {name}', option, fields)
  model = module(**(defaults | options))
  model.check()
  return model


def shapes_of(model: nn.Module, side: int, channels: int = 3) -> Any:
  """Returns the shapes of a network's variables; computes nothing.

  Args:
    model: a network of `create`.
    side: height and width of the images.
    channels: of the images.

  Returns:
    A tree of `jax.ShapeDtypeStruct`: 'params' and 'batch_stats'.
  """
  image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), image)
