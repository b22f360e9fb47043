"""The training loop: config -> data -> task -> steps -> checkpoints, metrics.

It knows nothing of what is learned; see `tasks`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import time
from typing import Any

from clu import parameter_overview
import jax
from jax.sharding import Mesh
import numpy as np

from awconv_jax import complexity, data, errors, tasks
from awconv_jax.train import (
    checkpoint,
    metric_writer,
    optim,
    partition,
    preemption,
    progress,
    warm_start,
)
from awconv_jax.train import rundir as workdirs
from awconv_jax.train import step as train_step

# In a run's directory: the names of its classes, in the order of labels.
CLASSES = 'classes.json'
# In a run's directory, where labels stand for numbers of the data set: those,
# and the names, in the order of labels.
CATEGORIES = 'categories.json'
# In a run's directory: the images that could not be read, one a line.
UNREADABLE = 'unreadable.txt'
# Of them, so many are shown at a time.
_MOST_LINES = 10


@dataclasses.dataclass
class Result:
  """How a run ended.

  Attributes:
    step: steps taken.
    total_steps: steps of the whole run.
    metrics: of the last evaluation, by name; empty if it was cut short.
    stopped_by: None, or the signal that asked the run to stop.
  """

  step: int
  total_steps: int
  metrics: dict[str, float]
  stopped_by: str | None


def _check(config: Any, mesh: Mesh) -> None:
  """Raises InputError for values that the loop cannot work with."""
  partition.check_batch_size('batch_size', config.batch_size, mesh)
  partition.check_batch_size('eval_batch_size', config.eval_batch_size, mesh)
  parts = config.accumulation_steps
  if parts < 1 or config.batch_size % (parts * mesh.size):
    raise errors.InputError(
        f'config.accumulation_steps={parts} must divide the '
        f'{config.batch_size // mesh.size} images of batch_size='
        f'{config.batch_size} that each of the {mesh.size} devices gets'
    )
  if config.init_skip and not config.init_from:
    raise errors.InputError(
        f'config.init_skip={tuple(config.init_skip)} needs config.init_from, '
        'the weights of which these modules do not take'
    )
  if not 0 <= config.ema_decay < 1:
    raise errors.InputError(
        f'config.ema_decay={config.ema_decay} is not in [0, 1); 0 is off'
    )
  for key in ('num_epochs', 'eval_every_epochs', 'checkpoint_every_epochs'):
    if not 0 < config[key] < float('inf'):
      raise errors.InputError(f'config.{key}={config[key]} must be above 0')
  for key, least in (
      ('log_every_steps', 1),
      ('seed', 0),
      ('checkpoints_to_keep', 2),  # One is left if the newest is damaged.
  ):
    if config[key] < least:
      raise errors.InputError(
          f'config.{key}={config[key]} must be at least {least}'
      )


def _create_data(config: Any) -> tuple[Any, Any]:
  """Returns the batches to train on and those to evaluate on."""
  shared = dict(
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
  )

  def create(train, batch_size):
    return data.create(
        config.data, train=train, batch_size=batch_size, **shared
    )

  return partition.agree(
      lambda: (
          create(True, config.batch_size),
          create(False, config.eval_batch_size),
      )
  )


def _check_classes(task: Any, config: Any, batches: Any) -> None:
  if task.num_classes != batches.num_classes:
    raise errors.InputError(
        f'config.model.num_classes={task.num_classes}, but {config.data.name} '
        f'has {batches.num_classes} classes'
    )


def _warning_of_frozen(names: Sequence[str]) -> str:
  return (
      f'warning: config.optimizer.frozen fixes {len(names)} kernels at their '
      f'random first values, such as {names[0]}; start from weights that have '
      'them (config.init_from), or freeze less'
  )


def _batch_shapes(batches: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of one process's batch, without moving on."""
  batch = next(iter(batches))
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def evaluate(
    predict: Any, variables: Any, batches: Any, evaluator: Any, mesh: Mesh
) -> dict[str, float]:
  """Runs over every example once and returns the evaluator's metrics.

  Args:
    predict: as of `train_step.create_predict`.
    variables: of the network.
    batches: iterable of this process's rows.
    evaluator: an empty one.
    mesh: where batches go.
  """
  # One batch ahead, so that the device works while the host counts.
  waiting = None
  for batch in batches:
    outputs = predict(variables, partition.shard_batch(mesh, batch))
    if waiting is not None:
      evaluator.update(jax.device_get(waiting))
    waiting = outputs
  evaluator.update(jax.device_get(waiting))
  return evaluator.compute()


