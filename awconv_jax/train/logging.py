"""What a run shows, and its metrics on disk: `metrics.jsonl` and TensorBoard.

TensorBoard's files are written without TensorFlow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import json
import os
import pathlib
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from awconv_jax import places
from awconv_jax.errors import DivergenceError, InputError
from awconv_jax.train import partition, peak, rundir

# In a bucket files are uploaded as a whole, and not more often than that.
_SECONDS = 30.0
# Of the images that could not be read, so many are shown at a time.
_MOST_LINES = 10
# Of what was lost, since the run began; kept in each row and taken from the
# last one.
_LOST = 'restarts', 'restart_seconds', 'restart_steps'
# The scalars of steps that say nothing of what is learned.
CLOCK = {
    f'train/{name}'
    for name in (
        *('step_ms', 'images_per_second', 'data_wait', 'mfu', 'time', *_LOST),
        *('memory_gib', 'memory_peak_gib'),
    )
}


def read(path: str | os.PathLike) -> list[dict[str, float]]:
  """Returns the rows of a `metrics.jsonl`: 'step' and the scalars by name.

  A last row that a killed run left half-written is skipped.

  Raises:
    InputError: there is no such file, or it holds something else.
  """
  path = places.at(path)
  if not path.is_file():
    raise InputError(f'{path} does not exist; is it a run that began?')
  rows, lines = [], path.read_bytes().split(b'\n')
  for number, line in enumerate(lines, start=1):
    if not line:
      continue
    try:
      row = json.loads(line)
      if not isinstance(row['step'], int):
        raise TypeError
      rows.append({name: value + 0 for name, value in row.items()})
      np.array([*row.values()], float)  # It can be drawn.
    except (
        *(RecursionError, OverflowError),
        *(TypeError, KeyError, ValueError),
    ) as error:
      if number == len(lines) and line.startswith(b'{'):
        break
      fault = f'{path}, line {number} is no row of metrics: {line[:40]!r}'
      raise InputError(f'{fault}; remove it') from error
  return rows


def shown(metrics: Mapping[str, float]) -> str:
  """Returns metrics as on one line: 'top1 0.9861  num_examples 360'."""
  return '  '.join(
      f'{name} {value:,}' if isinstance(value, int) else f'{name} {value:.4f}'
      for name, value in metrics.items()
  )


def info(text: str) -> None:
  """Shows a line, above the bar; in processes but the first none."""
  if jax.process_index() != 0:
    return
  try:
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()
  except OSError as error:  # As of `| head`; it must not end the run.
    with open(os.devnull, 'w') as nowhere:
      os.dup2(nowhere.fileno(), sys.stdout.fileno())
    reason = f'standard output: {error.strerror}'
    print(f'{reason}; the run goes on, see metrics.jsonl', file=sys.stderr)


def _memory() -> dict[str, float]:
  """Returns the memory of the fullest of this process's devices, if known."""
  found = [device.memory_stats() or {} for device in jax.local_devices()]
  names = {'memory_gib': 'bytes_in_use', 'memory_peak_gib': 'peak_bytes_in_use'}
  return {
      name: max(stats[key] for stats in found) / 2**30
      for name, key in names.items()
      if all(key in stats for stats in found)
  }


def _tell_of_thread(hook: Callable[[Any], object], fault: Any) -> None:
  """Hands on what ended a thread, but for TensorBoard's that cannot write.

  `Log` finds the same fault, and says it in one line.
  """
  ours = type(fault.thread).__module__.startswith('tensorboardX.')
  if not (ours and isinstance(fault.exc_value, OSError)):
    hook(fault)


