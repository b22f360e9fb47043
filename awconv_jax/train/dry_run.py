"""A run up to its first steps, measured, of which nothing is kept."""

import contextlib
import functools
import itertools
import math
import resource
import sys
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from awconv_jax import memory, text_table
from awconv_jax.errors import InputError
from awconv_jax.text_table import duration, mib
from awconv_jax.train import (
    functions,
    logging,
    loop,
    partition,
    rundir,
    settings,
)

# Steps are measured for so long, and no fewer than these.
_SECONDS, _STEPS = 10.0, 3


def run(config: Any, workdir: str | None = None) -> None:
  """Does all that precedes the first step of a run, and a few steps.

  Prints the parameters, what the compiler says of memory, what was measured,
  and how long the run is to take by that.

  Args:
    config: of the run; it is completed.
    workdir: of the run, if it is to be held to it; nothing is written there.

  Raises:
    InputError: the config, data or directory cannot be used, or memory is short
      by what the compiler says.
  """
  config = settings.complete(config)
  if workdir is not None:
    rundir.check_owner(rundir.place(workdir), config)
  mesh, task = partition.create_mesh(), settings.create_task(config)
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    data = loop.create_data(config, task, mesh)
    batches, eval_batches, shapes = data
    stack.callback(batches.close)
    run = functions.create(config, task, mesh, batches.batches_per_epoch)
    logging.info(loop.describe_data(config, batches, eval_batches))
    state = run.create_state(
        batch_shapes=shapes,
        warm_start=functools.partial(loop.first_weights, config),
    )
    logging.info(loop.describe_size(task, state, shapes))
    logging.info('compiling the step and the evaluation')
    rows = partition.shard_batch(mesh, next(batches))
    eval_rows = partition.shard_batch(mesh, next(iter(eval_batches)))
    start = time.perf_counter()
    take_step = run.step_of(state).lower(state, rows, run.seed).compile()
    variables = partition.gathered(mesh, state.eval_variables())
    predict = run.predict.lower(variables, eval_rows).compile()
    compile_seconds = time.perf_counter() - start
    (_, needed), limit = memory.of_program(take_step), _limit()
    parameters = sum(x.size for x in jax.tree.leaves(state.params))

    def timed(function, *arguments):
      start = time.perf_counter()
      out = jax.block_until_ready(function(*arguments))
      return time.perf_counter() - start, out

    timed(predict, variables, eval_rows)  # The first is slower.
    evaluate, _ = timed(predict, variables, eval_rows)
    evaluate *= math.ceil(eval_batches.num_examples / config.eval_batch_size)
    _, (state, _) = timed(take_step, state, rows, run.seed)
    steps, waits = [], []
    for number in itertools.count(1):
      wait, batch = timed(next, batches)
      rows = partition.shard_batch(mesh, batch)
      seconds, (state, _) = timed(take_step, state, rows, run.seed)
      waits.append(wait)
      steps.append(wait + seconds)
      enough = number >= min(_STEPS, run.total_steps) and sum(steps) > _SECONDS
      # All processes take the same number of steps, by the clock of one.
      if multihost_utils.broadcast_one_to_all(enough):
        break
  step, wait = (sum(s) / len(s) for s in (steps, waits))
  often = max(round(config.num_epochs / config.eval_every_epochs), 1)
  whole = run.total_steps * step + often * evaluate
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  peak *= 1 if sys.platform == 'darwin' else 1024
  rows = {
      'parameters': f'{parameters:,}',
      'compiled in': duration(compile_seconds),
      'memory of a step on a device, by the compiler [MiB]': mib(needed),
      'there are [MiB]': mib(limit),
      'most memory of this process so far [MiB]': mib(peak),
      f'step, mean of {len(steps)}': duration(step),
      'of it waiting for data': duration(wait),
      'images/s': f'{config.batch_size / step:,.4g}',
      'evaluation, by one batch': duration(evaluate),
      f'run of {run.total_steps:,} steps and {often} evaluations': duration(
          whole
      ),
  }
  logging.info(
      text_table.make([{'what': k, 'value': v} for k, v in rows.items()])
  )
  if limit and needed > limit:
    raise InputError(
        f'a step takes {mib(needed)} MiB of '
        f'{mib(limit)}; take a smaller config.batch_size, or more '
        'config.accumulation_steps'
    )
  logging.info(
      'measured here and now; starts, checkpoints, and reading what is to be '
      'evaluated come on top. Nothing was written.'
  )


def _limit() -> int:
  """Returns bytes that a device of this process has."""
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  return stats.get('bytes_limit') or memory.limit() // jax.local_device_count()
