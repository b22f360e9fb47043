"""Between the tree of our variables and torch's flat dict of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import errors
from awconv_jax.weights import names


def to_state_dict(variables: Any) -> dict[str, np.ndarray]:
  """Returns the arrays under torch's names, in torch's layout and our dtypes.

  Args:
    variables: tree of arrays: 'params' and 'batch_stats'.

  Returns:
    Arrays by name. Torch counts the batches of a norm, which nothing here
    does: those are int64 zeros, as in a model that was never trained.
  """
  leaves, _ = names.flatten(jax.device_get(variables))
  entries = names.table(variables)
  arrays = {
      name: entry.to_torch(leaves[entry.path])
      for name, entry in entries.items()
  }
  return arrays | {n: np.zeros((), np.int64) for n in names.counters(entries)}


def _faults(arrays, entries, allowed) -> str:
  """Returns all that keeps the arrays from fitting, or nothing."""
  known = entries.keys() | set(names.counters(entries))
  absent = entries.keys() - arrays.keys() - allowed
  shared = sorted(entries.keys() & arrays.keys())
  faults = {
      'unknown': sorted(arrays.keys() - known),
      'missing': sorted(absent),
      'of another shape': [
          f'{n} has {arrays[n].shape}, want {entries[n].shape}'
          for n in shared
          if arrays[n].shape != entries[n].shape
      ],
      'not floating': [
          f'{n} is {arrays[n].dtype}'
          for n in shared
          if not jnp.issubdtype(arrays[n].dtype, jnp.floating)
      ],
  }
  return '; '.join(f'{k}: {", ".join(v)}' for k, v in faults.items() if v)


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
      absent; it keeps the value it has in `variables`.
    source: where the arrays come from, for the error.

  Returns:
    A tree as `variables`, of its dtypes; arrays are on the host.

  Raises:
    InputError: names are unknown or missing, or shapes differ; names all.
  """
  leaves, treedef = names.flatten(variables)
  entries = names.table(variables)
  allowed = {
      name
      for name, entry in entries.items()
      if allow_missing is not None and allow_missing('/'.join(entry.path))
  }
  faults = _faults(arrays, entries, allowed)
  if faults:
    raise errors.InputError(
        f'{source} does not fit the network: {faults}; choose the network and '
        'the options that it was made with'
    )
  by_path = {
      entry.path: (
          entry.from_torch(arrays[name]).astype(leaves[entry.path].dtype)
      )
      for name, entry in entries.items()
      if name in arrays
  }
  return treedef.unflatten(by_path.get(p, leaf) for p, leaf in leaves.items())
