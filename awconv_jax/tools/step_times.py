"""What a training step of several configs takes, measured in turns.

Runs at another time, or on another machine, meet another state of it. Here all
are compiled in one process and take turns, so that what slows one slows all;
the ratio is that of the same turn.
"""

from collections.abc import Mapping
import contextlib
import json
import math
import pathlib
import time
from typing import Annotated, Any

import jax
import numpy as np
import pydantic

from awconv_jax.errors import InputError
from awconv_jax.options import Bound
from awconv_jax.train import functions, loop, partition, rundir, settings

# Each is measured for so long [s], and in no fewer turns than these.
SECONDS, TURNS = 5.0, 7
# Off CPU, where the way to the device counts, so many are timed together.
_LEAST_SECONDS, _MOST_TOGETHER = 0.1, 100


def measure(configs: Mapping[str, Any], baseline: str) -> dict[str, Any]:
  """Measures a step of each config, on a batch of its own data.

  Args:
    configs: complete ones by the name of a variant.
    baseline: one of the names.

  Returns:
    'variants', for each its median 'milliseconds' of a step, the median 'ratio'
    to the baseline in the same turn with its 'low' and 'high' quartile and the
    number of 'turns'; 'baseline', 'configs', 'batch_size', 'made_by' (see
    `rundir.made_by`) and the 'time' of day, in seconds since 1970.

  Raises:
    InputError: the baseline is none of them, or data or a config cannot be.
  """
  if baseline not in configs:
    raise InputError(f'{baseline!r}, the baseline, has to be timed, too')
  steps, batches = {}, {}
  with jax.set_mesh(partition.create_mesh()):
    for name, config in configs.items():
      start = time.perf_counter()
      steps[name] = _step(config, batches)
      steps[name](1)  # The first is slower.
      print(
          f'compiled {name} in {time.perf_counter() - start:.1f} s', flush=True
      )
    times = _in_turns(steps)
  base = np.array(times[baseline])
  found = {}
  for name, taken in times.items():
    low, ratio, high = np.quantile(np.array(taken) / base, (0.25, 0.5, 0.75))
    found[name] = dict(
        milliseconds=1e3 * float(np.median(taken)),
        ratio=float(ratio),
        low=float(low),
        high=float(high),
        turns=len(taken),
    )
  sizes = {config.batch_size for config in configs.values()}
  return dict(
      variants=found,
      baseline=baseline,
      configs={name: config.to_dict() for name, config in configs.items()},
      batch_size=sizes.pop() if len(sizes) == 1 else sorted(sizes),
      made_by=rundir.made_by(),
      time=time.time(),
  )


_Positive = Annotated[float, Bound(gt=0)]


class _Step(pydantic.BaseModel, strict=True):
  milliseconds: _Positive
  ratio: _Positive
  low: _Positive
  high: _Positive


class _Times(pydantic.BaseModel, strict=True):
  """What is read of `measure`."""

  variants: dict[str, _Step]
  batch_size: int | list[int]
  made_by: rundir.Maker


def read(
    path: pathlib.Path, configs: Mapping[str, Any], baseline: str
) -> dict[str, Any]:
  """Reads what `measure` found, without what is of other configs by now.

  Raises:
    InputError: it is damaged.
  """
  try:
    held = json.loads(path.read_text())
    _Times.model_validate(held)
    return still(held, configs, baseline)
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise InputError(
        f'{path} is damaged; take it away, or measure again with --time'
    ) from error


def still(
    times: Mapping[str, Any], configs: Mapping[str, Any], baseline: str
) -> dict[str, Any]:
  """Returns what `measure` did without what is of other configs by now.

  Those are variants, and ratios to another baseline.
  """
  kept = {}
  for name, found in times['variants'].items():
    if name in configs:
      # A step is the same for all of these.
      same = {key: configs[name][key] for key in ('seed', 'num_epochs')}
      with contextlib.suppress(InputError):  # Options may have changed since.
        held = settings.complete(times['configs'][name] | same)
        if not rundir.differences(held, configs[name]):
          kept[name] = found
  if times.get('baseline') != baseline or baseline not in kept:
    for name, found in kept.items():
      kept[name] = dict(milliseconds=found['milliseconds'])
  return {**times, 'variants': kept}


def _step(config: Any, batches: dict[str, Any]) -> Any:
  """Returns a function that takes so many steps, and waits for the last."""
  mesh, task = partition.create_mesh(), settings.create_task(config)
  key = json.dumps([config.data.to_dict(), config.batch_size])
  if key not in batches:
    train, _, shapes = loop.create_data(config, task, mesh)
    rows = partition.shard_batch(mesh, next(train))
    batches[key] = rows, shapes, train.batches_per_epoch
    train.close()
  rows, shapes, per_epoch = batches[key]
  run = functions.create(config, task, mesh, per_epoch)
  state = run.create_state(batch_shapes=shapes)
  take_step = run.step_of(state).lower(state, rows, run.seed).compile()

  def steps(number: int) -> None:
    nonlocal state  # Each step takes the memory of the one before.
    metrics = None
    for _ in range(number):
      state, metrics = take_step(state, rows, run.seed)
    jax.block_until_ready(metrics)

  return steps


def _in_turns(steps: Mapping[str, Any]) -> dict[str, list[float]]:
  """Returns seconds of a step by name, one for each turn."""

  def timed(name, number):
    start = time.perf_counter()
    steps[name](number)
    return (time.perf_counter() - start) / number

  together = dict.fromkeys(steps, 1)
  if jax.default_backend() != 'cpu':
    for name in steps:
      wanted = math.ceil(_LEAST_SECONDS / timed(name, 1))
      together[name] = min(max(wanted, 1), _MOST_TOGETHER)
  times, spent = {name: [] for name in steps}, 0.0
  while spent < SECONDS * len(steps) or len(times[next(iter(steps))]) < TURNS:
    for name, taken in times.items():
      steps[name](1)  # What ran before has filled the caches.
      taken.append(timed(name, together[name]))
      spent += taken[-1] * (together[name] + 1)
  return times
