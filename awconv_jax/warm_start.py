"""Starts a run with the weights of another network: `config.init_from`.

A network with AW-convolutions takes those of the plain one; its attention
branches, which that does not have, keep their first values. With the gate
'tanh' and `identity_start` it then computes exactly what the plain one does.
"""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from awconv_jax import checkpoint, errors, surgery, weights
from awconv_jax.weights import names, state_dict

Report = Callable[[str], object]


def _is_skipped(path: Sequence[str], skip: Sequence[str]) -> bool:
  """Returns whether a path below its collection is one of those to skip."""
  own = '/'.join(path[1:])
  return any(own == s or own.startswith(f'{s}/') for s in skip)


def _read_file(path, variables, kept, skip, report):
  """Returns the kept variables with the values of a file."""
  arrays = weights.read(path, report=report)
  skipped = [
      name
      for name, entry in names.table(variables).items()
      if _is_skipped(entry.path, skip)
  ]
  skipped += names.counters(skipped)
  arrays = {name: a for name, a in arrays.items() if name not in skipped}
  return state_dict.from_state_dict(
      arrays,
      kept,
      allow_missing=weights.in_aw_branch,
      source=f'config.init_from={str(path)!r}',
  )


def _newest(directory: pathlib.Path, report: Report):
  """Returns the arrays of the newest checkpoint in good order, and its step."""
  steps, reasons = [], []
  # Looked at first, as the checkpointer would make it.
  if directory.is_dir():
    with checkpoint.Checkpointer(directory, keep=2) as checkpointer:
      steps = checkpointer.steps()
      for step in reversed(steps):
        try:
          return checkpointer.read(step), step
        except errors.InputError as error:
          reasons.append(str(error))
          report(f'{error}; trying the one before it')
  why = '; '.join(reasons) or 'there is none'
  raise errors.InputError(f'no checkpoint in good order in {directory}: {why}')


def read_run(workdir: str | os.PathLike, *, report: Report = print):
  """Returns the variables of a run's newest checkpoint, and what they are.

  Args:
    workdir: directory of the run; its averages are read, if it has them.
    report: called with a line for each damaged checkpoint that is passed over.

  Returns:
    The tree 'params', 'batch_stats' of arrays on the host, and such as
    'averages of step 400'.

  Raises:
    InputError: there is no checkpoint in good order.
  """
  arrays, step = _newest(pathlib.Path(workdir) / 'checkpoints', report)
  averaged = any(name.startswith('ema/') for name in arrays)
  found = {}
  for name, array in arrays.items():
    place, _, rest = name.partition('/')
    if averaged and place == 'ema' or not averaged and place == 'model_state':
      found[tuple(rest.split('/'))] = array
    elif not averaged and place == 'params':
      found[tuple(name.split('/'))] = array
  kind = 'averages' if averaged else 'weights'
  return traverse_util.unflatten_dict(found), f'{kind} of step {step}'


def _read_run(directory, kept, skip, report):
  """Returns the kept variables with those of a run."""
  variables, kind = read_run(directory, report=report)
  report(f'starting from the {kind} in {directory}')
  found = {
      path: array
      for path, array in traverse_util.flatten_dict(variables).items()
      if not _is_skipped(path, skip)
  }
  try:
    return surgery.merge_variables(kept, traverse_util.unflatten_dict(found))
  except ValueError as error:
    raise errors.InputError(
        f'config.init_from={str(directory)!r} is of another network: {error}'
    ) from error


def load(
    source: str,
    variables: Mapping[str, Any],
    *,
    skip: Sequence[str] = (),
    report: Report = print,
) -> dict[str, Any]:
  """Returns a network's variables with the values of another run or a file.

  Args:
    source: a run's directory, or a file that `weights.read` takes, such as
      resnet50.safetensors.
    variables: tree of arrays, fresh from the network: 'params', 'batch_stats'.
    skip: modules that keep their values, such as 'head' for other classes.
    report: called with a line for what was read, and what was not.

  Returns:
    A tree as `variables`, of its dtypes, with arrays on the host.

  Raises:
    InputError: nothing is there, it is damaged, or of another network; names
      all that is missing, unknown or of another shape.
  """
  variables = jax.device_get(variables)
  flat = traverse_util.flatten_dict(variables)
  own = {path for path in flat if _is_skipped(path, skip)}
  for name in skip:
    if not any(_is_skipped(path, [name]) for path in own):
      modules = {path[1] for path in flat}
      raise errors.unknown_name('module in config.init_skip', name, modules)
  kept = traverse_util.unflatten_dict(
      {path: leaf for path, leaf in flat.items() if path not in own}
  )
  path = pathlib.Path(source)
  if not path.exists():
    raise errors.InputError(
        f'config.init_from={str(source)!r}: there is no file and no run there'
    )
  if path.is_dir():
    loaded = _read_run(path, kept, skip, report)
  else:
    loaded = _read_file(path, variables, kept, skip, report)
  loaded = traverse_util.flatten_dict(loaded)
  same = sum(loaded[path] is flat[path] for path in loaded)
  report(
      f'init_from={source}: {len(loaded) - same} of {len(flat)} arrays are '
      'from there; the others keep their first values'
  )
  return traverse_util.unflatten_dict(
      {
          p: np.asarray(loaded.get(p, leaf), leaf.dtype)
          for p, leaf in flat.items()
      }
  )
