"""Between the tree of our variables and torch's flat dict of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import InputError, some
from awconv_jax.weights import names


def to_state_dict(variables: Any) -> dict[str, np.ndarray]:
  """Returns the arrays under torch's names, in torch's layout and our dtypes.

  Torch counts the batches of a norm, which nothing here does: those are int64
  zeros, as in a model that was never trained.

  Args:
    variables: tree of arrays: 'params' and 'batch_stats'.
  """
  leaves = traverse_util.flatten_dict(jax.device_get(variables))
  entries = names.table(variables)
  arrays = {n: e.to_torch(leaves[e.path]) for n, e in entries.items()}
  return arrays | {n: np.zeros((), np.int64) for n in names.counters(entries)}


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
      AW-convolution may be absent as a whole only: with some of its arrays
      here, the others were lost.
    source: where the arrays come from, for the error.

  Returns:
    A tree as `variables`, of its dtypes; arrays are on the host.

  Raises:
    InputError: names are unknown or missing, or shapes differ; lists all.
  """
  leaves: dict[Any, Any] = traverse_util.flatten_dict(variables)
  entries = names.table(variables)
  found = entries.keys() & arrays.keys()
  paths = {name: '/'.join(entry.path) for name, entry in entries.items()}
  branches = {name: names.in_aw_branch(path) for name, path in paths.items()}
  begun = {branches[name] for name in found} - {None}
  faults = {
      'unknown': arrays.keys() - found - {*names.counters(entries)},
      'missing': {
          name
          for name in entries.keys() - found
          if branches[name] in begun
          or not (allow_missing and allow_missing(paths[name]))
      },
      'of another kind': {
          f'{n} has {arrays[n].dtype}{[*arrays[n].shape]}, want '
          f'float{[*entries[n].shape]}'
          for n in found
          if arrays[n].shape != entries[n].shape
          or not jnp.issubdtype(arrays[n].dtype, jnp.floating)
      },
  }
  if faults := {kind: sorted(these) for kind, these in faults.items() if these}:
    remedy = 'choose the network and the options that it was made with'
    if faults == {
        'missing': sorted(n for n, in_aw in branches.items() if in_aw)
    }:
      remedy = 'it has no AW-convolutions: choose aw_conv=false'
    counts = ', '.join(f'{len(f)} {kind}' for kind, f in faults.items())
    listed = '; '.join(f'{kind}: {some(f)}' for kind, f in faults.items())
    raise InputError(
        f'{source} does not fit the network ({counts}); {remedy}: {listed}'
    )
  taken, broken = {}, []
  for name in sorted(found):
    path = entries[name].path
    array = entries[name].from_torch(arrays[name])
    with np.errstate(over='ignore'):  # Infinite, and named below.
      taken[path] = array.astype(leaves[path].dtype)
    good = np.isfinite(taken[path]) & (path[-1] != 'var' or taken[path] >= 0)
    if count := int(np.sum(~good)):
      broken.append(f'{name} ({count} of {good.size})')
  if broken:
    raise InputError(
        f'{source} has values that are no numbers, infinite, or negative '
        f'variances: {some(broken)}; take weights from before it diverged'
    )
  return traverse_util.unflatten_dict(leaves | taken)
