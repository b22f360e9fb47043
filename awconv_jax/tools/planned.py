"""Compiles a program of a run for devices that are not there; see `plan`.

  python -m awconv_jax.tools.planned '{"config": {...}, ...}' FOLDER

Prints what the compiler says of it as a line of JSON. `compilers.alone` starts
it, in the environment in which the compiler has to be loaded.
"""

from importlib.metadata import version
import json
import math
import re
import sys
import time
from typing import Any

import jax

from awconv_jax import errors, macs, memory
from awconv_jax.compilers import alone, exchanges, topology
from awconv_jax.data import described
from awconv_jax.tools import plan
from awconv_jax.train import functions, partition, settings, step

_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def _shapes(config: Any, train: bool, batch_size: int) -> Any:
  batch = described.blank_batch(config.data, train=train, batch_size=batch_size)
  return jax.eval_shape(lambda batch: batch, batch)


def _bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_of_chip(tree: Any, shardings: Any) -> int:
  """Returns what each device holds of arrays, or of their shapes.

  `shardings` has one for each, or for all below it.
  """
  placed = jax.tree.leaves(jax.tree.broadcast(shardings, tree))
  return sum(
      math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf, sharding in zip(jax.tree.leaves(tree), placed, strict=True)
  )


def rest_of_state(mesh: Any, state: Any, shard: bool) -> int:
  """Returns what each device holds of a state beside what is evaluated.

  What of that is sharded stays, as it is gathered into arrays of its own.

  Args:
    mesh: of all devices.
    state: a `TrainState`, or its shapes.
    shard: `config.shard_state`.
  """
  whole = partition.replicated(mesh)
  placed = step.sharded(mesh, state) if shard else whole
  placed = jax.tree.broadcast(placed, state)
  pairs = zip(
      jax.tree.leaves(state.eval_variables()),
      jax.tree.leaves(placed.eval_variables()),
      strict=True,
  )
  used = [leaf for leaf, sharding in pairs if sharding.is_fully_replicated]
  return bytes_of_chip(state, placed) - bytes_of_chip(used, whole)


def _compile(lowered: Any, folder: str, chip: Any) -> dict[str, Any]:
  """Returns what the compiler says of a program."""
  start = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    # Such as 'Used 20.13G of 15.75G hbm', or '(480.00G) exceeds available HBM'.
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    wanted = re.search(r'(?:Used |\()([\d.]+)([KMGT])', str(error))
    needed = wanted and round(float(wanted[1]) * _UNITS[wanted[2]])
    seconds = time.perf_counter() - start
    return dict(memory=None, needed=needed, compile_seconds=seconds)
  text = compiled.as_text()
  sizes, needed = memory.of_program(compiled)
  costs: Any = compiled.cost_analysis() or {}  # There is none for CUDA.
  return dict(
      memory=sizes,
      needed=needed,
      flops=costs.get('flops'),
      bytes_accessed=costs.get('bytes accessed'),
      exchanges={
          kind: dict(number=len(given), bytes=sum(given))
          for kind, given in exchanges.sizes(text).items()
          if given or kind == 'all-gather'
      },
      compile_seconds=time.perf_counter() - start,
      **chip.columns(text, folder),
  )


def describe(asked: dict[str, Any], folder: str) -> dict[str, Any]:
  """Returns what the compiler says of the program, and what it is for."""
  config = settings.complete(asked['config'])
  place = topology.parse(asked['topology'])
  chip, mesh = alone.CHIPS[place.chip], partition.create_mesh(place.devices())
  partition.check_batch_sizes(config, mesh)
  task = settings.create_task(config)
  per_epoch = asked['num_examples'] / config.batch_size
  with jax.set_mesh(mesh):
    run = functions.create(config, task, mesh, per_epoch)
    eval_batch = _shapes(config, False, config.eval_batch_size)
    state = jax.eval_shape(lambda: run.create_state(batch_shapes=eval_batch))
    print(plan.ACCEPTED, flush=True)
    if asked['program'] == plan.STEP:
      batch = _shapes(config, True, config.batch_size)
      traced = run.step_of(state).trace(state, batch, run.seed)
      # While a step is taken the next batch is brought to the devices.
      beside = bytes_of_chip(batch, partition.over_batch(mesh))
    else:
      batch, variables = eval_batch, state.eval_variables()
      traced = run.predict.trace(variables, batch)
      beside = rest_of_state(mesh, state, config.shard_state)
    lowered = traced.lower(lowering_platforms=(chip.platform,))
    found = _compile(lowered, folder, chip)
  image = batch['image'].update(shape=(1, *batch['image'].shape[1:]))
  counted = macs.count(task.forward, state.variables(), {'image': image})
  return found | dict(
      devices=mesh.size,
      hosts=len({device.process_index for device in mesh.devices.flat}),
      device_kind=mesh.devices.flat[0].device_kind,
      compiler=f'{chip.package} {version(chip.package)}, jax {jax.__version__}',
      total_steps=run.total_steps,
      state={
          name: _bytes(getattr(state, name))
          for name in ('params', 'model_state', 'opt_state', 'ema')
      },
      beside=beside,
      multiply_adds=sum(counted.values()),
  )


def main(request: str, folder: str) -> None:
  """Compiles what is asked for, and prints what there is to say, as JSON."""
  try:
    found = describe(json.loads(request), folder)
  except errors.ReportedError as error:
    found = dict(refused=str(error))
  print(json.dumps(found), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
