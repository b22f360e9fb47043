"""Checkpoints that are verified: Orbax writes and reads, a digest decides.

Orbax has no checksums: a flipped bit restores silently as another number, and
its newest step may be half a step. So every checkpoint carries the SHA-256 of
all it holds, and one that does not match is set aside for the one before it.
"""

from collections.abc import Callable
import functools
import hashlib
import itertools
import json
import os
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from awconv_jax.errors import InputError


class Checkpointer:
  """Keeps the newest checkpoints of one training run.

  Layout: `<directory>/<step>` per checkpoint and `<directory>_damaged/<step>`
  for what could not be trusted; nothing is ever deleted from the latter.

  With several processes every method is called by all of them, the directory
  is shared, and the state as well as the iterator state is the same on all.
  """

  def __init__(
      self,
      directory: str | os.PathLike,
      *,
      keep: int,
      report: Callable[[str], object] = print,
  ):
    """Opens the directory, creating it if needed.

    Args:
      directory: where the checkpoints lie, such as `<workdir>/checkpoints`.
      keep: how many of the newest to keep; at least 2, as the newest may turn
        out to be damaged.
      report: called with one line for each damaged checkpoint set aside.
    """
    # Orbax takes absolute paths only.
    self._directory = pathlib.Path(directory).absolute()
    self._keep = keep
    self._report = report
    self._open()

  def _open(self) -> None:
    """(Re)opens Orbax's manager, which remembers the steps it found."""
    self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            # Otherwise a damaged step can already fail here.
            lightweight_initialize=True,
        ),
    )

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def close(self) -> None:
    """Waits for the last save and lets go of the directory.

    Raises:
      Exception: the last save failed.
    """
    try:
      self.wait()
    finally:
      self._manager.close()

  def wait(self) -> None:
    """Returns once the last save is complete; raises what made it fail."""
    self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """Returns the steps on disk, oldest first, damaged ones included."""
    # Not Orbax's list, which leaves out some of the damaged and is not told
    # of what others move. Its unfinished saves have names with a suffix.
    return sorted(
        int(entry.name)
        for entry in self._directory.iterdir()
        if entry.name.isdecimal() and entry.is_dir()
    )

  def save(self, step: int, state: Any, iterator_state: dict) -> None:
    """Saves in the background; the arrays may be donated once this returns.

    Args:
      step: training steps done so far, more than in any checkpoint there.
      state: pytree of replicated arrays (any shape); no typed PRNG keys.
      iterator_state: position of the data iterator, as JSON can hold it; only
        that of process 0 is kept.

    Raises:
      Exception: the save before this one failed.
    """
    self.wait()
    leaves = _to_host(state)
    # To what JSON gives back (string keys, lists), or digests would differ.
    iterator_state = json.loads(json.dumps(iterator_state))
    meta = {
        'digest': _digest(step, leaves, iterator_state),
        'leaves': _describe(leaves),
        'iterator_state': iterator_state,
    }
    # Orbax cannot store empty arrays: `meta` alone is enough for those.
    arrays = {name: leaf for name, leaf in leaves.items() if leaf.size}
    self._manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)
        ),
        force=True,  # Without it Orbax may skip a save and only return False.
    )

  def restore_latest(self, template: Any) -> tuple[int, Any, dict] | None:
    """Restores the newest checkpoint whose contents match their digest.

    Newer ones that do not are reported and moved to `<directory>_damaged`.

    Args:
      template: pytree of `jax.Array` or `jax.ShapeDtypeStruct`, as saved; its
        shardings are those of the result (default device where it has none).

    Returns:
      (step, state, iterator state), or None if there is no checkpoint at all.

    Raises:
      InputError: all checkpoints are damaged, or they are of another model;
        nothing is moved then.
    """
    self.wait()
    step, damaged = self._newest_before(None), []
    while step is not None:
      found, reason = self._read_everywhere(step)
      if found is not None:
        state = self._place(step, found['leaves'], template)
        self._set_aside(damaged, step)
        return step, state, found['iterator_state']
      damaged.append((step, reason))
      step = self._newest_before(step)
    if not damaged:
      return None
    named = '; '.join(f'{step}: {reason}' for step, reason in damaged)
    raise InputError(
        f'every checkpoint in {self._directory} is damaged ({named}); put back'
        ' a good copy, or move the directory away to train from the start'
    )

  def read(self, step: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint by name, without a template.

    Args:
      step: one of `steps()`.

    Returns:
      Arrays on the host by path, such as 'params/head/kernel'.

    Raises:
      InputError: the step is not there, or damaged.
    """
    self.wait()
    found, reason = self._read_everywhere(step)
    if found is None:
      raise InputError(
          f'cannot read checkpoint {step} in {self._directory}: {reason}; '
          f'there are: {", ".join(map(str, self.steps())) or "none"}'
      )
    return found['leaves']

  def _newest_before(self, bound: int | None) -> int | None:
    """Returns the newest step below `bound`, the same on all processes."""
    steps = [step for step in self.steps() if bound is None or step < bound]
    # File systems may show each process another listing: process 0 decides.
    newest = int(_from_first_process(max(steps, default=-1)))
    return None if newest < 0 else newest

  def _read_everywhere(self, step: int) -> tuple[dict | None, str]:
    """Returns the contents if good on all processes, else None and why."""
    found, reason = None, 'other processes could not read it'
    try:
      found = self._read(step)
    except MemoryError:
      raise
    except Exception as error:  # Whatever Orbax says of bytes that are wrong.
      reason = (str(error) or repr(error)).splitlines()[0][:200]
    good = _all_processes(found is not None)
    return (found, '') if good else (None, reason)

  def _read(self, step: int) -> dict:
    """Reads one step; without barriers, as it may fail on one process only.

    Args:
      step: the step to read.

    Returns:
      'leaves' (name to host array), 'iterator_state' and 'digest'.

    Raises:
      Exception: anything at all is wrong with it.
    """
    folder = self._directory / str(step)
    meta = ocp.JsonCheckpointHandler().restore(folder / 'meta')
    leaves = ocp.PyTreeCheckpointHandler().restore(folder / 'state')
    for name, dtype, shape in meta['leaves']:
      if 0 in shape:
        leaves[name] = np.zeros(shape, jnp.dtype(dtype))
    leaves = {name: leaves[name] for name in sorted(leaves)}
    if meta['digest'] != _digest(step, leaves, meta['iterator_state']):
      raise ValueError('its contents do not match their digest')
    return {**meta, 'leaves': leaves}

  def _place(self, step: int, leaves: dict, template: Any) -> Any:
    """Returns `leaves` in the structure and the shardings of `template`."""
    wanted, treedef = _named_leaves(template)
    there, here = _shapes(leaves), _shapes(wanted)
    for name in [*here, *there]:
      if there.get(name) != here.get(name):
        raise InputError(
            f'checkpoint {step} in {self._directory} is of another model:'
            f' {name} is {there.get(name, "absent")} there and'
            f' {here.get(name, "absent")} in this run; use the config it was'
            ' saved with or another workdir'
        )
    return treedef.unflatten(
        _to_device(leaves[name], like) for name, like in wanted.items()
    )

  def _set_aside(self, damaged: list[tuple[int, str]], step: int) -> None:
    """Moves damaged steps out of the way of `step`, in the first process."""
    if not damaged:
      return
    self._manager.close()
    if jax.process_index() == 0:
      for bad, reason in damaged:
        target = self._damaged_path(bad)
        target.parent.mkdir(exist_ok=True)
        (self._directory / str(bad)).rename(target)
        self._report(
            f'checkpoint {bad} in {self._directory} is damaged ({reason}); '
            f'moved to {target}; using checkpoint {step}'
        )
    _all_processes(True)  # No process may list the steps before the moves.
    self._open()

  def _damaged_path(self, step: int) -> pathlib.Path:
    """Returns a path that nothing has yet for a damaged step."""
    parent = self._directory.with_name(f'{self._directory.name}_damaged')
    names = itertools.chain(
        [str(step)], (f'{step}.{n}' for n in itertools.count(1))
    )
    return next(parent / n for n in names if not (parent / n).exists())


def _named_leaves(tree: Any) -> tuple[dict[str, Any], Any]:
  """Returns leaves by name ('params/conv1/kernel') and the tree structure."""
  paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
  keystr = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
  return {keystr(path): leaf for path, leaf in paths}, treedef


def _to_host(state: Any) -> dict[str, np.ndarray]:
  """Returns copies, sorted by name, that donation cannot reach."""
  named, _ = _named_leaves(state)
  for name, leaf in named.items():
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
      named[name] = leaf.addressable_data(0)
  # On CPU np.asarray would be a view of the device's own buffer, and nothing
  # promises that JAX goes on sparing buffers with views from donation.
  return {name: np.array(named[name], copy=True) for name in sorted(named)}


def _describe(leaves: dict[str, np.ndarray]) -> list:
  """Returns [name, dtype, shape] of all leaves, as JSON can hold it."""
  return [[k, str(v.dtype), list(v.shape)] for k, v in leaves.items()]


def _shapes(leaves: dict[str, Any]) -> dict[str, str]:
  """Returns each leaf's 'float32[3, 4]'."""
  return {k: f'{v.dtype}{list(v.shape)}' for k, v in leaves.items()}


def _digest(step: int, leaves: dict[str, np.ndarray], iterator_state) -> str:
  """Returns the SHA-256 over names, dtypes, shapes, bytes and the rest."""
  contents = [step, _describe(leaves), iterator_state]
  digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode())
  for leaf in leaves.values():
    # As bytes, since bfloat16 has no buffer protocol.
    digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
  return digest.hexdigest()


def _to_device(leaf: np.ndarray, like: Any) -> jax.Array:
  """Places a host array [...] as `like` is, from every process's own copy."""
  sharding = getattr(like, 'sharding', None)
  if sharding is None:
    return jnp.array(leaf)
  return jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: leaf[index]
  )


def _from_first_process(value: int) -> Any:
  """Returns process 0's value on all processes."""
  if jax.process_count() == 1:
    return value
  return multihost_utils.broadcast_one_to_all(np.int32(value))


def _all_processes(value: bool) -> bool:
  """Returns whether `value` holds on all processes; waits for all of them."""
  if jax.process_count() == 1:
    return value
  return bool(np.all(multihost_utils.process_allgather(np.array(value))))
