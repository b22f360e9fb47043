"""One call of a bound `nn.Conv`, computed by an `AWConv` in its scope.

"An Attention Module for Convolutional Neural Networks",
https://arxiv.org/abs/2108.08205:

  conv(I[n], K)  becomes  conv(I[n], K * (1 + A[n]))

with K under its own name, and the branch that computes A as `attention` beside
it.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from awconv_jax.layers.aw_conv import AWConv

Path = tuple[str, ...]

# The fields that an AWConv takes over from a convolution.
SHARED = tuple(
    field.name
    for field in dataclasses.fields(nn.Conv)
    if field.name not in ('parent', 'name')
)


def names(paths: Iterable[Path]) -> str:
  """Returns paths as one readable line."""
  return ', '.join(sorted('/'.join(path) or '()' for path in paths)) or 'none'


def _check_conv(path: Path, conv: nn.Conv) -> None:
  """Raises ValueError for what AWConv would compute otherwise, silently."""
  wrong = None
  if np.shape(conv.kernel_size) != (2,):
    wrong = f'kernel_size={conv.kernel_size!r}'
  elif type(conv).param is not nn.Module.param:
    wrong = f'a method {type(conv).__name__}.param'
  if wrong:
    raise ValueError(
        f'replace_conv: {names([path])} has {wrong}, which AWConv cannot '
        'compute; leave it out by `where`'
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
  _check_variables(path, conv, layer.norm)
  # With capture_intermediates both layers put their output down, under the
  # same name; the conv's own is enough.
  captured = conv.get_variable('intermediates', '__call__', ())
  try:
    out = layer(*args, **kwargs)
  except ValueError as error:
    raise ValueError(f'replace_conv: {names([path])}: {error}') from error
  if conv.has_variable('intermediates', '__call__'):
    conv.put_variable('intermediates', '__call__', captured)
  return out
