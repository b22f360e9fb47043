"""Data parallelism: one mesh axis, the batch sharded, the state replicated.

So batch norm sees the global batch (also known as SyncBN), and every process
computes the same metrics.
"""

from collections.abc import Callable, Mapping
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
import numpy as np

from awconv_jax.errors import InputError, ReportedError
from awconv_jax.ops.data_shards import DATA_AXIS


def initialize_distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
  """Joins the processes of a run: of `jax.distributed.initialize`'s arguments.

  Without any it finds the others under SLURM and on Cloud TPU; a single process
  joins nothing.

  Raises:
    InputError: only some of the three are given, or they cannot be right.
  """
  given = (coordinator, num_processes, process_id)
  if given == (None, None, None):
    if 'SLURM_PROCID' in os.environ:
      several = int(os.environ.get('SLURM_NTASKS', '1')) > 1
    else:  # Only Cloud TPU has it, where JAX asks the metadata server.
      platforms = os.environ.get('JAX_PLATFORMS', 'tpu')
      found = importlib.util.find_spec('libtpu') is not None
      several = found and platforms.startswith('tpu')
    if several:
      jax.distributed.initialize()
    return
  port = str(coordinator).rpartition(':')[2]
  if None in given or not (port.isdigit() and 0 <= process_id < num_processes):
    raise InputError(
        f'several processes need --coordinator=host:port, not {coordinator}, '
        f'and --process_id={process_id} from 0 to below {num_processes=}'
    )
  jax.distributed.initialize(*given)


def sync_errors(function: Callable[[], Any]) -> Any:
  """Returns what a function does; a `ReportedError` of one process is of all.

  Without this the others would wait for the one that failed. The function must
  not wait for other processes.
  """
  if jax.process_count() == 1:
    return function()
  result, message = None, b''
  try:
    result = function()
  except ReportedError as error:
    message = str(error).encode()
  room = np.zeros(2048, np.uint8)
  room[: len(message)] = np.frombuffer(message[: len(room)], np.uint8)
  for row in multihost_utils.process_allgather(room):
    if row.any():
      raise InputError(bytes(row).rstrip(b'\0').decode(errors='replace'))
  return result


def create_mesh() -> Mesh:
  """Returns the mesh over all devices of all processes."""
  # jax.make_mesh would give Explicit axes, which optax's losses do not take.
  return Mesh(np.array(jax.devices()), (DATA_AXIS,))


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
