"""What a run compiles, by its config: the state, a step and the prediction.

`loop` runs them, and `tools.plan` compiles them for devices that are not there.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from jax.sharding import Mesh

from awconv_jax import options
from awconv_jax.errors import InputError
from awconv_jax.train import optim
from awconv_jax.train import step as train_step


@dataclasses.dataclass(frozen=True)
class Functions:
  """The functions of a run.

  Attributes:
    total_steps: of the run.
    create_state: takes `batch_shapes` and `warm_start` of
      `step.create_state`.
    step_of: `step.create_train_step` for a state, or for its shapes.
    predict: of `step.create_predict`.
  """

  total_steps: int
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
          seed=config.seed,
          accumulation_steps=config.accumulation_steps,
          ema_decay=config.ema_decay,
          frozen=config.optimizer.frozen,
          placed=train_step.sharded(mesh, state)
          if config.shard_state
          else None,
      ),
      predict=train_step.create_predict(task, mesh),
  )
