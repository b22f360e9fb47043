"""Data parallelism: one mesh axis, the batch sharded, the state replicated.

The loop is compiled by `jax.jit` over a mesh with the axis 'data'. Batch norm
then sees the global batch (also known as SyncBN), and every process computes
the same metrics.
"""

from collections.abc import Callable, Mapping
import functools
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
  """Joins the processes of a run, if there are several.

  Args:
    coordinator: address of process 0, 'host:port'.
    num_processes: how many processes the run has.
    process_id: which one this is, from 0.

  Without arguments the processes are found as `jax.distributed` detects them
  under SLURM and on Cloud TPU; a single process joins nothing.

  Raises:
    InputError: only some of the three are given, or they cannot be right.
  """
  given = (coordinator, num_processes, process_id)
  if given == (None, None, None):
    if _several_processes_detected():
      jax.distributed.initialize()
    return
  port = str(coordinator).rpartition(':')[2]
  if None in given or not (port.isdigit() and 0 <= process_id < num_processes):
    raise InputError(
        f'--coordinator={coordinator} --num_processes={num_processes} '
        f'--process_id={process_id}: several processes need all three, '
        'host:port and an id from 0 to below the number'
    )
  jax.distributed.initialize(*given)


def _several_processes_detected() -> bool:
  """Returns whether this process is one of several under SLURM or on TPU."""
  if 'SLURM_PROCID' in os.environ:
    return int(os.environ.get('SLURM_NTASKS', '1')) > 1
  # `libtpu` is installed on Cloud TPU only; there JAX asks the metadata server.
  has_tpu = importlib.util.find_spec('libtpu') is not None
  return has_tpu and os.environ.get('JAX_PLATFORMS', 'tpu').startswith('tpu')


def sync_errors(function: Callable[[], Any]) -> Any:
  """Returns what a function does in this process; a failure of one is of all.

  Without this the others would wait for the one that failed. The function must
  not wait for other processes.

  Raises:
    ReportedError: the first process's that failed.
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


def check_batch_size(
    name: str, batch_size: int, mesh: Mesh, parts: int = 1
) -> None:
  """Raises InputError if devices cannot share a batch, or its parts, evenly."""
  shards = mesh.size * parts
  if batch_size % shards:
    nearest = max(round(batch_size / shards), 1) * shards
    times = f' times config.accumulation_steps={parts}' if parts > 1 else ''
    raise InputError(
        f'{name}={batch_size} is not divisible by the {mesh.size} devices of '
        f'this run{times}; take {nearest}, for example'
    )


def shard_batch(
    mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """Returns the global arrays, [B, ...], in the order of the processes.

  Args:
    mesh: over all devices.
    batch: this process's rows of every array, [B / processes, ...].
  """
  place = functools.partial(
      jax.make_array_from_process_local_data, over_batch(mesh)
  )
  return {name: place(rows) for name, rows in batch.items()}
