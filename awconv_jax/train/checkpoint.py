"""Checkpoints that are verified: Orbax writes and reads, a digest decides.

Orbax has no checksums: a flipped bit restores silently as another number, and
its newest step may be half a step. So every checkpoint carries the SHA-256 of
all it holds, and one that does not match is set aside for the one before it.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import sys
from typing import Any

from absl import logging as absl_logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from awconv_jax import places
from awconv_jax.errors import InputError, first_line
from awconv_jax.train import partition

# Orbax looks for its own files by a pattern that begins with the path, and
# takes what ends in a colon for the name of another file system.
_UNUSABLE = re.compile(r'[*?\[\\]|:/')
# What Orbax appends must fit into what Linux takes.
_MOST_BYTES = 3900
_END = 2**31  # Of steps.
_FINISHED = 'commit_success.txt'


def check_place(directory: str | os.PathLike) -> None:
  """Raises InputError if Orbax could not read again what it writes there."""
  path = os.fspath(directory)
  if not places.in_bucket(path):
    path = os.path.abspath(path)
  if found := _UNUSABLE.search(path.removeprefix('gs://')):
    fault = f'has {found[0]!r} in its path'
  elif any('\udc80' <= letter <= '\udcff' for letter in path):
    fault = 'has a path that is not UTF-8'
  elif len(os.fsencode(path)) > _MOST_BYTES:
    fault = f'has a path of over {_MOST_BYTES} bytes'
  else:
    return
  raise InputError(
      f'the workdir of {path!r} {fault}, with which checkpoints cannot be read '
      'again; take another directory, or rename it'
  )


def steps_in(directory: pathlib.Path) -> list[int]:
  """Returns the steps that a directory has, oldest first, damaged or not."""
  # Not Orbax's list, which leaves out some of the damaged and is not told
  # of what others move. Its unfinished saves have names with a suffix.
  names = _names_in(directory)
  numbers = {int(name) for name in names if name.isdecimal()}
  found = sorted(n for n in numbers if str(n) in names and n < _END)
  if places.in_bucket(directory):  # Where it marks what is finished.
    found = [n for n in found if (directory / str(n) / _FINISHED).exists()]
  return found


def _names_in(directory: pathlib.Path) -> list[str]:
  return (
      [path.name for path in directory.iterdir()] if directory.exists() else []
  )


def records(directory: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the records of checkpoints, oldest first; unverified ones.

  They are what `Checkpointer` was given; what is damaged may have none.
  """
  found = []
  for step in steps_in(directory):
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError, RecursionError
    ):
      found.append(_read_meta(directory / str(step))['record'])
  return [record for record in found if isinstance(record, dict)]


