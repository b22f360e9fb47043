"""The training loop: config -> data, task -> steps -> metrics, checkpoints."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
from typing import Any

from clu import parameter_overview
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from awconv_jax import data, macs, text_table
from awconv_jax.data.batches import check_classes
from awconv_jax.errors import InputError
from awconv_jax.train import (
    checkpoint,
    functions,
    logging,
    optim,
    partition,
    preemption,
    processes,
    programs,
    rundir,
    settings,
    stall,
    trace,
    warm_start,
)


@dataclasses.dataclass
class Result:
  """How a run ended, after `step` of `total_steps`.

  The metrics are of the last evaluation, none if it was cut short; `stopped_by`
  is the signal that asked the run to stop, if any.
  """

  step: int
  total_steps: int
  metrics: dict[str, float]
  stopped_by: str | None


def train(
    config: Any,
    workdir: str,
    *,
    writer: Callable[[int, Mapping[str, float]], object] | None = None,
    profile_steps: tuple[int, int] | None = None,
    stall_seconds: int | None = None,
) -> Result:
  """Trains, evaluates and saves as the config says, from where the run stands.

  Args:
    config: of the run, such as `configs/digits.py` gives; it is completed.
    workdir: directory of the run. It gets config.json, parameters.txt,
      classes.json (and categories.json, if classes have numbers),
      metrics.jsonl, tensorboard/ and checkpoints/, at its end finished.json,
      and unreadable.txt if there are images that cannot be read.
    writer: in the first process it is called with the step and the scalars of
      each row of metrics.jsonl, as the row is written.
    profile_steps: the first and the last step to trace into <workdir>/profile.
    stall_seconds: see `stall.Watch`.

  Raises:
    InputError: the config, the data or the directory cannot be used.
    DivergenceError: a loss, gradient or array of the state is not finite.
  """
  config = settings.complete(config)
  workdir, mesh = rundir.place(workdir), partition.create_mesh()
  task = settings.create_task(config)
  with contextlib.ExitStack() as stack, processes.telling():
    # In force while functions are traced: `ops.aw_conv` asks for it.
    stack.enter_context(jax.set_mesh(mesh))
    batches, eval_batches, shapes = create_data(config, task, mesh)
    stack.callback(batches.close)
    per_epoch = batches.batches_per_epoch
    lengths = dict(batch_size=config.batch_size, steps_per_epoch=per_epoch)
    eval_every, save_every = (
        max(round(epochs * per_epoch), 1)
        for epochs in (
            config.eval_every_epochs,
            config.checkpoint_every_epochs,
        )
    )
    # First, as that a run gets shorter may contradict its warm-up, too.
    claim = rundir.claim(workdir, config, logging.info)
    still_ours = stack.enter_context(claim)
    run = functions.create(config, task, mesh, per_epoch)
    total = run.total_steps
    tracing = trace.Trace(workdir, profile_steps, total)
    stack.enter_context(programs.kept(workdir))
    # It hears, too, where the run stands while the rest comes to its end.
    watch = stack.enter_context(stall.Watch(0, stall_seconds))
    stack.enter_context(tracing)
    stack.callback(watch.at, stall.TRACE)
    directory, keep = workdir / rundir.CHECKPOINTS, config.checkpoints_to_keep
    checkpointer = stack.enter_context(
        checkpoint.Checkpointer(
            directory,
            keep=keep,
            report=logging.info,
            record={
                'config': config.to_dict(),
                'classes': list(batches.class_names),
                'commit': (made_by := rundir.made_by())['commit'],
            },
        )
    )
    if jax.process_index() == 0:  # First weights are compiled, too.
      logging.info(describe_data(config, batches, eval_batches))
    state = run.create_state(
        batch_shapes=shapes,
        warm_start=lambda fresh: (
            fresh if checkpointer.steps() else first_weights(config, fresh)
        ),
    )
    if jax.process_index() == 0:
      _tell(workdir, task, state, shapes, batches)
    step, iterator_state = 0, {}
    trained = config  # What the checkpoint was trained by.

    starts = []  # What made the run so far, as far as it is known.

    def check(record):
      nonlocal trained, starts
      rundir.check_record(workdir, record, config, batches.class_names)
      trained = settings.complete(record['config']) if record else config
      starts = (record or {}).get('starts', [])

    restored = checkpointer.restore_latest(state, check)
    starts += [made_by] * (starts[-1:] != [made_by])
    checkpointer.record['starts'] = starts
    if jax.process_index() == 0:
      rundir.write_config(workdir, config)
    if restored is not None:
      step, state, iterator_state = restored
      batches.set_state(iterator_state)
      logging.info(f'resumed from the checkpoint of step {step}')
      if step and trained.num_epochs != config.num_epochs:
        before = functions.create(trained, task, mesh, per_epoch)
        schedule = config.optimizer.schedule
        logging.info(functions.extension(before, run, step, schedule))
    # Of weights and a directory of which each host may have its own.
    processes.agree(
        lambda: {'first state': checkpoint.digest(step, state, iterator_state)}
    )
    stop_reason = stack.enter_context(preemption.stop_requests())
    sources, saved = (batches, eval_batches), checkpointer.steps
    image = jax.eval_shape(lambda: batches.blank['image'][:1])
    macs_of_one = functools.partial(_macs, task, state, image)
    log = logging.Log(
        *(workdir, step, total, sources, saved, macs_of_one, writer),
        still_ours=still_ours,
        **lengths,
    )
    stack.enter_context(log)
    watch.step = step
    take_step = run.step_of(state)

    metrics, stopped_by, complete = {}, None, step >= total

    def evaluation():
      nonlocal stopped_by
      watch.at(stall.EVALUATION)
      variables = partition.gathered(mesh, state.eval_variables())
      evaluator = task.evaluator()
      for _, outputs in predictions(run.predict, variables, eval_batches, mesh):
        watch.at(stall.EVALUATION)
        evaluator.update(outputs)
        # A grace period may be too short to go on evaluating in.
        if stopped_by := stop_reason():
          return {}
      metrics = evaluator.compute()
      log.evaluation(step, metrics)
      return metrics

    def end():
      checkpointer.wait()  # Without the last one it is not at its end.
      made = False
      with contextlib.suppress(InputError):  # If it is damaged.
        # Nothing was trained.
        made = complete and rundir.finished(workdir) is not None
      if metrics and step >= total and not made and jax.process_index() == 0:
        *_, total_size = macs.rows(state.params, macs_of_one())
        facts = {k: total_size[k] for k in ('parameters', 'multiply_adds')}
        rundir.finish(workdir, config, metrics, **facts, starts=starts)
      return Result(step, total, metrics, stopped_by)

    if complete:
      logging.info('this run is complete; evaluating it again')
      metrics = evaluation()
      return end()
    # A run that was asked to stop has left out what was due.
    if step and _is_due(step, total, eval_every):
      if not multihost_utils.broadcast_one_to_all(log.has_evaluation):
        metrics = evaluation()
    logging.info('compiling; the first step takes its time')
    while step < total and not stopped_by:
      watch.at(stall.TRACE)
      if tracing.at(step + 1, state):
        log.restart_clock()
      watch.at('waiting for data')
      with log.waiting():
        batch = next(batches)
      watch.at(stall.STEP)
      with tracing.step(step + 1):
        rows = partition.shard_batch(mesh, batch)
        state, step_metrics = take_step(state, rows, run.seed)
      step += 1
      log.step(step, step_metrics)
      watch.ended(step)
      stopped_by = stop_reason() if step < total else None
      evaluate_now = _is_due(step, total, eval_every) and not stopped_by
      save_now = _is_due(step, total, save_every) or stopped_by
      if evaluate_now or save_now or step % config.log_every_steps == 0:
        watch.at('writing metrics')
        log.flush()
        # All of it, which takes longer, before it is used or kept.
        used = evaluate_now or save_now
        log.check(step, state if used else state.model_state)
      if evaluate_now:
        metrics = evaluation()
      # After the evaluation: what a checkpoint follows is on record.
      if save_now or stopped_by:
        watch.at(stall.SAVE)
        log.sync()
        checkpointer.save(step, state, batches.get_state())
        log.restart_clock()
    return end()


def predictions(
    predict: Any, variables: Any, batches: Any, mesh: Mesh
) -> Iterator[tuple[Any, Any]]:
  """Yields each batch and what is predicted for it, of `create_predict`.

  The batches hold this process's rows, and the outputs those of all.
  """
  # One batch ahead, so that the device works while the host counts.
  waiting = []
  for batch in batches:
    rows = partition.shard_batch(mesh, batch)
    waiting.append((batch, predict(variables, rows)))
    if len(waiting) > 1:
      yield jax.device_get(waiting.pop(0))
  yield from jax.device_get(waiting)


def create_data(config: Any, task: Any, mesh: Mesh) -> tuple[Any, Any, Any]:
  """Returns batches to train on, to evaluate on, and the latter's shapes."""
  partition.check_batch_sizes(config, mesh)
  create = functools.partial(
      data.create,
      config.data,
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
  )
  batches = create(train=True, batch_size=config.batch_size)
  eval_batches = create(train=False, batch_size=config.eval_batch_size)
  processes.agree(
      lambda: {
          'data to train on': batches.summary(),
          'data to evaluate on': eval_batches.summary(),
      }
  )
  if task.num_classes != batches.num_classes:
    raise InputError(
        f'config.model.num_classes={task.num_classes} must be '
        f'{batches.num_classes}, as {config.data.name!r} has'
    )
  check_classes(
      batches, eval_batches, (config.data.train_split, config.data.eval_split)
  )
  shapes = jax.eval_shape(lambda batch: batch, eval_batches.blank)
  if lacking := [key for key in task.trains_on if key not in shapes]:
    raise InputError(
        f'config.task.name={config.task.name!r} does not fit '
        f'{config.data.name!r}, whose batches have no {", ".join(lacking)}'
    )
  return batches, eval_batches, shapes


