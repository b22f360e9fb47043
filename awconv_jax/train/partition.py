"""Data parallelism: one mesh axis, the batch sharded, the state replicated.

So batch norm sees the global batch (also known as SyncBN), and every process
computes the same metrics.
"""

from collections.abc import Mapping, Sequence

import jax
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


def check_batch_size(name: str, size: int, mesh: Mesh, parts: int = 1) -> None:
  """Raises InputError if devices cannot share a batch, or its parts, evenly."""
  if size % (mesh.size * parts):
    times = f' times config.accumulation_steps={parts}' * (parts > 1)
    raise InputError(
        f'{name}={size} must be a multiple of {mesh.size * parts}, the '
        f'{mesh.size} devices of this run{times}'
    )


def shard_batch(
    mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """Returns global arrays, [B, ...], of each process's [B / processes, ...]."""
  return jax.make_array_from_process_local_data(over_batch(mesh), dict(batch))
