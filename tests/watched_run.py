"""Runs the training loop in process, and keeps what it was made of."""

import pathlib
import types

import jax
from jax.sharding import Mesh
import numpy as np
import pytest

from awconv_jax import places
from awconv_jax.tasks import detection
from awconv_jax.train import checkpoint, logging, partition
from awconv_jax.train import loop as train_loop
from awconv_jax.train import step as train_step


def saved_arrays(workdir, step):
  """Returns the arrays of a checkpoint by name."""
  directory = places.at(workdir) / 'checkpoints'
  with checkpoint.Checkpointer(directory, keep=2) as checkpointer:
    return checkpointer.read(step)['leaves']


def rows_of(workdir):
  return logging.read(places.at(workdir) / 'metrics.jsonl')


def logged(workdir, name):
  """Returns the values of one metric in the order of the steps."""
  return [row[name] for row in rows_of(workdir) if name in row]


def assert_same_bits(got, want):
  """Compares trees of arrays: structure, dtypes, shapes and bits."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  want = jax.tree.leaves(want)
  for i, (path, a) in enumerate(jax.tree_util.tree_leaves_with_path(got)):
    a, b = np.asarray(a), np.asarray(want[i])
    where = jax.tree_util.keystr(path)
    assert (a.dtype, a.shape) == (b.dtype, b.shape), where
    assert a.tobytes() == b.tobytes(), where


def assert_same_runs(one, two, step):
  """Compares checkpoints bit by bit, and all metrics but the clock's."""

  def left(run):
    rows = [
        {k: v for k, v in row.items() if k not in logging.CLOCK}
        for row in rows_of(run)
    ]
    arrays = saved_arrays(run, step).items()
    return {name: array.tobytes() for name, array in arrays}, rows

  assert left(one) == left(two)


def use_devices(patch, number):
  """Has all that runs use the first devices only."""
  mesh = Mesh(np.array(jax.devices()[:number]), (partition.DATA_AXIS,))
  patch.setattr(partition, 'create_mesh', lambda: mesh)


def train(config, workdir, devices):
  """Trains a detector on some devices of this process.

  Returns:
    `workdir`; `result`; `first`, the arrays of the first state by their names
    in checkpoints; `step` and `predict`; `evaluators`, one per evaluation.
  """
  run = types.SimpleNamespace(workdir=pathlib.Path(workdir), evaluators=[])

  def keep(patch, module, maker, take):
    make = getattr(module, maker)

    def keeping(*args, **kwargs):
      made = make(*args, **kwargs)
      take(made)
      return made

    patch.setattr(module, maker, keeping)

  def into(name, convert=lambda made: made):
    return lambda made: setattr(run, name, convert(made))

  with pytest.MonkeyPatch.context() as patch:
    use_devices(patch, devices)
    first = into('first', checkpoint._to_host)
    keep(patch, train_step, 'create_state', first)
    keep(patch, train_step, 'create_train_step', into('step'))
    keep(patch, train_step, 'create_predict', into('predict'))
    keep(patch, detection, 'CocoEvaluator', run.evaluators.append)
    run.result = train_loop.train(config, str(workdir))
  return run
