"""Tasks: all that the training loop must know of what is learned.

A task has the attributes `model` and `num_classes`, and these methods:
  init(rng, batch) -> variables
  loss(variables, batch, rng) -> loss, (metrics, updated batch statistics)
  forward(variables, batch) -> the network's outputs; what is counted as MACs
  predict(variables, batch) -> arrays for the evaluator, first axis the batch
  evaluator() -> an object with update(outputs) and compute()
"""

import inspect
from typing import Any

from awconv_jax import errors
from awconv_jax.tasks import classification, detection

TASKS = {
    'classification': classification.Classification,
    'detection': detection.Detection,
}


def create(config: Any) -> Any:
  """Returns the task that `config.task.name` names, with its model.

  Args:
    config: the whole config; `config.task` holds the task's own options.

  Raises:
    InputError: unknown task, model or option.
  """
  options = config.task.to_dict()
  name = options.pop('name')
  if name not in TASKS:
    raise errors.unknown_name('task', name, TASKS)
  known = [*inspect.signature(TASKS[name]).parameters][1:]
  for option in options:
    if option not in known:
      raise errors.unknown_name('config.task', option, known)
  lacking = [option for option in known if option not in options]
  if lacking:
    raise errors.InputError(
        f'config.task lacks {", ".join(lacking)}; the configs show all'
    )
  return TASKS[name](config.model.to_dict(), **options)
