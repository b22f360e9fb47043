"""Traces of some steps, for xprof and TensorBoard."""

import contextlib
import pathlib
import tempfile
from typing import Any

import jax

from awconv_jax.errors import InputError, first_line
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
    first, last = steps or (1, 0)
    self._given = f'--profile_steps={first}:{last}'
    if last > total:
      raise InputError(f'{self._given}, but the run has {total} steps')
    speaks = jax.process_index() == 0
    self._steps = range(first, last + 1) if speaks else range(0)
    self._traced: list[int] = []
    self._stack = contextlib.ExitStack()
    self._running = False

  def at(self, step: int, state: Any) -> bool:
    """Takes note that a step is about to begin, from a state.

    Returns:
      Whether a trace began or ended, which takes its time.
    """
    before = self._running
    if step in self._steps:
      if not self._running:
        self._running = True
        # What the profiler writes must be on this machine.
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._stack.callback(self._keep, pathlib.Path(folder))
        jax.block_until_ready(state)  # None of the steps before.
        self._stack.enter_context(jax.profiler.trace(folder))
      self._traced.append(step)
    elif self._running:
      jax.block_until_ready(state)
      self._end()
    return self._running != before

  def step(self, step: int) -> contextlib.AbstractContextManager:
    """Marks in the trace what belongs to a step."""
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def __exit__(self, *exception) -> None:
    """Ends a trace under way, and keeps it; tells if there was none."""
    self._end()
    if exception[0] is None and self._steps and not self._traced:
      logging.info(f'nothing is traced: {self._given} were not taken this time')

  def _end(self) -> None:
    self._running = False
    self._stack.close()

  def _keep(self, folder: pathlib.Path) -> None:
    steps = f'steps {self._traced[0]} to {self._traced[-1]}'
    try:
      for path in folder.rglob('*.*'):
        if path.is_file():
          kept = self._place / path.relative_to(folder)
          kept.parent.mkdir(parents=True, exist_ok=True)
          kept.write_bytes(path.read_bytes())
    except Exception as error:  # Of a disk or a bucket; it must not end a run.
      why = first_line(error, 300)
      return logging.info(f'warning: the trace of {steps} is not kept: {why}')
    logging.info(
        f'{steps} are traced in {self._place} (pip install xprof, or '
        'tensorboard with tensorboard-plugin-profile)'
    )