class Checkpointer(contextlib.AbstractContextManager):
  """Keeps the newest checkpoints of a run in `<directory>/<step>`.

  What cannot be trusted goes to `<directory>_damaged/<step>`, and stays there.

  With several processes every method is called by all of them, the directory
  is shared, and the state, the iterator state and the record are the same on
  all.

  Attributes:
    record: what the states belong to, as JSON can hold it; see `records`.
  """

  def __init__(
      self,
      directory: str | os.PathLike,
      *,
      keep: int,
      report: Callable[[str], object] = print,
      record: Mapping[str, Any] | None = None,
  ):
    """Opens the directory, creating it if needed.

    Args:
      directory: `<workdir>/checkpoints`.
      keep: how many of the newest; at least 2, as one may turn out damaged.
      report: called with one line for each damaged checkpoint set aside.
      record: see the attribute.

    Raises:
      InputError: see `check_place`.
    """
    check_place(directory)
    # Orbax takes absolute paths only.
    self._directory = places.whole(directory)
    self._report, self.record = report, record
    self._has_read_back = False
    if getattr(sys.unraisablehook, 'func', None) is not _tell_unraisable:
      hook = functools.partial(_tell_unraisable, sys.unraisablehook)
      sys.unraisablehook = hook
    absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        # Otherwise a damaged step can already fail here.
        lightweight_initialize=True,
        # One that cannot be made would be waited for, five minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with self._writing():
      self._manager = ocp.CheckpointManager(self._directory, options=options)

  def __exit__(self, *exception) -> None:
    """Waits for the last save, as `wait`, and lets go of the directory."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def wait(self) -> None:
    """Returns once the last save is complete; InputError if it failed."""
    with self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except MemoryError:
      raise
    except Exception as error:  # Whatever Orbax says of a place.
      raise InputError(
          f'a checkpoint cannot be written in {self._directory}: '
          f'{_reason(error)}; those before it are as they were'
      ) from error

  def steps(self) -> list[int]:
    """Waits, and returns the steps on disk, oldest first, damaged ones, too."""
    self.wait()
    return steps_in(self._directory)

  def save(self, step: int, state: Any, iterator_state: dict) -> None:
    """Saves in the background; the arrays may be donated once this returns.

    The first one is complete then, and was read back.

    Args:
      step: steps taken, more than in any checkpoint there.
      state: pytree of arrays (any shape and sharding); no typed PRNG keys.
      iterator_state: position of the data iterator, as JSON can hold it; only
        that of process 0 is kept.

    Raises:
      InputError: this save, or the one before it, cannot be written, or read.
    """
    self.wait()
    in_bucket = places.in_bucket(self._directory)
    # Orbax would make another.
    if not in_bucket and not self._directory.is_dir():
      raise InputError(f'{str(self._directory)!r} has gone while training')
    leaves = _to_host(state)
    # What JSON gives back (string keys, lists), or digests would differ.
    beside = json.loads(json.dumps((iterator_state, self.record)))
    iterator_state, record = beside
    meta = {
        'digest': _digest(step, leaves, *beside),
        'leaves': _listed(leaves),
        'iterator_state': iterator_state,
        'record': record,
    }
    # Orbax cannot store empty arrays: `meta` alone is enough for those.
    arrays = {name: leaf for name, leaf in leaves.items() if leaf.size}
    args = ocp.args.Composite(
        state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)
    )
    with self._writing():
      # Without `force` Orbax may skip a save and only return False.
      self._manager.save(step, args=args, force=True)
    if not self._has_read_back:
      # A place that does not keep what it is given must not cost a whole run.
      try:
        same = self.read(step)['digest'] == meta['digest']
      except InputError as error:
        raise InputError(f'{error}, as soon as it was written') from error
      if not same:
        raise InputError(f'{self._directory} has checkpoints of another run')
      self._has_read_back = True

  def restore_latest(
      self, template: Any, check: Callable[[Any], object] = lambda record: None
  ) -> tuple[int, Any, dict] | None:
    """Restores the newest checkpoint whose contents match their digest.

    Newer ones that do not are reported and moved to `<directory>_damaged`.

    Args:
      template: pytree of `jax.Array` or `jax.ShapeDtypeStruct`, as saved; its
        shardings are those of the result (default device where it has none).
      check: called with the record, None if it has none; may raise InputError.

    Returns:
      (step, state, iterator state), or None if there is no checkpoint at all.

    Raises:
      InputError: all are damaged, or of another model, or `check` raises it;
        nothing is moved then.
    """
    steps = self.steps()
    for name in _names_in(self._directory):
      if name.isdecimal() and name not in map(str, steps):
        path, why = self._directory / name, 'is not named as checkpoints are'
        if places.in_bucket(path) and str(int(name)) == name:
          why = 'was not finished'
        self._report(f'{path} {why}, and does not count')
    damaged = {}
    while True:
      # File systems may show each process another listing: process 0 decides.
      newest = max(set(self.steps()) - damaged.keys(), default=-1)
      step = int(multihost_utils.broadcast_one_to_all(np.int32(newest)))
      if step < 0:
        break
      try:
        found = self.read(step)
      except InputError as error:
        damaged[step] = str(error)
        continue
      check(found.get('record'))
      state = self._place(step, found['leaves'], template)
      self._set_aside(damaged, step)
      return step, state, found['iterator_state']
    if damaged:
      reasons = '; '.join(damaged.values())
      raise InputError(f'{reasons}; put a good one there, or move all away')
    return None

  def read(self, step: int) -> dict[str, Any]:
    """Returns 'leaves', arrays by 'params/head/kernel', and 'iterator_state'.

    Raises:
      InputError: on some process, the step is absent or damaged.
    """
    self.wait()
    found, reason = None, 'other processes could not read it'
    try:
      found = self._read(step)
    except MemoryError:
      raise
    except Exception as error:  # Whatever Orbax says of bytes that are wrong.
      reason = _reason(error)
    if _all_processes(found is not None):
      return found
    where = f'checkpoint {step} in {self._directory}'
    raise InputError(f'{where} is damaged or absent ({reason})')

  def _read(self, step: int) -> dict:
    """Reads a step, or raises anything; without barriers, as one may fail."""
    folder = self._directory / str(step)
    meta = _read_meta(folder)
    leaves = ocp.PyTreeCheckpointHandler().restore(folder / 'state')
    for name, dtype, shape in meta['leaves']:
      if 0 in shape:
        leaves[name] = np.zeros(shape, jnp.dtype(dtype))
    leaves = {name: leaves[name] for name in sorted(leaves)}
    extra = meta['iterator_state'], meta.get('record')
    if meta['digest'] != _digest(step, leaves, *extra):
      raise ValueError('its contents do not match their digest')
    return {**meta, 'leaves': leaves}

  def _place(self, step: int, leaves: dict, template: Any) -> Any:
    """Returns `leaves` in the structure and the shardings of `template`."""
    wanted, treedef = _named_leaves(template)
    there, here = (
        {name: f'{dtype}{shape}' for name, dtype, shape in _listed(x)}
        for x in (leaves, wanted)
    )
    for name in [*here, *there]:
      if there.get(name) != here.get(name):
        raise InputError(
            f'checkpoint {step} in {self._directory} is of another model: '
            f'{name} is {there.get(name, "absent")} there and '
            f'{here.get(name, "absent")} here; take its config or a new workdir'
        )
    return treedef.unflatten(
        jnp.array(leaves[name])
        if getattr(like, 'sharding', None) is None
        else jax.make_array_from_callback(
            like.shape, like.sharding, leaves[name].__getitem__
        )
        for name, like in wanted.items()
    )

  def _set_aside(self, damaged: dict[int, str], step: int) -> None:
    """Moves damaged steps out of the way of `step`, in the first process."""
    if not damaged:
      return
    aside = self._directory.with_name(f'{self._directory.name}_damaged')
    for bad, reason in damaged.items() if jax.process_index() == 0 else ():
      names = [str(bad), *(f'{bad}.{n}' for n in range(1, 1000))]
      target = next(aside / n for n in names if not (aside / n).exists())
      places.move(self._directory / str(bad), target)
      self._report(f'{reason}; moved to {target}; using checkpoint {step}')
    _all_processes(True)  # No process may list the steps before the moves.
    self._manager.reload()


def _read_meta(folder: pathlib.Path) -> dict[str, Any]:
  return ocp.JsonCheckpointHandler().restore(folder / 'meta')


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
  """Leaves out its tracebacks of what it raises as well."""
  return '/orbax/' not in record.pathname


def _tell_unraisable(hook: Callable[[Any], object], fault: Any) -> None:
  """Hands on what Python cannot raise.

  But of reads that Orbax leaves behind when one beside them fails.
  """
  if str(fault.exc_value) != 'Event loop is closed':
    hook(fault)


def _reason(error: Exception) -> str:
  """Returns what went wrong in a few words: those of the system, if it was."""
  number = re.search(r"os_error_code='(\d+)'", str(error))
  number = int(number[1]) if number else getattr(error, 'errno', None)
  if number:
    return os.strerror(number)
  return first_line(error)


def _named_leaves(tree: Any) -> tuple[dict[str, Any], Any]:
  """Returns leaves by name ('params/conv1/kernel') and the tree structure."""
  paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
  keystr = jax.tree_util.keystr
  return {keystr(p, simple=True, separator='/'): x for p, x in paths}, treedef


def _to_host(state: Any) -> dict[str, np.ndarray]:
  """Returns copies, sorted by name, that donation cannot reach."""
  named, _ = _named_leaves(partition.to_host(state))
  for name, leaf in named.items():
    # On CPU it may be a view of the device's own buffer, and nothing promises
    # that JAX goes on sparing buffers with views from donation.
    named[name] = np.array(leaf, copy=True)
  return dict(sorted(named.items()))


def _listed(leaves: dict[str, np.ndarray]) -> list:
  """Returns [name, dtype, shape] of all leaves, as JSON can hold it."""
  return [[k, str(v.dtype), list(v.shape)] for k, v in leaves.items()]


def digest(step: int, state: Any, iterator_state: dict) -> str:
  """Returns a hash of a state and of where its data stand."""
  return _digest(step, _to_host(state), iterator_state, None)


def _digest(
    step: int, leaves: dict[str, np.ndarray], iterator_state: Any, record: Any
) -> str:
  """Returns the SHA-256 over names, dtypes, shapes, bytes and the rest."""
  contents = [step, _listed(leaves), iterator_state]
  if record is not None:  # Older checkpoints have none.
    contents.append(record)
  digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode())
  for leaf in leaves.values():
    # As bytes, since bfloat16 has no buffer protocol.
    digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
  return digest.hexdigest()


def _all_processes(value: bool) -> bool:
  """Returns whether `value` holds on all processes; waits for all of them."""
  return bool(np.all(multihost_utils.process_allgather(np.array(value))))
