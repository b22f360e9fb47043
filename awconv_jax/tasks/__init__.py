"""Tasks: all that the training loop must know of what is learned.

A task has the attributes `model`, `num_classes` and `trains_on` (keys of the
batches that the loss reads), and these methods:
  init(rng, batch) -> variables
  loss(variables, batch, rng) -> loss, (metrics, updated batch statistics)
  forward(variables, batch) -> the network's outputs; what is counted as MACs
  predict(variables, batch) -> arrays for the evaluator, first axis the batch
  evaluator() -> an object with update(outputs) and compute()
"""

from typing import Any

from awconv_jax.errors import look_up
from awconv_jax.tasks import classification, detection

TASKS = {
    'classification': classification.Classification,
    'detection': detection.Detection,
}


def create(config: Any) -> Any:
  """Returns the task of a whole config, with its model.

  Raises:
    InputError: an unknown name, or options that contradict each other.
  """
  options = config.task.to_dict()
  task = look_up('task', options.pop('name'), TASKS)
  return task(config.model.to_dict(), **options)
