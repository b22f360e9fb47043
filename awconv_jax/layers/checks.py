"""Checks of what layers are called with: a config's options are checked before.

Without them nonsense ends in an error of JAX that names neither the layer nor
the field, or in wrong numbers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.errors import InputError
from awconv_jax.layers.conv import pair
from awconv_jax.options import misfit, options_of

# Of fields of nn.Conv, which are 1 or more; and those that may be pairs.
_CONV = 'features', 'feature_group_count'
_PAIRS = 'kernel_size', 'strides', 'kernel_dilation'


def check_call(layer: nn.Module, x: jax.Array, any_batch: bool = False) -> None:
  """Raises InputError unless x is [N, H, W, C] and fields are in their bounds.

  The layer is one of ours: bounds are those of its annotations. If it is a
  `nn.Conv`, its fields have to fit the channels, too; others do not compute
  with integers. With any_batch x is [..., H, W, C].
  """
  kind, got = type(layer).__name__, jnp.shape(x)
  if (len(got) < 3 if any_batch else len(got) != 4) or 0 in got[-3:]:
    want = '[..., H, W, C]' if any_batch else '[N, H, W, C]'
    raise InputError(f'{kind}: the input is {got}, want {want}')
  convolves = isinstance(layer, nn.Conv)
  if not convolves and not jnp.issubdtype(jnp.result_type(x), jnp.floating):
    raise InputError(
        f'{kind}: the input is of {jnp.result_type(x)}, want a floating dtype'
    )
  check_fields(layer)
  if convolves:
    groups = layer.feature_group_count
    for name, channels in (('input', got[-1]), ('features', layer.features)):
      if channels % groups:
        raise InputError(
            f'{kind}: feature_group_count={groups} does not divide the '
            f'{channels} channels of the {name}'
        )


def check_fields(layer: nn.Module) -> None:
  """Raises InputError unless a layer's fields are in their bounds."""
  kind = type(layer).__name__
  for name, option in options_of(type(layer)).items():
    value = getattr(layer, name)
    if fault := misfit(option.annotation, value):
      raise InputError(f'{kind}: {name}={value!r} {fault}')
  if isinstance(layer, nn.Conv):
    sizes = {name: getattr(layer, name) for name in (*_CONV, *_PAIRS)}
    check_sizes(kind, **sizes)


def check_sizes(kind: str, **sizes: Any) -> None:
  """Raises InputError for what is not None, 1 or more, or a pair of such."""
  for name, value in sizes.items():
    try:
      least = min(pair(value))
    except (TypeError, ValueError):
      least = 0
    if least < 1:
      each = ', or such a number for each of two axes' * (name in _PAIRS)
      raise InputError(
          f'{kind}: {name}={value!r} must be a whole number, at least 1{each}'
      )
