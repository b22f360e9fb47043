"""Optimizers and learning rate schedules on optax, and the EMA of weights.

SGD adds L2 to the gradient before the momentum, as torch.optim.SGD does;
AdamW decouples it (https://arxiv.org/abs/1711.05101); LAMB scales each layer's
step by |w| / |update| (https://arxiv.org/abs/1904.00962).
"""

from collections.abc import Callable, Mapping, Sequence
import fnmatch
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from awconv_jax.errors import InputError, look_up
from awconv_jax.options import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    Options,
    PositiveFloat,
    PositiveInt,
    Share,
    UnitFloat,
)

Mask = Callable[[Any], Any]  # Of parameters, which decay: a tree of bools.


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    *,
    momentum: Fraction = 0.9,
    nesterov: bool = True,
) -> optax.GradientTransformation:
  """SGD with L2, as torch: the decay passes through the momentum."""
  return optax.chain(
      optax.add_decayed_weights(weight_decay, mask),
      optax.sgd(learning_rate, momentum, nesterov),
  )


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    *,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    eps: PositiveFloat = 1e-8,
) -> optax.GradientTransformation:
  """Adam with decay outside of the moments."""
  return optax.adamw(
      learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask
  )


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    *,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    eps: PositiveFloat = 1e-6,
) -> optax.GradientTransformation:
  """LAMB; parameters that do not decay keep Adam's step.

  `optax.lamb` masks the decay only and scales the step of a bias by its norm,
  too. The authors' code and timm's, with which the recipes of
  https://arxiv.org/abs/2110.00476 were made, leave both off together.
  """
  return optax.chain(
      optax.scale_by_adam(b1, b2, eps),
      optax.add_decayed_weights(weight_decay, mask),
      optax.masked(optax.scale_by_trust_ratio(), mask),
      optax.scale_by_learning_rate(learning_rate),
  )


OPTIMIZERS = {'sgd': sgd, 'adamw': adamw, 'lamb': lamb}

# Which parameters decay. 'kernels' spares biases and normalisation scales.
DECAY_MASKS = {
    'kernels': lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params),
    'all': lambda params: jax.tree.map(lambda p: True, params),
}


def constant(warmup_steps, total_steps, steps_per_epoch) -> optax.Schedule:
  """The full rate to the end."""
  del warmup_steps, total_steps, steps_per_epoch
  return lambda step: 1.0


def step(
    warmup_steps: int,
    total_steps: int,
    steps_per_epoch: float,
    *,
    boundaries_epochs: Sequence[PositiveFloat] = (30.0, 60.0, 90.0),
    factor: Share = 0.1,
) -> optax.Schedule:
  """Times `factor` from each boundary on, in epochs from the very start.

  Some may be past the end: a shortened run is the beginning of the full one.
  """
  del total_steps
  times = (warmup_steps / steps_per_epoch, *boundaries_epochs)
  if sorted(set(times)) != list(times):
    raise InputError(
        f'config.optimizer.schedule_options.boundaries_epochs={times[1:]} must '
        f'rise, and come after the warm-up of {times[0]:g} epochs'
    )
  steps = [round(boundary * steps_per_epoch) for boundary in boundaries_epochs]
  boundaries = jnp.array(steps, jnp.int32)
  return lambda step: factor ** jnp.sum(
      jnp.asarray(step)[..., None] >= boundaries, axis=-1
  )


