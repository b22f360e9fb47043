"""The root of every config: the settings of a run, and its sections."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Annotated, Any

import ml_collections

from awconv_jax import config as engine
from awconv_jax import data as data_sets
from awconv_jax import errors, models, tasks
from awconv_jax.options import (
    Bound,
    Fraction,
    Named,
    NonNegativeInt,
    Options,
    PositiveFloat,
    PositiveInt,
)
from awconv_jax.train import optim

_READER = Named(
    data_sets.reader_of,
    'data set',
    given=('train', 'batch_size', 'seed', 'process_index', 'process_count'),
)
_TASK = Named(tasks.TASKS, 'task', given=('model',))
_MODEL = Named({**models.MODELS, **models.DETECTORS}, 'model')
_OPTIMIZER = Options(
    optim.create, given=('batch_size', 'total_steps', 'steps_per_epoch')
)


@dataclasses.dataclass(kw_only=True)
class Settings:
  """What a config holds.

  Attributes:
    num_epochs: length of the whole run.
    batch_size: images per step, over all devices.
    eval_batch_size: the same for evaluation, which is exact for any size.
    data: the data set, and the options of what reads it.
    task: what is learned, and its options.
    model: the network or detector, and its options.
    optimizer: options of `optim.create`.
    seed: of the first weights, the order of the data and all else that is
      random.
    accumulation_steps: parts that a batch is computed in, one after the other.
    ema_decay: of the averages of weights and batch statistics; 0 is off.
    init_from: the directory of a run, or a .safetensors or .pth file, to take
      weights from.
    init_skip: modules that do not take them, such as ('head',).
    log_every_steps: steps whose mean is one row of the metrics.
    eval_every_epochs: and at the end.
    checkpoint_every_epochs: and at the end.
    checkpoints_to_keep: of the newest; one is left if the newest is damaged.
  """

  num_epochs: PositiveFloat
  batch_size: PositiveInt
  eval_batch_size: PositiveInt
  data: Annotated[Mapping[str, Any], _READER]
  task: Annotated[Mapping[str, Any], _TASK]
  model: Annotated[Mapping[str, Any], _MODEL]
  optimizer: Annotated[Mapping[str, Any], _OPTIMIZER]
  seed: NonNegativeInt = 0
  accumulation_steps: PositiveInt = 1
  ema_decay: Fraction = 0.0
  init_from: str | None = None
  init_skip: Sequence[str] = ()
  log_every_steps: PositiveInt = 100
  eval_every_epochs: PositiveFloat = 1.0
  checkpoint_every_epochs: PositiveFloat = 1.0
  checkpoints_to_keep: Annotated[int, Bound(ge=2)] = 2


def complete(
    config: Mapping[str, Any], overrides: Mapping[str, str] | None = None
) -> ml_collections.ConfigDict:
  """Returns the whole config of a run, checked and locked.

  Args:
    config: what a recipe sets; complete ones stay as they are.
    overrides: texts of values by path, as on the command line.

  Raises:
    InputError: unknown, missing and impossible values, one a line.
  """
  return engine.complete(config, Settings, overrides)


def network(name: str, **wanted: Any) -> dict[str, Any]:
  """Returns the section of a network, without the options it does not have.

  Args:
    name: of the network, such as 'resnet50'.
    **wanted: options, some of which may be those of other networks.

  Raises:
    InputError: an unknown name.
  """
  known = engine.options_of(errors.look_up('model', name, models.MODELS))
  return dict(name=name) | {k: v for k, v in wanted.items() if k in known}
