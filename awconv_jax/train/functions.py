"""What a run compiles, by its config: the state, a step and the prediction.

`loop` runs them, and `tools.plan` compiles them for devices that are not there.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from jax.sharding import Mesh
import numpy as np

from awconv_jax import options
from awconv_jax.errors import InputError
from awconv_jax.train import optim
from awconv_jax.train import step as train_step


@dataclasses.dataclass(frozen=True)
class Functions:
  """The functions of a run.

  Attributes:
    total_steps: of the run.
    seed: uint32, of the run, for its steps.
    schedule: the learning rate of a step, or of several, from 0.
    create_state: takes `batch_shapes` and `warm_start` of
      `step.create_state`.
    step_of: `step.create_train_step` for a state, or for its shapes.
    predict: of `step.create_predict`.
  """

  total_steps: int
  seed: np.uint32
  schedule: Callable[[Any], Any]
  create_state: Callable[..., train_step.TrainState]
  step_of: Callable[[train_step.TrainState], Any]
  predict: Any


def create(
    config: Any, task: Any, mesh: Mesh, steps_per_epoch: float
) -> Functions:
  """Returns the functions of a complete config; nothing is compiled yet.

  Raises:
    InputError: the run has no step or too many, or its durations contradict
      each other.
  """
  total = round(config.num_epochs * steps_per_epoch)
  if not 0 < total <= options.MOST:
    raise InputError(
        f'config.num_epochs={config.num_epochs} is {total:,} steps of '
        f'config.batch_size={config.batch_size}, want 1 to {options.MOST:,}'
    )
  optimizer, schedule = optim.create(
      **config.optimizer,
      batch_size=config.batch_size,
      steps_per_epoch=steps_per_epoch,
      total_steps=total,
  )
  return Functions(
      total_steps=total,
      seed=np.uint32(config.seed),
      schedule=schedule,
      create_state=functools.partial(
          train_step.create_state,
          task,
          optimizer,
          mesh,
          seed=config.seed,
          ema=config.ema_decay > 0,
          shard=config.shard_state,
      ),
      step_of=lambda state: train_step.create_train_step(
          task,
          optimizer,
          schedule,
          mesh,
          accumulation_steps=config.accumulation_steps,
          ema_decay=config.ema_decay,
          frozen=config.optimizer.frozen,
          placed=train_step.sharded(mesh, state)
          if config.shard_state
          else None,
      ),
      predict=train_step.create_predict(task, mesh),
  )


def extension(before: Functions, now: Functions, step: int, name: str) -> str:
  """Returns a line on what a run's new length means at a step, from 0.

  Args:
    before: of the length that it was trained for until here.
    now: of the new one.
    step: steps that were taken.
    name: of the schedule.
  """
  line = f'extended from {before.total_steps:,} to {now.total_steps:,} steps'
  past = np.arange(step)
  if np.array_equal(*(run.schedule(past) for run in (before, now))):
    return (
        f'{line}: the learning rates so far are those of a run of that length '
        'from the start, and so are the weights'
    )
  last, rest = float(before.schedule(step - 1)), float(now.schedule(step))
  return (
      f'{line}: the {name} schedule is now that of the new length, so that the '
      f'learning rate goes from {last:.2e} to {rest:.2e}; the weights are not '
      'those of a run of that length from the start'
  )