class Log(contextlib.AbstractContextManager):
  """The log of a run's steps; in processes but the first it is silent.

  On a terminal there is a live bar, elsewhere there are plain lines; scalars
  are added to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`.

  Args:
    workdir: directory of the run.
    first: steps taken so far. Rows of later ones, left by a run that was killed
      after its last checkpoint, are removed: they will be written again.
    total: steps of the whole run.
    sources: batches; what they cannot read is told, and kept.
    checkpoints: gives the steps of those there are.
    macs_of_one: gives multiply-adds of the forward pass of one image; called
      where the peak of the devices is known.
    writer: called with the step and the scalars of each row.
    steps_per_epoch, batch_size: for epochs, and images per second.
  """

  def __init__(
      self,
      workdir: pathlib.Path,
      first: int,
      total: int,
      sources: Sequence[Any] = (),
      checkpoints: Callable[[], list[int]] = list,
      macs_of_one: Callable[[], Mapping[str, int]] = dict,
      writer: Callable[[int, Mapping[str, float]], object] | None = None,
      still_ours: Callable[[], object] = lambda: None,
      *,
      steps_per_epoch: float,
      batch_size: int,
  ):
    self._workdir, self._first, self._total = workdir, first, total
    self._steps_per_epoch, self._batch_size = steps_per_epoch, batch_size
    self._sources, self._checkpoints = sources, checkpoints
    # Metrics of the steps since the last row; those of the newest step.
    self._steps, self._newest = [], None
    self._writer, self._lost, self._macs = writer, dict.fromkeys(_LOST, 0.0), 0
    self._left_at: float | None = None  # The last row of the start before.
    self.restart_clock()
    self._file: Any = None
    self._board: Any = None
    # Whether there is a row of an evaluation after the first steps.
    self.has_evaluation = False
    speaks = jax.process_index() == 0
    self._unreadable_name = rundir.UNREADABLE
    if places.in_bucket(workdir) and not speaks:  # Each writes its own.
      self._unreadable_name = f'{jax.process_index()}_{rundir.UNREADABLE}'
    self._folder = places.Growing(
        workdir, ('metrics.jsonl', self._unreadable_name)
    )
    # Whether the last upload went well; another would wait as long in vain.
    self._still_ours, self._can_sync = still_ours, True
    if speaks:
      from tensorboardX import SummaryWriter  # Slow to import.

      path = self._folder.path / 'metrics.jsonl'
      rows = read(path) if path.exists() else []
      self.has_evaluation = any(
          row['step'] == first and any(k.startswith('eval/') for k in row)
          for row in rows
      )
      self._take_up([row for row in rows if 'train/loss' in row])
      self._kind = jax.devices()[0].device_kind
      if peak.flops(self._kind) is not None:
        self._macs = sum(macs_of_one().values())
      # Replaced in one go: a kill in here must not cost the rows already there.
      kept = [json.dumps(row) + '\n' for row in rows if row['step'] <= first]
      rundir.write(path, ''.join(kept))
      self._file = path.open('a')
      self._board = SummaryWriter(
          str(self._folder.path / 'tensorboard'), purge_step=first + 1
      )
      if getattr(threading.excepthook, 'func', None) is not _tell_of_thread:
        hook = functools.partial(_tell_of_thread, threading.excepthook)
        threading.excepthook = hook
    self._bar = tqdm(
        total=total,
        initial=first,
        file=sys.stdout,
        dynamic_ncols=True,
        bar_format='{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix}',
        disable=None if speaks else True,  # None: but on terminals.
    )

  def __exit__(self, *exception) -> None:
    """Leaves the bar as it stands, and writes out what is left."""
    self._unreadable()
    try:
      for part in (self._bar, self._file, self._board):
        if part is not None:
          part.close()
      if exception[0] is None:
        self.sync()
      elif self._can_sync:  # What was learned of the error is worth keeping.
        with contextlib.suppress(Exception):  # It has an error to tell.
          self.sync()
    finally:
      # What was not closed would try again at the end of Python, in vain.
      if writer := getattr(self._board, 'file_writer', None):
        writer.event_writer.close = lambda: None
      self._folder.__exit__()

  def sync(self, seconds: float = 0.0) -> None:
    """Uploads what is written, for a bucket; not if that was just done.

    Raises:
      InputError: it cannot, or the directory is that of another run by now.
    """
    self._can_sync = False
    self._still_ours()
    self._folder.sync(seconds)
    self._can_sync = True

  def _take_up(self, rows: Sequence[dict[str, float]]) -> None:
    """Counts as lost what the start before did after the checkpoint.

    In the newest row that stays as well, as this start may end before its own.
    """
    if rows and self._first < self._total:
      last = rows[-1]
      self._lost = {k: last.get(f'train/{k}', 0.0) for k in _LOST}
      self._lost['restarts'] += 1
      self._lost['restart_steps'] += max(last['step'] - self._first, 0)
      self._left_at = last.get('train/time')
      known = {f'train/{k}': v for k, v in self._lost.items()}
      if self._left_at is not None:
        known['train/time'] = self._left_at
      for row in [row for row in rows if row['step'] <= self._first][-1:]:
        row.update(known)

  def restart_clock(self) -> None:
    """Leaves out of the speed what was done since the last row."""
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
      self.restart_clock()
      if self._left_at is not None:
        self._lost['restart_seconds'] += max(time.time() - self._left_at, 0.0)
    self._newest = metrics
    self._steps.append((step, metrics))
    self._bar.update()

  def flush(self) -> None:
    """Writes and shows the means over the steps since the last flush.

    Raises:
      DivergenceError: a loss or norm is not finite.
    """
    self._unreadable()
    if not self._steps:
      return
    steps, rows = zip(*jax.device_get(self._steps), strict=True)
    self._steps = []
    for step, row in zip(steps, rows, strict=True):
      for name in ('loss', 'grad_norm', 'param_norm'):
        if not np.isfinite(row[name]):
          raise self._divergence(name, row[name], step)
    step, seconds = steps[-1], max(time.monotonic() - self._since, 1e-9)
    means = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
    means |= {
        'learning_rate': float(rows[-1]['learning_rate']),
        'epoch': step / self._steps_per_epoch,
        'time': time.time(),
        **self._lost,
        **_memory(),
    }
    if self._timed:  # Steps beside the one that compiled.
      speed = self._timed * self._batch_size / seconds
      means['step_ms'] = 1e3 * seconds / self._timed
      means['images_per_second'] = speed
      means['data_wait'] = min(self._waited / seconds, 1.0)
      if self._macs:
        devices = jax.device_count()
        used = peak.utilization(speed, self._macs, self._kind, devices)
        means['mfu'] = used
    left = (self._total - step) * seconds / max(self._timed, 1)
    text = f'loss {means["loss"]:.4f}  lr {means["learning_rate"]:.2e}'
    if self._timed:
      text += f'  {means["images_per_second"]:,.0f} images/s'
      text += f'  {tqdm.format_interval(left)} left'
    if self._bar.disable:
      info(f'step {step}/{self._total}  {text}')
    else:
      self._bar.set_postfix_str(text)
    self._write(step, 'train', means)
    self.sync(_SECONDS)
    self.restart_clock()

  def check(self, step: int, state: Any) -> None:
    """Raises DivergenceError for arrays that no good state has, by name.

    Those that are not finite, and variances below 0: a loss in training shows
    neither where norms normalise by the batch.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        partition.to_host(state)
    ):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      least = 0 if name.endswith('/var') else -np.inf
      wrong = leaf[~np.isfinite(leaf) | (leaf < least)]
      if wrong.size:
        raise self._divergence(name, wrong[0], step)

  def _divergence(self, name: str, value: Any, step: int) -> DivergenceError:
    kept = 'there is no checkpoint yet'
    if steps := self._checkpoints():
      kept = f'the last checkpoint in {self._workdir} is of step {max(steps)}'
    first = (
        '; at the first step a layer of your own may be why, such as a sqrt, '
        'norm or std where its input is 0 (docs/layers.md)'
    )
    return DivergenceError(
        f'{name} is {value} at step {step}; {kept}; in another --workdir, '
        'lower config.optimizer.learning_rate, warm up longer or set clip_norm'
        f'{first * (step == 1)}'
    )

  def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the metrics of an evaluation, and writes them if none are there."""
    self._unreadable()
    info(f'step {step}/{self._total}  evaluation: {shown(metrics)}')
    self.restart_clock()
    if step > self._first or not self.has_evaluation:
      self._write(step, 'eval', metrics)

  def _write(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
    """Writes one row: the step and scalars such as 'train/loss'."""
    if self._file is None:
      return
    scalars = {f'{kind}/{k}': float(v) for k, v in metrics.items()}
    self._file.write(json.dumps({'step': step} | scalars) + '\n')
    self._file.flush()
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)
    self._board.flush()  # A kill must not cost what was shown.
    if self._writer is not None:
      try:
        self._writer(step, scalars)
      except Exception as error:  # What others see of a run must not end it.
        what = f'{type(error).__name__}: {error}'
        info(f'warning: the writer of step {step} failed: {what}')

  def _unreadable(self) -> None:
    """Shows, and keeps, what could not be read since the last time."""
    path = self._folder.path / self._unreadable_name
    place = self._workdir / self._unreadable_name
    for batches in self._sources:
      lines = batches.unreadable.news()
      for line in lines[:_MOST_LINES]:
        info(f'not used: {line}')
      if len(lines) > _MOST_LINES:
        info(f'and {len(lines) - _MOST_LINES} more, named in {place}')
      if lines:
        how = dict(encoding='utf-8', errors='replace')
        known = path.read_text(**how).splitlines() if path.exists() else []
        with path.open('a', encoding='utf-8') as file:
          file.writelines(f'{line}\n' for line in lines if line not in known)
