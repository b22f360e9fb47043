"""The root of every config: the settings of a run, and its sections."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Annotated, Any

import ml_collections

from awconv_jax import config as engine
from awconv_jax import data as data_sets
from awconv_jax import errors, models, options, tasks
from awconv_jax.train import optim

_BY_LOOP = 'train', 'batch_size', 'seed', 'process_index', 'process_count'
_READER = options.Named(data_sets.reader_of, 'data set', given=_BY_LOOP)
_TASK = options.Named(tasks.TASKS, 'task', given=('model',))
_MODEL = options.Named(
    {**models.MODELS, **models.DETECTORS, **models.SEGMENTERS}, 'model'
)
_OPTIMIZER = options.Options(
    optim.create, given=('batch_size', 'total_steps', 'steps_per_epoch')
)


@dataclasses.dataclass(kw_only=True)
class Settings:
  """What a config holds.

  Attributes:
    num_epochs: length of the whole run; a larger number extends it.
    batch_size: images per step, over all devices.
    eval_batch_size: the same for evaluation, which is exact for any size.
    data: the data set, and the options of what reads it.
    task: what is learned, and its options.
    model: the network, detector or segmenter, and its options.
    optimizer: options of `optim.create`.
    seed: of the first weights, the order of the data, and all that is random.
    accumulation_steps: parts that a batch is computed in, one after the other.
    ema_decay: of the averages of weights and batch statistics; 0 is off.
    shard_state: whether each device holds, and updates, only its share of the
      optimizer's state and of the averages.
    init_from: a run, or a .safetensors or .pth file, to take weights from.
    init_entry: key of the weights in a checkpoint of torch.save, such as
      'state_dict_ema'; None for the usual ones.
    init_skip: modules that do not take them, such as ('head',).
    log_every_steps: steps whose mean is one row of the metrics.
    eval_every_epochs: epochs from one evaluation to the next; there is one at
      the end, too.
    checkpoint_every_epochs: the same of checkpoints.
    checkpoints_to_keep: how many of the newest; one is left if the newest is
      damaged.
  """

  num_epochs: options.Epochs
  batch_size: options.PositiveInt
  eval_batch_size: options.PositiveInt
  data: Annotated[Mapping[str, Any], _READER]
  task: Annotated[Mapping[str, Any], _TASK]
  model: Annotated[Mapping[str, Any], _MODEL]
  optimizer: Annotated[Mapping[str, Any], _OPTIMIZER]
  seed: options.Seed = 0
  accumulation_steps: options.PositiveInt = 1
  ema_decay: options.Fraction = 0.0
  shard_state: bool = False
  init_from: options.AnyPath | None = None
  init_entry: str | None = None
  init_skip: Sequence[str] = ()
  log_every_steps: options.PositiveInt = 100
  eval_every_epochs: options.Epochs = 1.0
  checkpoint_every_epochs: options.Epochs = 1.0
  checkpoints_to_keep: Annotated[int, options.Bound(ge=2, le=options.MOST)] = 2


def complete(
    config: Mapping[str, Any], overrides: Mapping[str, str] | None = None
) -> ml_collections.ConfigDict:
  """Returns the whole config of a run; see `awconv_jax.config.complete`."""
  return engine.complete(config, Settings, overrides)


def create_task(config: Any) -> Any:
  """Returns the task of a complete config, with its network or detector."""
  chosen = config.task.to_dict()
  task = errors.look_up('task', chosen.pop('name'), tasks.TASKS)
  return task(task.create_model(**config.model.to_dict()), **chosen)


def network(name: str, **wanted: Any) -> dict[str, Any]:
  """Returns the section of a network, of the options wanted those it has."""
  known = options.options_of(errors.look_up('model', name, models.MODELS))
  return dict(name=name) | {k: v for k, v in wanted.items() if k in known}
