"""Traces of some steps, for xprof and TensorBoard."""

import contextlib
import pathlib
import tempfile
from typing import Any

import jax

from awconv_jax.errors import InputError
from awconv_jax.train import logging


class Trace(contextlib.AbstractContextManager):
  """Traces steps of a run into `<workdir>/profile`, in the first process.

  Args:
    workdir: directory of the run.
    steps: the first and the last; None traces nothing.
    total: steps of the whole run.

  Raises:
    InputError: the run has no such steps.
  """

  def __init__(
      self, workdir: pathlib.Path, steps: tuple[int, int] | None, total: int
  ):
    self._place = workdir / 'profile'
    self._first, self._last = steps or (0, 0)
    if self._last > total:
      given = f'--profile_steps={self._first}:{self._last}'
      raise InputError(f'{given}, but the run has {total} steps')
    if jax.process_index() != 0:
      self._first = 0
    self._stack = contextlib.ExitStack()
    self._running = False

  def at(self, step: int, state: Any) -> None:
    """Takes note that a step is about to begin, from a state."""
    if step == self._first:
      self._running = True
      # What the profiler writes must be on this machine.
      folder = self._stack.enter_context(tempfile.TemporaryDirectory())
      self._stack.callback(self._keep, pathlib.Path(folder))
      jax.block_until_ready(state)  # None of the steps before.
      self._stack.enter_context(jax.profiler.trace(folder))
    if self._running and step > self._last:
      jax.block_until_ready(state)
      self.__exit__()

  def step(self, step: int) -> contextlib.AbstractContextManager:
    """Marks in the trace what belongs to a step."""
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def __exit__(self, *exception) -> None:
    """Ends a trace under way, and keeps it."""
    self._running = False
    self._stack.close()

  def _keep(self, folder: pathlib.Path) -> None:
    for path in folder.rglob('*.*'):
      if path.is_file():
        kept = self._place / path.relative_to(folder)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(path.read_bytes())
    logging.info(
        f'steps {self._first} to {self._last} are traced in {self._place} '
        '(pip install xprof, or tensorboard with tensorboard-plugin-profile)'
    )
