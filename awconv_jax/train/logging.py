"""What a run shows, and its metrics on disk: `metrics.jsonl` and TensorBoard.

TensorBoard's files are written without TensorFlow.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from awconv_jax.errors import DivergenceError, InputError
from awconv_jax.train import rundir

# Of the images that could not be read, so many are shown at a time.
_MOST_LINES = 10


def read(path: str | os.PathLike) -> list[dict[str, float]]:
  """Returns the rows of a `metrics.jsonl`: 'step' and the scalars by name.

  A last row that a killed run left half-written is skipped.

  Raises:
    InputError: there is no such file, or a row in its midst is not JSON.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f'{path} does not exist; is it a run that began?')
  rows, lines = [], path.read_text().splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      if number < len(lines):
        raise InputError(
            f'{path}, line {number} is not JSON: {line[:40]!r}; remove it'
        ) from error
  return rows


def shown(metrics: Mapping[str, float]) -> str:
  """Returns metrics as on one line: 'top1 0.9861  num_examples 360'."""
  return '  '.join(
      f'{name} {value:,}' if isinstance(value, int) else f'{name} {value:.4f}'
      for name, value in metrics.items()
  )


class Log:
  """The log of a run; in processes but the first it is silent.

  On a terminal there is a live bar, elsewhere there are plain lines; scalars
  are added to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`.

  Args:
    workdir: directory of the run.
    total: steps of the whole run.
    steps_per_epoch: for the epochs among the metrics.
    batch_size: images per step.
  """

  def __init__(
      self,
      workdir: pathlib.Path,
      *,
      total: int,
      steps_per_epoch: float,
      batch_size: int,
  ):
    self._workdir, self._total = workdir, total
    self._steps_per_epoch, self._batch_size = steps_per_epoch, batch_size
    self._shows = jax.process_index() == 0
    self._bar: Any = None
    self._file: Any = None
    self._board: Any = None
    # Metrics of the steps since the last row; those of the newest step.
    self._steps, self._newest = [], None
    self._restart_clock()

  def start(self, step: int) -> None:
    """Begins to take steps, from this one on.

    Rows after it, left by a run that was killed after its last checkpoint, are
    removed: they will be written again.
    """
    if not self._shows:
      return
    from tensorboardX import SummaryWriter  # Slow to import.

    path = self._workdir / 'metrics.jsonl'
    rows = read(path) if path.exists() else []
    # Replaced in one go: a kill in here must not cost the rows already there.
    temporary = path.with_suffix('.tmp')
    kept = (json.dumps(row) + '\n' for row in rows if row['step'] <= step)
    temporary.write_text(''.join(kept))
    temporary.replace(path)
    self._file = path.open('a')
    self._board = SummaryWriter(
        str(self._workdir / 'tensorboard'), purge_step=step + 1
    )
    if sys.stdout.isatty():
      self._bar = tqdm(
          total=self._total,
          initial=step,
          file=sys.stdout,
          dynamic_ncols=True,
          bar_format='{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix}',
      )

  def close(self) -> None:
    """Leaves the bar as it stands, and writes out what is buffered."""
    for part in (self._bar, self._file, self._board):
      if part is not None:
        part.close()

  def info(self, text: str) -> None:
    """Shows a line, above the bar."""
    if self._shows:
      tqdm.write(text, file=sys.stdout)
      sys.stdout.flush()

  def _restart_clock(self) -> None:
    self._timed, self._since, self._waited = 0, time.monotonic(), 0.0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Measures the time in which there is no batch to go on with."""
    before = time.monotonic()
    yield
    self._waited += time.monotonic() - before

  def step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Takes a step's metrics, and waits for those of the step before.

    So at most two steps are under way: one computing, one about to.
    """
    self._timed += 1
    if self._newest is not None:
      jax.block_until_ready(self._newest)
    else:  # The first step compiles; the clock starts after it.
      jax.block_until_ready(metrics)
      self._restart_clock()
    self._newest = metrics
    self._steps.append((step, metrics))
    if self._bar is not None:
      self._bar.update()

  def flush(self) -> None:
    """Writes and shows the means over the steps since the last flush.

    Raises:
      DivergenceError: a loss or norm is not finite.
    """
    if not self._steps:
      return
    steps, rows = zip(*jax.device_get(self._steps), strict=True)
    self._steps = []
    for step, row in zip(steps, rows, strict=True):
      for name in ('loss', 'grad_norm', 'param_norm'):
        if not np.isfinite(row[name]):
          rate = float(row['learning_rate'])
          raise DivergenceError(
              f'{name} is {row[name]} at step {step} (learning rate {rate:.3g})'
          )
    step, seconds = steps[-1], max(time.monotonic() - self._since, 1e-9)
    means = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
    means |= {
        'learning_rate': float(rows[-1]['learning_rate']),
        'images_per_second': self._timed * self._batch_size / seconds,
        # The share of the time in which there was no batch to go on with.
        'data_wait': min(self._waited / seconds, 1.0),
        'epoch': step / self._steps_per_epoch,
    }
    left = (self._total - step) * seconds / max(self._timed, 1)
    self._restart_clock()
    text = (
        f'loss {means["loss"]:.4f}  lr {means["learning_rate"]:.2e}  '
        f'{means["images_per_second"]:,.0f} images/s  '
        f'{tqdm.format_interval(left)} left'
    )
    if self._bar is not None:
      self._bar.set_postfix_str(text)
    else:
      self.info(f'step {step}/{self._total}  {text}')
    self._write(step, 'train', means)

  def evaluation(
      self, step: int, metrics: Mapping[str, float], *, write: bool
  ) -> None:
    """Shows the metrics of an evaluation, and writes them if asked to."""
    self.info(f'step {step}/{self._total}  evaluation: {shown(metrics)}')
    self._restart_clock()
    if write:
      self._write(step, 'eval', metrics)

  def _write(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
    """Writes one row: the step and scalars such as 'train/loss'."""
    if not self._shows:
      return
    scalars = {f'{kind}/{k}': float(v) for k, v in metrics.items()}
    self._file.write(json.dumps({'step': step} | scalars) + '\n')
    self._file.flush()
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)
    self._board.flush()  # A kill must not cost what was shown.

  def unreadable(self, batches: Any) -> None:
    """Shows, and keeps, what could not be read since the last time."""
    lines = batches.unreadable.news()
    path = self._workdir / rundir.UNREADABLE
    for line in lines[:_MOST_LINES]:
      self.info(f'not used: {line}')
    if len(lines) > _MOST_LINES:
      self.info(f'and {len(lines) - _MOST_LINES} more, named in {path}')
    if lines:
      known = path.read_text().splitlines() if path.exists() else []
      new = (f'{line}\n' for line in lines if line not in known)
      with path.open('a') as file:
        file.writelines(new)
