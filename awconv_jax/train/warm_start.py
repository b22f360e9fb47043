"""Starts a run with the weights of another network: `config.init_from`.

A network with AW-convolutions takes those of the plain one; its attention
branches, which that does not have, keep their first values. With the gate
'tanh' and `identity_start` it then computes exactly what the plain one does.

A detector starts from another detector or, its backbone alone, from a network
for classification, without the head of that.
"""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from awconv_jax import errors, surgery, weights
from awconv_jax.train import checkpoint
from awconv_jax.weights import names, state_dict

Report = Callable[[str], object]
# Modules: of a detector, the network that it is over; of that, what a backbone
# is without.
BACKBONE, HEAD = 'backbone', 'head'


def _is_skipped(path: Sequence[str], skip: Sequence[str]) -> bool:
  """Returns whether a path below its collection is one of those to skip."""
  own = '/'.join(path[1:])
  return any(own == s or own.startswith(f'{s}/') for s in skip)


def _is_of_backbone(path: Sequence[str]) -> bool:
  return path[1] == BACKBONE


def _tell_backbone(source: Any, report: Report) -> None:
  report(
      f'{source} is of a network for classification: the backbone takes it, '
      f'without {HEAD!r}'
  )


def _as_backbone(
    arrays: Mapping[str, Any], variables: Any
) -> dict[str, Any] | None:
  """Returns a plain network's arrays by their names in a detector.

  Args:
    arrays: of a file, by torch's names.
    variables: of the network that starts.

  Returns:
    The arrays without the head's; None if they are those of a detector, or if
    none is started.
  """
  prefix, head = (f'{names.module(name)}.' for name in (BACKBONE, HEAD))
  known = names.table(variables).keys()
  renamed = {
      f'{prefix}{name}': array
      for name, array in arrays.items()
      if not name.startswith(head)
  }
  fits = known & renamed.keys() and not known & arrays.keys()
  return renamed if fits else None


def _read_file(path, variables, kept, skip, report):
  """Returns the kept variables with the values of a file."""
  arrays = weights.read(path, report=report)
  allowed = weights.in_aw_branch
  of_backbone = _as_backbone(arrays, variables)
  if of_backbone is not None:
    _tell_backbone(path, report)
    arrays = of_backbone

    def allowed(name):
      outside = not _is_of_backbone(name.split('/'))
      return outside or weights.in_aw_branch(name)

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
      allow_missing=allowed,
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
  found, kept = map(traverse_util.flatten_dict, (variables, kept))
  taking = kept
  if any(map(_is_of_backbone, kept)) and not any(map(_is_of_backbone, found)):
    _tell_backbone(directory, report)
    found = {
        (path[0], BACKBONE, *path[1:]): array
        for path, array in found.items()
        if path[1] != HEAD
    }
    taking = {p: leaf for p, leaf in kept.items() if _is_of_backbone(p)}
  found = {p: array for p, array in found.items() if not _is_skipped(p, skip)}
  try:
    taken = surgery.merge_variables(
        *map(traverse_util.unflatten_dict, (taking, found))
    )
  except ValueError as error:
    raise errors.InputError(
        f'config.init_from={str(directory)!r} is of another network: {error}'
    ) from error
  return traverse_util.unflatten_dict(kept | traverse_util.flatten_dict(taken))


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


def fixed_at_random(first: Any, params: Any, frozen: Any) -> list[str]:
  """Returns the paths of kernels that are frozen as they were drawn.

  Args:
    first: parameters as the network made them.
    params: the same tree, which training starts with.
    frozen: the same tree of bools, as of `optim.is_frozen`.
  """
  leaves = zip(
      jax.tree_util.tree_leaves_with_path(jax.device_get(params)),
      jax.tree.leaves(jax.device_get(first)),
      jax.tree.leaves(frozen),
      strict=True,
  )
  return [
      jax.tree_util.keystr(path, simple=True, separator='/')
      for (path, new), old, is_frozen in leaves
      # Scales and biases begin as ones and zeros in most weights.
      if is_frozen and new.ndim > 1 and np.array_equal(new, old)
  ]