def cosine(
    warmup_steps: int,
    total_steps: int,
    steps_per_epoch: float,
    *,
    final_fraction: UnitFloat = 0.0,
) -> optax.Schedule:
  """Half a cosine from the end of the warm-up, to be at its foot at the end.

  Source: https://arxiv.org/abs/1608.03983, without restarts.
  """
  del steps_per_epoch
  decay_steps = max(total_steps - warmup_steps, 1)

  def fraction(step):
    progress = jnp.clip((step - warmup_steps) / decay_steps, 0, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return final_fraction + (1 - final_fraction) * cosine

  return fraction


# What the rate is multiplied by, from the end of the warm-up on.
SCHEDULES = {'constant': constant, 'step': step, 'cosine': cosine}

_OF_OPTIMIZER = Options(
    OPTIMIZERS, by='name', given=('learning_rate', 'weight_decay', 'mask')
)
_OF_SCHEDULE = Options(
    SCHEDULES,
    by='schedule',
    given=('warmup_steps', 'total_steps', 'steps_per_epoch'),
)


def create(
    *,
    batch_size: int,
    total_steps: int,
    steps_per_epoch: float,
    learning_rate: NonNegativeFloat,
    base_batch_size: PositiveInt,
    name: Annotated[str, OneOf(OPTIMIZERS)] = 'sgd',
    options: Annotated[Mapping[str, Any] | None, _OF_OPTIMIZER] = None,
    weight_decay: NonNegativeFloat = 0.0,
    decay_mask: Annotated[str, OneOf(DECAY_MASKS)] = 'kernels',
    clip_norm: NonNegativeFloat = 0.0,
    frozen: Sequence[str] = (),
    schedule: Annotated[str, OneOf(SCHEDULES)] = 'cosine',
    schedule_options: Annotated[Mapping[str, Any] | None, _OF_SCHEDULE] = None,
    warmup_epochs: NonNegativeFloat = 0.0,
    warmup_steps: NonNegativeInt = 0,
    warmup_start_fraction: UnitFloat = 0.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds an optimizer with its schedule; `config.optimizer` holds the rest.

  Args:
    batch_size: images per step, over all devices.
    total_steps: of the whole training, warm-up included.
    steps_per_epoch: the unit of durations, which become whole steps.
    learning_rate: the highest rate, for batches of `base_batch_size`; it grows
      in proportion to the batch.
    base_batch_size: images per step that `learning_rate` is meant for.
    name: of the optimizer.
    options: of the optimizer, such as `sgd`.
    weight_decay: L2 or decoupled decay, as the optimizer has it.
    decay_mask: which parameters decay: 'kernels' or 'all'.
    clip_norm: highest norm of the gradient of the loss; 0 is off.
    frozen: patterns of parameters that keep their values; see `is_frozen`.
    schedule: name of the schedule after the warm-up.
    schedule_options: of the schedule, such as `step`.
    warmup_epochs: length of a linear warm-up.
    warmup_steps: the same in steps; one of the two is 0.
    warmup_start_fraction: share of the rate that the warm-up starts from.

  Returns:
    (transformation, schedule); the schedule maps a step (from 0; int or int
    array) to its learning rate.

  Raises:
    InputError: an unknown name, or durations that contradict each other.
  """
  warmup = warmup_steps or round(warmup_epochs * steps_per_epoch)
  if warmup_steps and warmup_epochs:
    raise InputError(
        f'config.optimizer.warmup_steps={warmup_steps} and warmup_epochs='
        f'{warmup_epochs} are both given; set one to 0'
    )
  if warmup > total_steps:
    raise InputError(
        f'config.optimizer: the warm-up of {warmup} steps is longer than the '
        f'run of {total_steps}; shorten warmup_epochs={warmup_epochs}, '
        f'warmup_steps={warmup_steps}'
    )
  fraction = look_up('schedule', schedule, SCHEDULES)(
      warmup, total_steps, steps_per_epoch, **(schedule_options or {})
  )
  highest = learning_rate * batch_size / base_batch_size

  def rate(step):
    start = warmup_start_fraction
    rise = start + (1 - start) * step / max(warmup, 1)
    return highest * jnp.where(step < warmup, rise, fraction(step))

  build = look_up('optimizer', name, OPTIMIZERS)
  mask = look_up('decay mask', decay_mask, DECAY_MASKS)
  tx = build(rate, weight_decay, mask, **(options or {}))
  if clip_norm:
    # Ahead of the decay, so that it bounds the loss's gradient alone.
    tx = optax.chain(optax.clip_by_global_norm(clip_norm), tx)
  if frozen:
    # Decay and momentum, too, pass them by.
    tx = optax.partition(
        {False: tx, True: optax.set_to_zero()},
        lambda params: is_frozen(params, frozen),
    )
  return tx, rate


def is_frozen(params: Any, patterns: Sequence[str]) -> Any:
  """Returns which parameters keep their values, as a tree of bools.

  Args:
    params: a tree of nested dicts.
    patterns: of paths such as 'backbone/stage1_block1/conv1/kernel', where '*'
      stands for anything, 'backbone/stage1_*'.

  Raises:
    InputError: a pattern is that of no parameter.
  """
  paths = list(map(_path, jax.tree_util.tree_leaves_with_path(params)))
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

  Unlike in `is_frozen`, some patterns may be of parameters alone.
  """
  return jax.tree.map(
      lambda keep, a, b: a if keep else b, _matches(new, patterns), old, new
  )


def _matches(tree: Any, patterns: Sequence[str]) -> Any:
  """Returns a tree of bools: whether any pattern is that of the path."""
  return jax.tree_util.tree_map_with_path(
      lambda *leaf: any(fnmatch.fnmatchcase(_path(leaf), p) for p in patterns),
      tree,
  )


def _path(leaf: tuple[Any, Any]) -> str:
  return '/'.join(str(key.key) for key in leaf[0])


def ema_update(ema: Any, new: Any, decay: float | jax.Array) -> Any:
  """Returns `decay * ema + (1 - decay) * new`, leaf by leaf.

  Works on parameters and on batch norm statistics alike, in the dtypes of
  `ema`; leaves of no float type (counters, masks) are those of `new`. Keep the
  average in float32: in bfloat16 a step of 1e-4 is lost in rounding.
  """

  def update(average, value):
    dtype = jnp.result_type(average)
    if not jnp.issubdtype(dtype, jnp.floating):
      return value
    return (decay * average + (1 - decay) * value).astype(dtype)

  return jax.tree.map(update, ema, new)
