"""Optimizers and learning rate schedules on optax.

SGD adds L2 to the gradient before the momentum, as torch.optim.SGD does;
AdamW decouples it (https://arxiv.org/abs/1711.05101); LAMB scales each layer's
step by |w| / |update| (https://arxiv.org/abs/1904.00962).
"""

from collections.abc import Callable, Mapping, Sequence
import fnmatch
import functools
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from awconv_jax.errors import InputError, look_up
from awconv_jax.options import (
    MOST,
    Bound,
    Epochs,
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

# An optimizer takes the learning rate or its schedule, the weight decay, and a
# mask: of parameters, a tree of bools, which of them decay.
Rate = optax.ScalarOrSchedule
Mask = Callable[[Any], Any]


def sgd(
    rate: Rate,
    decay: float,
    mask: Mask,
    *,
    momentum: Fraction = 0.9,
    nesterov: bool = True,
):
  """SGD with L2, as torch: the decay passes through the momentum.

  Args:
    rate, decay, mask: see above.
    momentum: share of the old direction.
    nesterov: whether the gradient is taken ahead of the momentum.
  """
  return optax.chain(
      optax.add_decayed_weights(decay, mask),
      optax.sgd(rate, momentum, nesterov),
  )


def adamw(
    rate: Rate,
    decay: float,
    mask: Mask,
    *,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    eps: PositiveFloat = 1e-8,
):
  """Adam with decay outside of the moments.

  Args:
    rate, decay, mask: see above.
    b1, b2: shares of the old first and second moment.
    eps: added to the root of the second.
  """
  return optax.adamw(rate, b1, b2, eps, weight_decay=decay, mask=mask)


def lamb(
    rate: Rate,
    decay: float,
    mask: Mask,
    *,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    eps: PositiveFloat = 1e-6,
):
  """LAMB; parameters that do not decay keep Adam's step.

  `optax.lamb` masks the decay only and scales the step of a bias by its norm,
  too. The authors' code and timm's, with which the recipes of
  https://arxiv.org/abs/2110.00476 were made, leave both off together.

  Args:
    rate, decay, mask: see above.
    b1, b2: shares of the old first and second moment.
    eps: added to the root of the second.
  """
  return optax.chain(
      optax.scale_by_adam(b1, b2, eps),
      optax.add_decayed_weights(decay, mask),
      optax.masked(optax.scale_by_trust_ratio(), mask),
      optax.scale_by_learning_rate(rate),
  )


OPTIMIZERS = {'sgd': sgd, 'adamw': adamw, 'lamb': lamb}

# Which parameters decay. 'kernels' spares biases and normalisation scales.
DECAY_MASKS = {
    'kernels': lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params),
    'all': lambda params: jax.tree.map(lambda p: True, params),
}

# A schedule says what the rate is multiplied by after the warm-up: for a step
# (from 0), the progress in [0, 1] from there to the end, and steps per epoch.


def constant(at: ArrayLike, progress: ArrayLike, steps_per_epoch: float):
  """The full rate to the end."""
  return 1.0


def step(
    at: ArrayLike,
    progress: ArrayLike,
    steps_per_epoch: float,
    *,
    boundaries_epochs: Sequence[Epochs] = (30.0, 60.0, 90.0),
    factor: Share = 0.1,
):
  """Times `factor` from each boundary on, in epochs from the very start.

  Some may be past the end: a shortened run is the beginning of the full one.

  Args:
    at, progress, steps_per_epoch: see above.
    boundaries_epochs: the boundaries, rising.
    factor: what the rate is multiplied by at each.
  """
  ends = (round(epoch * steps_per_epoch) for epoch in boundaries_epochs)
  starts = [min(end, MOST) for end in ends]
  passed = jnp.asarray(at)[..., None] >= jnp.array(starts, jnp.int32)
  return factor ** jnp.sum(passed, axis=-1)


def cosine(
    at: ArrayLike,
    progress: ArrayLike,
    steps_per_epoch: float,
    *,
    final_fraction: UnitFloat = 0.0,
):
  """Half a cosine, at its foot at the end.

  Args:
    at, progress, steps_per_epoch: see above.
    final_fraction: share of the rate that is left at the end.

  Source: https://arxiv.org/abs/1608.03983, without restarts.
  """
  cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
  return final_fraction + (1 - final_fraction) * cosine


SCHEDULES = {'constant': constant, 'step': step, 'cosine': cosine}

