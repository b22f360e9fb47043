"""Runs the training loop in process, and keeps what it was made of."""

import dataclasses
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np
import pytest

from awconv_jax.tasks import detection
from awconv_jax.train import checkpoint, logging, partition
from awconv_jax.train import loop as train_loop
from awconv_jax.train import step as train_step


def saved_arrays(workdir: Any, step: int) -> dict[str, np.ndarray]:
  """Returns the arrays of a checkpoint by name."""
  directory = pathlib.Path(workdir) / 'checkpoints'
  with checkpoint.Checkpointer(directory, keep=2) as checkpointer:
    return checkpointer.read(step)['leaves']


def assert_same_runs(one: Any, two: Any, step: int) -> None:
  """Compares checkpoints bit by bit, and all metrics but the clock's."""
  speed = ('train/images_per_second', 'train/data_wait')

  def left(run):
    rows = logging.read(pathlib.Path(run) / 'metrics.jsonl')
    rows = [{k: v for k, v in row.items() if k not in speed} for row in rows]
    arrays = saved_arrays(run, step).items()
    return {name: array.tobytes() for name, array in arrays}, rows

  assert left(one) == left(two)


@dataclasses.dataclass
class Run:
  """A run of a detector: its result, and what it was made of.

  `first` has the arrays of the first state by their names in checkpoints;
  there is an evaluator for each evaluation.
  """

  workdir: pathlib.Path
  result: Any = None
  first: Any = None
  evaluators: list = dataclasses.field(default_factory=list)
  step: Any = None
  predict: Any = None

  def logged(self, name: str) -> list[float]:
    """Returns the values of one metric in the order of the steps."""
    rows = logging.read(self.workdir / 'metrics.jsonl')
    return [row[name] for row in rows if name in row]

  def last(self) -> dict[str, np.ndarray]:
    """Returns the arrays of the last checkpoint, by name."""
    return saved_arrays(self.workdir, self.result.step)


def use_devices(patch: pytest.MonkeyPatch, number: int) -> None:
  """Has all that runs use the first devices only."""
  mesh = Mesh(np.array(jax.devices()[:number]), (partition.DATA_AXIS,))
  patch.setattr(partition, 'create_mesh', lambda: mesh)


def train(config: Any, workdir: Any, devices: int) -> Run:
  """Trains by `train_loop.train` on so many of the process's devices."""
  run = Run(pathlib.Path(workdir))

  def keep(patch, module, maker, take):
    make = getattr(module, maker)

    def keeping(*args, **kwargs):
      made = make(*args, **kwargs)
      take(made)
      return made

    patch.setattr(module, maker, keeping)

  def into(name):
    return lambda made: setattr(run, name, made)

  with pytest.MonkeyPatch.context() as patch:
    use_devices(patch, devices)
    first = lambda state: into('first')(checkpoint._to_host(state))  # noqa: E731
    keep(patch, train_step, 'create_state', first)
    keep(patch, train_step, 'create_train_step', into('step'))
    keep(patch, train_step, 'create_predict', into('predict'))
    keep(patch, detection, 'CocoEvaluator', run.evaluators.append)
    run.result = train_loop.train(config, str(workdir))
  return run