def _describe(config, task, shapes, state, train_batches, eval_batches) -> str:
  """Returns what is printed at the start of a run."""
  image = jax.ShapeDtypeStruct((1, *shapes['image'].shape[1:]), np.uint8)
  macs = complexity.count_macs(
      task.forward, state.variables(), {'image': image}
  )
  table = complexity.format_table(*complexity.rows(state.params, macs))
  left_out = train_batches.num_left_out
  devices = f'{jax.device_count()} {jax.devices()[0].device_kind} device(s)'
  return '\n'.join(
      [
          f'{config.model.name} on {config.data.name}: '
          f'{train_batches.num_examples:,} examples to train on'
          + (f' ({left_out:,} with nothing on them left out)' * bool(left_out))
          + ', '
          f'{eval_batches.num_examples:,} to evaluate on',
          f'{devices}, {jax.process_count()} process(es), batches of '
          f'{config.batch_size}, seed {config.seed}',
          'parameters, and multiply-adds for one image:',
          table,
      ]
  )


def write_classes(workdir: pathlib.Path, batches: Any) -> None:
  """Writes what the labels stand for into a run's directory.

  Args:
    workdir: of the run.
    batches: have `class_names`, and `category_ids`, or None.
  """
  names = list(batches.class_names)
  (workdir / CLASSES).write_text(json.dumps(names) + '\n')
  ids = batches.category_ids
  if ids is not None:
    rows = [
        {'id': int(number), 'name': name}
        for number, name in zip(ids, names, strict=True)
    ]
    (workdir / CATEGORIES).write_text(json.dumps(rows) + '\n')