_OF_OPTIMIZER = Options(OPTIMIZERS, by='name', given=('rate', 'decay', 'mask'))
_OF_SCHEDULE = Options(
    SCHEDULES, by='schedule', given=('at', 'progress', 'steps_per_epoch')
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
    warmup_epochs: Annotated[float, Bound(ge=0, le=1e6)] = 0.0,
    warmup_steps: NonNegativeInt = 0,
    warmup_start_fraction: UnitFloat = 0.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns an optimizer, and its schedule: of a step, from 0, to its rate.

  Args:
    batch_size: images per step, over all devices.
    total_steps: of the whole training, warm-up included.
    steps_per_epoch: the unit of durations, which become whole steps.
    learning_rate: the highest rate, for batches of `base_batch_size` images; it
      grows in proportion to the batch.
    base_batch_size: images of the batch that the rate is for.
    name, options: of the optimizer, such as `sgd`.
    weight_decay: L2 or decoupled decay, as the optimizer has it.
    decay_mask: which parameters decay: 'kernels' or 'all'.
    clip_norm: highest norm of the gradient of the loss; 0 is off.
    frozen: patterns of parameters that keep their values; see `is_frozen`.
    schedule, schedule_options: of what follows the warm-up, such as `step`.
    warmup_epochs, warmup_steps: length of a linear warm-up; one of them is 0.
    warmup_start_fraction: share of the rate that the warm-up starts from.

  Raises:
    InputError: an unknown name, or durations that contradict each other; from
      the optimizer's `init`: a pattern is that of no parameter.
  """
  warmup = warmup_steps or round(warmup_epochs * steps_per_epoch)
  if warmup_steps and warmup_epochs:
    raise InputError(
        f'config.optimizer.{warmup_steps=} and {warmup_epochs=}: set one to 0'
    )
  if warmup > total_steps:
    raise InputError(
        f'config.optimizer: the warm-up of {warmup} steps ({warmup_epochs=}, '
        f'{warmup_steps=}) is longer than the run of {total_steps}; give '
        '--config.optimizer.warmup_epochs=0 and warmup_steps=0, or a greater '
        '--config.num_epochs'
    )
  boundaries = (schedule_options or {}).get('boundaries_epochs', ())
  times = [warmup / steps_per_epoch, *boundaries]
  if times != sorted(set(times)):
    raise InputError(
        f'config.optimizer.schedule_options.boundaries_epochs={times[1:]} must '
        f'rise, and come after the warm-up of {times[0]:g} epochs'
    )
  highest = learning_rate * batch_size / base_batch_size
  falling = functools.partial(
      look_up('schedule', schedule, SCHEDULES), **(schedule_options or {})
  )

  def rate(step):
    start = warmup_start_fraction
    rise = start + (1 - start) * step / max(warmup, 1)
    progress = (step - warmup) / max(total_steps - warmup, 1)
    fraction = falling(step, jnp.clip(progress, 0, 1), steps_per_epoch)
    return highest * jnp.where(step < warmup, rise, fraction)

  build = look_up('optimizer', name, OPTIMIZERS)
  mask = look_up('decay mask', decay_mask, DECAY_MASKS)
  tx = build(rate, weight_decay, mask, **(options or {}))
  if clip_norm:
    # Ahead of the decay, so that it bounds the loss's gradient alone.
    tx = optax.chain(optax.clip_by_global_norm(clip_norm), tx)
  if frozen:
    # Decay and momentum, too, pass them by.
    parts = {False: tx, True: optax.set_to_zero()}
    tx = optax.partition(
        parts, lambda params: is_frozen(params, frozen, strict=True)
    )
  return tx, rate


def is_frozen(
    tree: Any, patterns: Sequence[str], *, strict: bool = False
) -> Any:
  """Returns which parameters or statistics stay, as a tree of bools.

  Args:
    tree: of nested dicts.
    patterns: of paths such as 'backbone/stage1_block1/conv1/kernel', where '*'
      stands for anything, 'backbone/stage1_*'.
    strict: whether a pattern that is the path of nothing is an InputError.
  """

  def matches(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

  for pattern in patterns if strict else ():
    if not any(jax.tree.leaves(is_frozen(tree, [pattern]))):
      raise InputError(
          f'config.optimizer.frozen: {pattern!r} is no path below '
          f'{", ".join(sorted(tree))}; want such as {sorted(tree)[0]}/*'
      )
  return jax.tree_util.tree_map_with_path(matches, tree)
