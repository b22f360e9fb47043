"""Starts a run with the weights of another network: `config.init_from`.

A network with AW-convolutions takes those of the plain one; its attention
branches, which that does not have, keep their first values. With the gate
'tanh' and `identity_start` it then computes exactly what the plain one does.

A detector starts from another detector or, its backbone alone, from a network
for classification, without the head of that.
"""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from awconv_jax import places, weights
from awconv_jax.errors import InputError, unknown_name
from awconv_jax.train import checkpoint, rundir
from awconv_jax.weights import names, origin, state_dict

Report = Callable[[str], object]
# Modules: of a detector, the network that it is over; of that, what a backbone
# is without.
BACKBONE, HEAD = 'backbone', 'head'


def _is_below(path: Sequence[str], modules: Sequence[str]) -> bool:
  """Returns whether a path is that of one of the modules, or in it."""
  below = '/'.join(path[1:]) + '/'  # Without the collection.
  return any(below.startswith(f'{module}/') for module in modules)


def _as_backbone(
    arrays: Mapping[str, Any], variables: Any
) -> dict[str, Any] | None:
  """Returns a classifier's arrays as those of a backbone; None if not that."""
  prefix = f'{names.module(BACKBONE)}.'
  known = names.table(variables).keys()
  renamed = {
      f'{prefix}{name}': array
      for name, array in arrays.items()
      if f'{prefix}{name}' in known or not name.startswith(names.HEADS)
  }
  return (
      renamed if known & renamed.keys() and not known & arrays.keys() else None
  )


def read_run(
    workdir: str | os.PathLike, *, report: Report = print
) -> tuple[Any, str]:
  """Returns the variables of a run's newest good checkpoint, and their kind.

  They are its averages, if it has them: a tree 'params', 'batch_stats' of host
  arrays, and words such as 'averages of step 400'. Each damaged checkpoint that
  is passed over is reported in a line; InputError if none is good.
  """
  directory = places.at(workdir) / rundir.CHECKPOINTS
  reasons = []
  # Looked at first, as the checkpointer would make it.
  if directory.is_dir():
    with checkpoint.Checkpointer(directory, keep=2) as checkpointer:
      for step in reversed(checkpointer.steps()):
        try:
          found = checkpointer.read(step)
        except InputError as error:
          reasons.append(str(error))
          report(f'{error}; trying the one before it')
          continue
        rundir.check_own(workdir, found.get('record'))
        state = traverse_util.unflatten_dict(found['leaves'], sep='/')
        if 'ema' in state:
          return state['ema'], f'averages of step {step}'
        variables = {'params': state['params'], **state.get('model_state', {})}
        return variables, f'weights of step {step}'
  why = '; '.join(reasons) or 'there is none'
  raise InputError(f'no checkpoint in good order in {directory}: {why}')


def network_of(workdir: str | os.PathLike) -> Any:
  """Returns the options of a run's network; None if it has no config."""
  try:
    return rundir.read_config(workdir).model
  except InputError:
    return None


def read(
    source: str,
    *,
    entry: str | None = None,
    network: Any = None,
    report: Report = print,
) -> tuple[dict[str, np.ndarray], str]:
  """Returns the arrays of a run or a file by torch's names, and their kind.

  Args:
    source: a run's directory, or what `weights.read` takes.
    entry, network, report: as in `weights.read`; a run has no entries, and the
      options of its config.

  Raises:
    InputError: nothing is there, it is damaged, or of another network.
  """
  source = weights.locate(source)
  if not places.at(source).is_dir():
    options = dict(entry=entry, network=network, report=report)
    told = weights.describe(source) or {}
    return weights.read(source, **options), told.get('weights', 'weights')
  if entry:
    raise InputError(f'{source} is a run, which has no entry {entry!r}')
  saved, kind = read_run(source, report=report)
  told = origin.untold(network_of(source))
  origin.compare(source, told, 'its config', network)
  return state_dict.to_state_dict(saved), kind


def load(
    source: str,
    variables: Mapping[str, Any],
    *,
    skip: Sequence[str] = (),
    report: Report = print,
    **options: Any,
) -> dict[str, Any]:
  """Returns a network's variables with the values of another run or a file.

  Args:
    source: as in `read`.
    variables: tree of arrays, fresh from the network: 'params', 'batch_stats'.
    skip: modules that keep their values, such as 'head' for other classes.
    report: called with a line for what was read, and what was not.
    **options: entry and network, as in `read`.

  Returns:
    A tree as `variables`, of its dtypes, with arrays on the host.

  Raises:
    InputError: as in `read`, or it is of another network.
  """
  variables = jax.device_get(variables)
  flat: dict[Any, Any] = traverse_util.flatten_dict(variables)
  for name in skip:
    if not any(_is_below(path, [name]) for path in flat):
      modules = {path[1] for path in flat}
      raise unknown_name('module in config.init_skip', name, modules)
  arrays, kind = read(source, report=report, **options)
  report(f'starting from the {kind} in {source}')
  allowed = weights.in_aw_branch
  if (of_backbone := _as_backbone(arrays, variables)) is not None:
    report(
        f'{source} is of a network for classification: the backbone takes it, '
        f'without {HEAD!r}'
    )
    arrays = of_backbone

    def allowed(path):
      inside = _is_below(path.split('/'), [BACKBONE])
      return not inside or weights.in_aw_branch(path)

  table = names.table(variables).items()
  skipped = [name for name, entry in table if _is_below(entry.path, skip)]
  skipped += names.counters(skipped)
  kept = {p: leaf for p, leaf in flat.items() if not _is_below(p, skip)}
  loaded = state_dict.from_state_dict(
      {name: a for name, a in arrays.items() if name not in skipped},
      traverse_util.unflatten_dict(kept),
      allow_missing=allowed,
      source=f'config.init_from={str(source)!r}',
  )
  loaded = flat | traverse_util.flatten_dict(loaded)
  taken = sum(loaded[path] is not flat[path] for path in flat)
  counts = f'{taken} of {len(flat)} arrays are from there'
  report(f'init_from={source}: {counts}; the others keep their first values')
  return traverse_util.unflatten_dict(loaded)


def fixed_at_random(first: Any, params: Any, frozen: Any) -> list[str]:
  """Returns the paths of kernels that are frozen as they were drawn.

  These are the drawn parameters, those to start with, and `optim.is_frozen`.
  """

  def fixed(keep, now, drawn):
    # Scales and biases begin as ones and zeros in most weights.
    return keep and np.ndim(now) > 1 and np.array_equal(now, drawn)

  flags = jax.tree.map(fixed, frozen, *jax.device_get((params, first)))
  flat = traverse_util.flatten_dict(flags, sep='/')
  return [path for path, flag in flat.items() if flag]