def first_weights(config: Any, fresh: Any) -> Any:
  """Returns the variables to start with: of `config.init_from` if given."""
  variables, skip = fresh, config.init_skip
  if config.init_from:
    variables = warm_start.load(
        config.init_from,
        fresh,
        skip=skip,
        report=logging.info,
        entry=config.init_entry,
        network=config.model,
    )
  elif skip or config.init_entry:
    given = f'init_skip={skip}' if skip else f'init_entry={config.init_entry!r}'
    raise InputError(f'config.{given} needs config.init_from')
  frozen = optim.is_frozen(fresh['params'], config.optimizer.frozen)
  fixed = warm_start.fixed_at_random
  if names := fixed(fresh['params'], variables['params'], frozen):
    logging.info(
        f'warning: config.optimizer.frozen fixes {len(names)} kernels at their '
        f'random first values, such as {names[0]}; start from weights that '
        'have them (config.init_from), or freeze less'
    )
  return variables


def _tell(workdir, task, state, shapes, batches):
  """Tells how large the network is, and writes what it is and its classes."""
  logging.info(describe_size(task, state, shapes))
  overview = parameter_overview.get_parameter_overview(
      state.params, include_stats=False
  )
  rundir.write(workdir / 'parameters.txt', f'{overview}\n')
  rundir.write_classes(workdir, batches.class_names, batches.category_ids)


