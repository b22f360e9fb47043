"""One call of a bound `nn.Conv`, computed by an `AWConv` in its scope.

"An Attention Module for Convolutional Neural Networks",
https://arxiv.org/abs/2108.08205:

  conv(I[n], K)  becomes  conv(I[n], K * (1 + A[n]))

with K under its own name, and the branch that computes A as `attention` beside
it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from awconv_jax.layers.aw_conv import AWConv

Path = tuple[str, ...]

# The fields that nn.Conv and AWConv share, and those that AWConv has no equal
# of, with the value under which each does nothing.
SHARED = (
    *('features', 'kernel_size', 'strides', 'padding', 'kernel_dilation'),
    *('feature_group_count', 'use_bias', 'dtype', 'param_dtype', 'precision'),
    *('kernel_init', 'bias_init'),
)
WITHOUT_EQUAL = {
    'mask': None,
    'promote_dtype': nn.Conv.promote_dtype,
    'conv_general_dilated': None,
    'conv_general_dilated_cls': None,
}


def names(paths: Iterable[Path]) -> str:
  """Returns paths as one readable line."""
  return ', '.join(sorted('/'.join(path) or '()' for path in paths)) or 'none'


def _check_conv(path: Path, conv: nn.Conv) -> None:
  """Raises ValueError for a convolution that AWConv cannot compute."""
  wrong = [
      f'a {name} of its own'
      for name, idle in WITHOUT_EQUAL.items()
      if getattr(conv, name) is not idle
  ]
  for name, possible in (
      ('input_dilation', conv.input_dilation in (None, 1, (1, 1))),
      ('kernel_size', np.shape(conv.kernel_size) == (2,)),
  ):
    if not possible:
      wrong.append(f'{name}={getattr(conv, name)!r}')
  if type(conv).param is not nn.Module.param:
    wrong.append(f'a method {type(conv).__name__}.param')
  if wrong:
    raise ValueError(
        f'replace_conv: {names([path])} has {", ".join(wrong)}, which AWConv '
        'cannot compute; leave it out by `where`'
    )


def _check_variables(path: Path, conv: nn.Conv, norm: str) -> None:
  """Raises ValueError if the attention branch has no variables here."""
  needed = ('params', 'batch_stats') if norm == 'batch' else ('params',)
  for collection in needed:
    if not (
        conv.is_mutable_collection(collection)
        or conv.has_variable(collection, 'attention')
    ):
      raise ValueError(
          f'replace_conv: {names([path])}: no {collection!r} for its '
          'attention; initialise the model that replace_conv returned and put '
          'plain weights in by merge_variables, and under nn.scan or nn.vmap '
          f'name {collection!r} in variable_axes'
          + (" or use norm='layer'" if collection == 'batch_stats' else '')
      )


def convolve(
    path: Path, conv: nn.Conv, options: Mapping[str, Any], args, kwargs
) -> jax.Array:
  """Computes the call of a bound convolution.

  Args:
    path: of the convolution in the model, for errors.
    conv: its scope gets the variables of the AWConv.
    options: fields of AWConv which nn.Conv has not.
    args, kwargs: of the call; the input [..., H, W, C].

  Returns:
    [..., H', W', features].

  Raises:
    ValueError: AWConv cannot compute it, or has no variables; says where.
  """
  _check_conv(path, conv)
  fields = {name: getattr(conv, name) for name in SHARED}
  layer = AWConv(**fields, **options, parent=conv.scope)
  try:
    layer.check()
  except ValueError as error:
    raise ValueError(f'replace_conv: {names([path])}: {error}') from None
  _check_variables(path, conv, layer.norm)
  # With capture_intermediates both layers put their output down, under the
  # same name; the conv's own is enough.
  captured = conv.get_variable('intermediates', '__call__', ())
  out = layer(*args, **kwargs)
  if conv.has_variable('intermediates', '__call__'):
    conv.put_variable('intermediates', '__call__', captured)
  return out
