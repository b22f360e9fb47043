"""Variables of NNX modules as those of Linen modules, and back."""

from collections.abc import Mapping
from typing import Any, TypeVar

from flax import nnx, traverse_util
import jax.numpy as jnp

from awconv_jax.errors import InputError, some

M = TypeVar('M', bound=nnx.Module)
# The collections of Linen, and what NNX has in their place.
KINDS = {'params': nnx.Param, 'batch_stats': nnx.BatchStat}


def to_linen(module: nnx.Module) -> dict[str, Any]:
  """Returns {'params': tree, 'batch_stats': tree}, without what is empty.

  The names are those of the module's attributes.
  """
  trees = {
      collection: nnx.to_pure_dict(nnx.state(module, kind))
      for collection, kind in KINDS.items()
  }
  return {collection: tree for collection, tree in trees.items() if tree}


def from_linen(module: M, variables: Mapping[str, Any]) -> M:
  """Puts Linen's variables into a module, in place, and returns it.

  Args:
    module: with attributes of the names that Linen's module has.
    variables: {collection: tree}, such as 'params' and 'batch_stats'; of a
      module, all of a collection, or nothing.

  Raises:
    InputError: paths are missing, unknown or of another shape.
  """
  for collection, tree in variables.items():
    if (kind := KINDS.get(collection)) is None:
      known = ', '.join(KINDS)
      raise InputError(f'from_linen: collection {collection!r}; known: {known}')
    state = nnx.state(module, kind)
    want, got = (
        {path: jnp.shape(leaf) for path, leaf in flat.items()}
        for flat in map(
            traverse_util.flatten_dict, (nnx.to_pure_dict(state), dict(tree))
        )
    )
    if want != got:
      faults = some(
          f'{"/".join(map(str, path))} ({got.get(path, "missing")} for '
          f'{want.get(path, "nothing")})'
          for path in sorted(want | got)
          if want.get(path) != got.get(path)
      )
      raise InputError(f'from_linen: {collection} do not fit: {faults}')
    nnx.replace_by_pure_dict(state, dict(tree))
    nnx.update(module, state)
  return module
