"""Optimizers and learning rate schedules on optax, and the EMA of weights.

SGD adds L2 to the gradient before the momentum, as torch.optim.SGD does;
AdamW decouples it (https://arxiv.org/abs/1711.05101); LAMB scales each layer's
step by |w| / |update| (https://arxiv.org/abs/1904.00962).
"""

from collections.abc import Callable, Mapping, Sequence
import fnmatch
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from awconv_jax.errors import InputError, unknown_name

# Which parameters decay. 'kernels' spares biases and normalisation scales.
DECAY_MASKS = {
    'kernels': lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params),
    'all': lambda params: jax.tree.map(lambda p: True, params),
}


def create(
    config: Any, *, batch_size: int, total_steps: int, steps_per_epoch: float
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds the optimizer of a config.

  Args:
    config: `config.optimizer`, complete; the learning rate is
      `learning_rate * batch_size / base_batch_size`.
    batch_size: images per step, over all devices.
    total_steps: steps of the whole training.
    steps_per_epoch: steps per epoch, the unit of the config's durations.

  Returns:
    (transformation, schedule); the schedule maps a step to its learning rate.

  Raises:
    InputError: a name, option or value of the config that cannot be used.
  """
  build = _look_up('optimizer', config.name, OPTIMIZERS)
  options = _options('optimizer', config.name, build, config.options)
  mask = _look_up('optimizer.decay_mask', config.decay_mask, DECAY_MASKS)
  _check('learning_rate', config.learning_rate, 0)
  _check('base_batch_size', config.base_batch_size, 0, above=True)
  _check('weight_decay', config.weight_decay, 0)
  _check('clip_norm', config.clip_norm, 0)
  schedule = create_schedule(
      config,
      base_learning_rate=(
          config.learning_rate * batch_size / config.base_batch_size
      ),
      total_steps=total_steps,
      steps_per_epoch=steps_per_epoch,
  )
  tx = build(schedule, config.weight_decay, mask, **options)
  if config.clip_norm:
    # Ahead of the decay, so that it bounds the loss's gradient alone.
    tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
  if config.frozen:
    # Decay and momentum, too, pass them by.
    tx = optax.partition(
        {False: tx, True: optax.set_to_zero()},
        lambda params: frozen(params, config.frozen),
    )
  return tx, schedule


def frozen(params: Any, patterns: Sequence[str]) -> Any:
  """Returns which parameters keep their values.

  Args:
    params: a tree of nested dicts.
    patterns: of paths such as 'backbone/stage1_block1/conv1/kernel', where '*'
      stands for anything, 'backbone/stage1_*'.

  Returns:
    A tree of bools like `params`.

  Raises:
    InputError: a pattern is that of no parameter.
  """
  paths = _paths(params)
  for pattern in patterns:
    if not fnmatch.filter(paths, pattern):
      tops = ', '.join(sorted({path.split('/')[0] for path in paths}))
      raise InputError(
          f'config.optimizer.frozen: {pattern!r} is the path of no parameter; '
          f'they are under {tops}, see parameters.txt of a run'
      )
  return _matches(params, patterns)


def keep_frozen(old: Any, new: Any, patterns: Sequence[str]) -> Any:
  """Returns new statistics, but the old ones of what is frozen.

  Args:
    old, new: trees like those of the parameters, such as 'batch_stats'.
    patterns: as of `frozen`; some may be of parameters alone.
  """
  return jax.tree.map(
      lambda keep, a, b: a if keep else b, _matches(new, patterns), old, new
  )


def _paths(tree: Any) -> list[str]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return ['/'.join(str(key.key) for key in path) for path, _ in leaves]


def _matches(tree: Any, patterns: Sequence[str]) -> Any:
  """Returns a tree of bools: whether any pattern is that of the path."""
  matches = [
      any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
      for path in _paths(tree)
  ]
  return jax.tree.unflatten(jax.tree.structure(tree), matches)


def create_schedule(
    config: Any,
    *,
    base_learning_rate: float,
    total_steps: int,
    steps_per_epoch: float,
) -> optax.Schedule:
  """Builds the schedule of a config: linear warm-up, then the named one.

  Args:
    config: `config.optimizer`; read are `schedule`, `schedule_options`,
      `warmup_epochs` or `warmup_steps`, and `warmup_start_fraction`.
    base_learning_rate: the highest rate, already scaled to the batch size.
    total_steps: steps of the whole training, warm-up included.
    steps_per_epoch: steps per epoch; durations are rounded to whole steps.

  Returns:
    Function from the step (from 0; int or int array) to the learning rate.

  Raises:
    InputError: a name, option or value of the config that cannot be used.
  """
  build = _look_up('optimizer.schedule', config.schedule, SCHEDULES)
  options = _options(
      'schedule', config.schedule, build, config.schedule_options
  )
  epochs = total_steps / steps_per_epoch
  # The training's length is rounded to whole steps.
  longest = epochs + 1 / steps_per_epoch
  _check('warmup_epochs', config.warmup_epochs, 0, longest)
  _check('warmup_start_fraction', config.warmup_start_fraction, 0, 1)
  _check('warmup_steps', config.warmup_steps, 0, total_steps)
  if config.warmup_steps and config.warmup_epochs:
    raise InputError(
        f'config.optimizer.warmup_steps={config.warmup_steps} and '
        f'warmup_epochs={config.warmup_epochs} are both given; set one to 0'
    )
  warmup_steps = config.warmup_steps or round(
      config.warmup_epochs * steps_per_epoch
  )
  fraction = build(warmup_steps, total_steps, steps_per_epoch, **options)
  start = config.warmup_start_fraction

  def schedule(step):
    rise = start + (1 - start) * step / max(warmup_steps, 1)
    warming = step < warmup_steps
    return base_learning_rate * jnp.where(warming, rise, fraction(step))

  return schedule


def ema_update(ema: Any, new: Any, decay: float | jax.Array) -> Any:
  """Returns `decay * ema + (1 - decay) * new`, leaf by leaf.

  Works on parameters and on batch norm statistics alike. Keep the average in
  float32: in bfloat16 a step of 1e-4 is lost in rounding.

  Args:
    ema: pytree of arrays, the average so far.
    new: pytree like `ema`.
    decay: weight of the past, such as 0.9999.

  Returns:
    Pytree with the dtypes of `ema`; leaves that are not of a float type
    (counters, masks) are those of `new`.
  """

  def update(average, value):
    dtype = jnp.result_type(average)
    if not jnp.issubdtype(dtype, jnp.floating):
      return value
    return (decay * average + (1 - decay) * value).astype(dtype)

  return jax.tree.map(update, ema, new)


def _sgd(learning_rate, weight_decay, mask, *, momentum, nesterov):
  """SGD with L2, as torch: the decay passes through the momentum."""
  _check('options.momentum', momentum, 0, 1, below=True)
  if not isinstance(nesterov, bool):
    raise InputError(
        f'config.optimizer.options.nesterov={nesterov!r} must be True or False'
    )
  return optax.chain(
      optax.add_decayed_weights(weight_decay, mask),
      optax.sgd(learning_rate, momentum, nesterov),
  )


def _adamw(learning_rate, weight_decay, mask, *, b1, b2, eps):
  """Adam with decay outside of the moments."""
  _check_adam(b1, b2, eps)
  return optax.adamw(
      learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask
  )


def _lamb(learning_rate, weight_decay, mask, *, b1, b2, eps):
  """LAMB; parameters that do not decay keep Adam's step.

  `optax.lamb` masks the decay only and scales the step of a bias by its norm,
  too. The authors' code and timm's, with which the recipes of
  https://arxiv.org/abs/2110.00476 were made, leave both off together.
  """
  _check_adam(b1, b2, eps)
  return optax.chain(
      optax.scale_by_adam(b1, b2, eps),
      optax.add_decayed_weights(weight_decay, mask),
      optax.masked(optax.scale_by_trust_ratio(), mask),
      optax.scale_by_learning_rate(learning_rate),
  )


OPTIMIZERS = {'sgd': _sgd, 'adamw': _adamw, 'lamb': _lamb}


def _constant(warmup_steps, total_steps, steps_per_epoch):
  """The full rate to the end."""
  del warmup_steps, total_steps, steps_per_epoch
  return lambda step: 1.0


def _step(
    warmup_steps, total_steps, steps_per_epoch, *, boundaries_epochs, factor
):
  """Times `factor` from each boundary on, in epochs from the very start.

  Boundaries past the end are allowed: a shortened run is the beginning of
  the full one.
  """
  del total_steps
  _check('schedule_options.factor', factor, 0, 1, above=True)
  key = 'schedule_options.boundaries_epochs'
  last = warmup_steps / steps_per_epoch
  if not isinstance(boundaries_epochs, (list, tuple)):
    raise InputError(
        f'config.optimizer.{key}={boundaries_epochs!r} must be a tuple'
    )
  for index, boundary in enumerate(boundaries_epochs):
    _check(f'{key}[{index}]', boundary, last, above=True)
    last = boundary
  steps = [round(boundary * steps_per_epoch) for boundary in boundaries_epochs]
  boundaries = jnp.array(steps, jnp.int32)
  return lambda step: factor ** jnp.sum(
      jnp.asarray(step)[..., None] >= boundaries, axis=-1
  )


def _cosine(warmup_steps, total_steps, steps_per_epoch, *, final_fraction):
  """Half a cosine from the end of the warm-up, to be at its foot at the end.

  Source: https://arxiv.org/abs/1608.03983, without restarts.
  """
  del steps_per_epoch
  _check('schedule_options.final_fraction', final_fraction, 0, 1)
  decay_steps = max(total_steps - warmup_steps, 1)

  def fraction(step):
    progress = jnp.clip((step - warmup_steps) / decay_steps, 0, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return final_fraction + (1 - final_fraction) * cosine

  return fraction


SCHEDULES = {'constant': _constant, 'step': _step, 'cosine': _cosine}


def _look_up(kind: str, name: str, registry: Mapping[str, Any]) -> Any:
  """Returns the entry called `name`, or raises naming all of them."""
  if name not in registry:
    raise unknown_name(kind, name, registry)
  return registry[name]


def _options(
    kind: str, name: str, build: Callable, options: Mapping
) -> dict[str, Any]:
  """Returns the options as a dict, once they are exactly those of `build`."""
  options = dict(options)
  known = [
      parameter.name
      for parameter in inspect.signature(build).parameters.values()
      if parameter.kind is parameter.KEYWORD_ONLY
  ]
  key = 'options' if kind == 'optimizer' else 'schedule_options'
  listed = ', '.join(known) or 'none'
  for option in [*options, *known]:
    if option not in known:
      fault = f'is not an option of {kind} {name!r}'
    elif option not in options:
      fault = f'is missing, {kind} {name!r} needs it'
    else:
      continue
    raise InputError(
        f'config.optimizer.{key}.{option} {fault}; known: {listed}'
    )
  return options


def _check_adam(b1: float, b2: float, eps: float) -> None:
  """Checks the options that AdamW and LAMB share."""
  _check('options.b1', b1, 0, 1, below=True)
  _check('options.b2', b2, 0, 1, below=True)
  _check('options.eps', eps, 0, above=True)


def _check(
    key: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
  """Raises unless low <= value <= high (< with above, below) and finite."""
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if number and math.isfinite(value):
    if low < value < high:
      return
    if (value == low and not above) or (value == high and not below):
      return
  bound = f'{"above" if above else "at least"} {low:g}'
  if high < math.inf:
    bound += f' and {"below" if below else "at most"} {high:g}'
  raise InputError(f'config.optimizer.{key}={value!r} must be a number {bound}')
