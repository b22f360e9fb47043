"""Data parallelism: one mesh axis, the batch sharded, the state replicated.

So batch norm sees the global batch (also known as SyncBN), and every process
computes the same metrics. What no forward pass needs may be sharded, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
import numpy as np

from awconv_jax.errors import InputError
from awconv_jax.ops.data_shards import DATA_AXIS


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh over devices, all of all processes if none are given."""
  # jax.make_mesh would give Explicit axes, which optax's losses do not take.
  devices = jax.devices() if devices is None else devices
  return Mesh(np.array(devices), (DATA_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, jax.P())


def over_batch(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, jax.P(DATA_AXIS))


def sharded(mesh: Mesh, tree: Any) -> Any:
  """Returns the shardings of arrays of which each device holds its share.

  Each is cut along its longest axis that the devices can share evenly, the
  first of several; one that has none is replicated.

  Args:
    mesh: of all devices.
    tree: of arrays, or their shapes; the result has its structure.
  """

  def sharding(leaf):
    axes = [i for i, size in enumerate(leaf.shape) if size % mesh.size == 0]
    if leaf.ndim < 2 or leaf.size == 0 or not axes:
      return replicated(mesh)
    longest = max(axes, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, jax.P(*[None] * longest, DATA_AXIS))

  return jax.tree.map(sharding, tree)


def gathered(mesh: Mesh, tree: Any) -> Any:
  """Returns arrays replicated; those that are so already as they are."""
  return jax.device_put(tree, replicated(mesh))


def to_host(tree: Any) -> Any:
  """Returns arrays whole on the host, as `jax.device_get`.

  One by one where several processes have shards; all of them call it then.
  """

  def whole(leaf):
    if not isinstance(leaf, jax.Array) or (
        leaf.is_fully_addressable or leaf.is_fully_replicated
    ):
      return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.device_get(jax.tree.map(whole, tree))


def check_batch_size(name: str, size: int, mesh: Mesh, parts: int = 1) -> None:
  """Raises InputError if devices cannot share a batch, or its parts, evenly."""
  if size % (mesh.size * parts):
    times = f' times config.accumulation_steps={parts}' * (parts > 1)
    raise InputError(
        f'{name}={size} must be a multiple of {mesh.size * parts}, the '
        f'{mesh.size} devices of this run{times}'
    )


def check_batch_sizes(config: Any, mesh: Mesh) -> None:
  """Raises InputError if devices cannot share the batches of a run evenly."""
  parts = {'batch_size': config.accumulation_steps, 'eval_batch_size': 1}
  for key, number in parts.items():
    check_batch_size(f'config.{key}', config[key], mesh, number)


def shard_batch(
    mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """Returns global arrays, [B, ...], of each process's [B / processes, ...]."""
  return jax.make_array_from_process_local_data(over_batch(mesh), dict(batch))
