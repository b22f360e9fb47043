"""Between the tree of our variables and torch's flat dict of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import InputError
from awconv_jax.weights import names


def to_state_dict(variables: Any) -> dict[str, np.ndarray]:
  """Returns the arrays under torch's names, in torch's layout and our dtypes.

  Torch counts the batches of a norm, which nothing here does: those are int64
  zeros, as in a model that was never trained.

  Args:
    variables: tree of arrays: 'params' and 'batch_stats'.
  """
  leaves, _ = names.flatten(jax.device_get(variables))
  entries = names.table(variables)
  arrays = {n: e.to_torch(leaves[e.path]) for n, e in entries.items()}
  return arrays | {n: np.zeros((), np.int64) for n in names.counters(entries)}


def _absent(arrays, paths, allow_missing) -> set[str]:
  """Returns torch's names of what the arrays need not hold.

  The branch of an AW-convolution is absent as a whole or not at all: with some
  of its arrays here, the others were lost.
  """
  begun = {names.in_aw_branch(paths[n]) for n in paths.keys() & arrays.keys()}
  return {
      name
      for name, path in paths.items()
      if allow_missing(path) and names.in_aw_branch(path) not in begun - {None}
  }


def _check(arrays, entries, paths, allowed, source) -> None:
  """Raises InputError with all that keeps the arrays from fitting, by kind."""
  known = entries.keys() | set(names.counters(entries))
  shared = [(n, arrays[n]) for n in sorted(entries.keys() & arrays.keys())]
  faults = {
      'unknown': sorted(arrays.keys() - known),
      'missing': sorted(entries.keys() - arrays.keys() - allowed),
      'of another shape': [
          f'{name} has {array.shape}, want {entries[name].shape}'
          for name, array in shared
          if array.shape != entries[name].shape
      ],
      'not floating': [
          f'{name} is {array.dtype}'
          for name, array in shared
          if not jnp.issubdtype(array.dtype, jnp.floating)
      ],
  }
  faults = {kind: found for kind, found in faults.items() if found}
  if not faults:
    return
  remedy = 'choose the network and the options that it was made with'
  added = sorted(n for n, path in paths.items() if names.in_aw_branch(path))
  if faults == {'missing': added}:
    remedy = 'it has no AW-convolutions: choose aw_conv=false'
  counts = ', '.join(f'{len(found)} {kind}' for kind, found in faults.items())
  listed = '; '.join(f'{kind}: {", ".join(f)}' for kind, f in faults.items())
  raise InputError(
      f'{source} does not fit the network ({counts}); {remedy}: {listed}'
  )


def from_state_dict(
    arrays: Mapping[str, np.ndarray],
    variables: Any,
    *,
    allow_missing: Callable[[str], bool] | None = None,
    source: str = 'the state dict',
) -> Any:
  """Returns the variables with the values of torch's arrays.

  Args:
    arrays: by torch's names, in torch's layout, of any floating dtype.
    variables: tree of arrays or shapes, 'params' and 'batch_stats'.
    allow_missing: tells by our path, such as 'params/head/kernel', what may be
      absent; it keeps the value it has in `variables`. The branch of an
      AW-convolution may be absent as a whole only.
    source: where the arrays come from, for the error.

  Returns:
    A tree as `variables`, of its dtypes; arrays are on the host.

  Raises:
    InputError: names are unknown or missing, or shapes differ; lists all.
  """
  leaves, treedef = names.flatten(variables)
  entries = names.table(variables)
  paths = {name: '/'.join(entry.path) for name, entry in entries.items()}
  allowed = set()
  if allow_missing is not None:
    allowed = _absent(arrays, paths, allow_missing)
  _check(arrays, entries, paths, allowed, source)
  found = dict(leaves)
  for name in entries.keys() & arrays.keys():
    entry = entries[name]
    array = entry.from_torch(arrays[name])
    found[entry.path] = array.astype(leaves[entry.path].dtype)
  return treedef.unflatten(found.values())