def describe_data(config, batches, eval_batches) -> str:
  """Returns what is trained on what."""
  left_out = batches.num_left_out
  return (
      f'{config.model.name} on {config.data.name}: {batches.num_examples:,} '
      'examples to train on'
      + f' ({left_out:,} with nothing on them left out)' * bool(left_out)
      + f', {eval_batches.num_examples:,} to evaluate on\n'
      f'{jax.device_count()} {jax.devices()[0].device_kind} device(s), '
      f'{jax.process_count()} process(es), batches of {config.batch_size}, '
      f'seed {config.seed}'
  )


def describe_size(task, state, shapes) -> str:
  """Returns how large each part of the network is."""
  image = shapes['image'].update(shape=(1, *shapes['image'].shape[1:]))
  table = text_table.make(macs.rows(state.params, _macs(task, state, image)))
  return f'parameters, and multiply-adds for one image:\n{table}'


def _macs(task: Any, state: Any, image: Any) -> dict[str, int]:
  """Returns the multiply-adds by scope for one image, of this shape."""
  return macs.count(task.forward, state.variables(), {'image': image})


def _is_due(step: int, total: int, period: int) -> bool:
  """Returns whether what is done periodically, and at the end, is due.

  A time that falls shortly before the end is left to the end.
  """
  return step == total or (step % period == 0 and total - step >= period / 2)