class _Log:
  """Collects the metrics of steps and writes their means."""

  def __init__(self, writer, bar, steps_per_epoch):
    self._writer, self._bar = writer, bar
    self._steps_per_epoch = steps_per_epoch
    self._waiting, self._newest = [], None

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Takes a step's metrics, and waits for those of the step before.

    So at most two steps are under way: one computing, one about to.
    """
    if self._newest is not None:
      jax.block_until_ready(self._newest)
    else:  # The first step compiles; the clock starts after it.
      jax.block_until_ready(metrics)
      self._bar.restart(step)
    self._newest = metrics
    self._waiting.append((step, metrics))
    self._bar.advance()

  def flush(self) -> None:
    """Writes the mean over the steps since the last flush.

    Raises:
      DivergenceError: a loss or norm is not finite.
    """
    if not self._waiting:
      return
    steps, rows = zip(*jax.device_get(self._waiting), strict=True)
    for step, row in zip(steps, rows, strict=True):
      for name in ('loss', 'grad_norm', 'param_norm'):
        if not np.isfinite(row[name]):
          raise errors.DivergenceError(
              f'{name} is {row[name]} at step {int(step)} (learning rate '
              f'{float(row["learning_rate"]):.3g})'
          )
    self._waiting = []
    means = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
    means['learning_rate'] = float(rows[-1]['learning_rate'])
    step = int(steps[-1])
    means |= self._bar.report(step, means)
    means['epoch'] = step / self._steps_per_epoch
    if self._writer is not None:
      self._writer.write(step, {f'train/{k}': v for k, v in means.items()})


def _every(epochs: float, steps_per_epoch: float) -> int:
  """Returns a period in steps, at least one."""
  return max(round(epochs * steps_per_epoch), 1)


def _due(step: int, total: int, period: int) -> bool:
  """Returns whether what is done periodically, and at the end, is due.

  A time that falls shortly before the end is left to the end.
  """
  return step == total or (step % period == 0 and total - step >= period / 2)


def train(config: Any, workdir: str) -> Result:
  """Trains, evaluates and saves as the config says, from where the run stands.

  Args:
    config: the whole config, such as `configs/digits.py` gives.
    workdir: directory of the run. It gets config.json, parameters.txt,
      classes.json (and categories.json, if classes have numbers),
      metrics.jsonl, tensorboard/ and checkpoints/, and unreadable.txt if there
      are images that cannot be read.

  Returns:
    How the run ended.

  Raises:
    InputError: the config, the data or the directory cannot be used.
    DivergenceError: a loss, gradient or parameter is not finite; the last
      checkpoint before it is kept.
  """
  mesh = partition.create_mesh()
  _check(config, mesh)
  # The mesh is in force while functions are traced: `ops.aw_conv` asks for it.
  with jax.set_mesh(mesh):
    return _Run(config, pathlib.Path(workdir).absolute(), mesh).run()


class _Run:
  """One run: what it is made of, and the loop."""

  def __init__(self, config: Any, workdir: pathlib.Path, mesh: Mesh):
    self._config, self._workdir, self._mesh = config, workdir, mesh
    self._task = tasks.create(config)
    self._batches, self._eval_batches = _create_data(config)
    _check_classes(self._task, config, self._batches)
    self._steps_per_epoch = self._batches.batches_per_epoch
    self._total = _every(config.num_epochs, self._steps_per_epoch)
    self._optimizer, self._schedule = optim.create(
        **config.optimizer,
        batch_size=config.batch_size,
        total_steps=self._total,
        steps_per_epoch=self._steps_per_epoch,
    )
    self._first = jax.process_index() == 0

  def run(self) -> Result:
    """Restores what is there and goes on to the end."""
    lock = partition.agree(self._claim)
    try:
      return self._run()
    finally:
      if lock is not None:
        lock.close()

  def _claim(self):
    """Takes the directory, in the first process, and returns its lock."""
    if not self._first:
      return None
    lock = workdirs.lock(self._workdir)
    try:
      workdirs.claim(self._workdir, self._config.to_dict())
    except errors.InputError:
      lock.close()
      raise
    return lock

  def _warm_start(self, state, say):
    """Returns the first state, with the weights of `config.init_from`."""
    config = self._config
    variables = partition.agree(
        lambda: warm_start.load(
            config.init_from,
            state.variables(),
            skip=config.init_skip,
            report=say,
        )
    )
    return train_step.replace_variables(state, variables)

  def _run(self) -> Result:
    config = self._config
    say = print if self._first else lambda line: None
    checkpointer = checkpoint.Checkpointer(
        self._workdir / 'checkpoints',
        keep=config.checkpoints_to_keep,
        report=say,
    )
    shapes = _batch_shapes(self._eval_batches)
    state = train_step.create_state(
        self._task,
        self._optimizer,
        self._mesh,
        seed=config.seed,
        batch_shapes=shapes,
        ema=config.ema_decay > 0,
    )
    if not checkpointer.steps():
      first = state.params
      if config.init_from:
        state = self._warm_start(state, say)
      frozen = optim.is_frozen(first, config.optimizer.frozen)
      names = warm_start.fixed_at_random(first, state.params, frozen)
      if names:
        say(_warning_of_frozen(names))
    if self._first:
      description = _describe(
          config, self._task, shapes, state, self._batches, self._eval_batches
      )
      print(description, flush=True)
      overview = parameter_overview.get_parameter_overview(
          state.params, include_stats=False
      )
      (self._workdir / 'parameters.txt').write_text(overview + '\n')
      write_classes(self._workdir, self._batches)
    with checkpointer:
      step = 0
      restored = checkpointer.restore_latest(state)
      if restored is not None:
        step, state, iterator_state = restored
        self._batches.set_state(iterator_state)
        if self._first:
          print(f'resumed from the checkpoint of step {step}', flush=True)
        if self._first and step >= self._total:
          print('this run is complete; evaluating it again', flush=True)
      with preemption.StopRequest() as stop:
        try:
          return self._loop(state, step, checkpointer, stop)
        finally:
          self._batches.close()

  def _loop(self, state, step, checkpointer, stop) -> Result:
    config, total = self._config, self._total
    step_function = train_step.create_train_step(
        self._task,
        self._optimizer,
        self._schedule,
        self._mesh,
        seed=config.seed,
        accumulation_steps=config.accumulation_steps,
        ema_decay=config.ema_decay,
        frozen=config.optimizer.frozen,
    )
    predict = train_step.create_predict(self._task, self._mesh)
    bar = progress.Progress(
        total, start=step, batch_size=config.batch_size, show=self._first
    )
    writer = None
    if self._first:
      writer = metric_writer.MetricWriter(self._workdir, step=step)
    log = _Log(writer, bar, self._steps_per_epoch)
    eval_every = _every(config.eval_every_epochs, self._steps_per_epoch)
    save_every = _every(config.checkpoint_every_epochs, self._steps_per_epoch)
    metrics, stopped_by, complete = {}, None, step >= total
    if self._first and not complete:
      print('compiling; the first step takes its time', flush=True)
    try:
      while step < total and not stopped_by:
        before = time.monotonic()
        batch = next(self._batches)
        bar.waited(time.monotonic() - before)
        batch = partition.shard_batch(self._mesh, batch)
        state, step_metrics = step_function(state, batch)
        step += 1
        log.add(step, step_metrics)
        last = step == total
        stopped_by = None if last else stop.reason(step)
        evaluate_now = _due(step, total, eval_every)
        save_now = _due(step, total, save_every) or stopped_by
        if evaluate_now or save_now or step % config.log_every_steps == 0:
          log.flush()
          self._tell_unreadable(self._batches, bar)
          partition.agree(self._batches.unreadable.check)
        # A grace period may be too short to evaluate in.
        if evaluate_now and (last or not stopped_by):
          metrics = self._evaluate(predict, state, step, bar, writer)
        # After the evaluation: what a checkpoint follows is on record.
        if save_now:
          checkpointer.save(step, state, self._batches.get_state())
      if complete:
        metrics = self._evaluate(predict, state, step, bar, None)
    except errors.DivergenceError as error:
      checkpointer.wait()
      saved = max(checkpointer.steps(), default=None)
      kept = (
          f'the checkpoint of step {saved} is kept'
          if saved is not None
          else 'no checkpoint was written yet'
      )
      raise errors.DivergenceError(
          f'{error}; {kept} in {self._workdir}; start again in another '
          '--workdir with a lower config.optimizer.learning_rate, a longer '
          'warm-up or config.optimizer.clip_norm'
      ) from error
    finally:
      for batches in (self._batches, self._eval_batches):
        self._tell_unreadable(batches, bar)
      bar.close()
      if writer is not None:
        writer.close()
    return Result(step, total, metrics, stopped_by)

  def _tell_unreadable(self, batches: Any, bar: progress.Progress) -> None:
    """Says, and keeps, what could not be read since the last time."""
    news = batches.unreadable.news()
    for line in news[:_MOST_LINES]:
      bar.say(f'not used: {line}')
    if len(news) > _MOST_LINES:
      more = len(news) - _MOST_LINES
      bar.say(f'and {more} more, named in {self._workdir / UNREADABLE}')
    workdirs.note(self._workdir, UNREADABLE, news)

  def _evaluate(self, predict, state, step, bar, writer) -> dict[str, float]:
    metrics = evaluate(
        predict,
        state.eval_variables(),
        self._eval_batches,
        self._task.evaluator(),
        self._mesh,
    )
    shown = '  '.join(
        f'{name} {value:,}' if isinstance(value, int) else f'{name} {value:.4f}'
        for name, value in metrics.items()
    )
    self._tell_unreadable(self._eval_batches, bar)
    partition.agree(self._eval_batches.unreadable.check)
    bar.say(f'step {step}/{self._total}  evaluation: {shown}')
    bar.restart(step)
    if writer is not None:
      writer.write(step, {f'eval/{k}': v for k, v in metrics.items()})
    return metrics
