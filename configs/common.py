"""What the configs share: strict arguments, and what sections have in common.

The numbers of a recipe stand in its own file, all of them; here is what is the
same for all.
"""

from collections.abc import Mapping
import difflib
from typing import Any

import ml_collections

# The options of every optimizer and schedule, for configs to choose from.
OPTIMIZERS = {
    'sgd': dict(momentum=0.9, nesterov=True),
    'adamw': dict(b1=0.9, b2=0.999, eps=1e-8),
    'lamb': dict(b1=0.9, b2=0.999, eps=1e-6),
}
SCHEDULES = {
    'constant': {},
    'cosine': dict(final_fraction=0.0),
    'step': dict(boundaries_epochs=(30.0, 60.0, 90.0), factor=0.1),
}
ATTENTION = {
    'none': {},
    'se': dict(reduction=16),
    'cbam': dict(
        reduction=16, spatial_size=7, norm_momentum=0.99, norm_epsilon=1e-5
    ),
    'bam': dict(
        reduction=16,
        dilation=4,
        combine='product',
        norm_momentum=0.9,
        norm_epsilon=1e-5,
    ),
    'eca': dict(gamma=2, b=1, kernel_size=None),
    'aa': dict(
        heads=8, key_ratio=0.2, value_ratio=0.1, min_key_dims=20, relative=True
    ),
}


# The options of every family of networks, by the beginning of its names; what
# the name itself decides, such as the number of blocks, is not among them.
_RESNET = dict(
    width=64,
    stem='imagenet',
    version='v1.5',
    zero_init_residual=True,
    stochastic_depth=0.0,
)
NETWORKS = {
    'resnet': _RESNET,
    'resnext': _RESNET,
    'wrn': dict(width=16, dropout=0.0, stochastic_depth=0.0),
    'mobilenet': dict(
        width_factor=1.0, stem='imagenet', dropout=0.2, stochastic_depth=0.0
    ),
}


def network(name: str, **wanted: Any) -> dict[str, Any]:
  """Returns the options of a network, for the config to hold them all.

  Args:
    name: of the network, such as 'resnet50'.
    **wanted: values other than the defaults; those of options that the network
      does not have are left out.
  """
  family = next((f for f in NETWORKS if name.startswith(f)), 'resnet')
  return {
      option: wanted.get(option, default)
      for option, default in NETWORKS[family].items()
  }


def choose(kind: str, name: str, options: Mapping[str, Any]) -> Any:
  """Returns the options of a name.

  Args:
    kind: the config argument that gave the name.
    name: one of the options.
    options: by name.

  Raises:
    ValueError: an unknown name.
  """
  if name not in options:
    raise ValueError(
        f'unknown {kind} {name!r}; known: {", ".join(sorted(options))}'
    )
  return options[name]


def attention_options(name: str) -> dict[str, Any]:
  """Returns all fields of an attention module, with their defaults.

  Args:
    name: as in `ATTENTION`, 'none' included.

  Raises:
    ValueError: an unknown name.
  """
  # A placeholder, so that the command line finds the type of what is None.
  return {
      field: (
          ml_collections.config_dict.placeholder(int)
          if value is None
          else value
      )
      for field, value in choose('attention', name, ATTENTION).items()
  }


def aw_options() -> ml_collections.ConfigDict:
  """Returns all fields of `AWConv` that the paper leaves open, as we chose."""
  options = ml_collections.ConfigDict()
  options.reduction = 16
  options.min_hidden = 4
  options.expansion = 16
  options.expansion_axis = 'in'
  options.gate = 'sigmoid'
  options.norm = 'batch'
  options.residual = True
  options.pool_size = ml_collections.config_dict.placeholder(int)
  options.refinement = ml_collections.config_dict.placeholder(str)
  options.identity_start = False
  options.implementation = 'auto'
  options.chunk = ml_collections.config_dict.placeholder(int)
  return options


def run(
    *,
    num_epochs: float,
    batch_size: int,
    eval_batch_size: int,
    ema_decay: float,
    log_every_steps: int,
    eval_every_epochs: float,
    checkpoint_every_epochs: float,
) -> ml_collections.ConfigDict:
  """Returns a config with the settings of the run, and no section yet.

  Args:
    num_epochs: length of the whole run.
    batch_size: images per step, over all devices.
    eval_batch_size: the same for evaluation, which is exact for any size.
    ema_decay: of the averages of weights and batch statistics; 0 is off.
    log_every_steps: steps whose mean is one row of the metrics.
    eval_every_epochs: and at the end.
    checkpoint_every_epochs: and at the end.
  """
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.num_epochs = num_epochs
  config.batch_size = batch_size
  config.eval_batch_size = eval_batch_size
  config.accumulation_steps = 1
  config.ema_decay = ema_decay
  # A run's directory, or a .safetensors or .pth file, to take weights from, but
  # for the modules in init_skip, such as ('head',).
  config.init_from = ml_collections.config_dict.placeholder(str)
  config.init_skip = ()
  config.log_every_steps = log_every_steps
  config.eval_every_epochs = eval_every_epochs
  config.checkpoint_every_epochs = checkpoint_every_epochs
  config.checkpoints_to_keep = 2
  return config


def data(**values: Any) -> ml_collections.ConfigDict:
  """Returns the section `data`: its values, and where the data lie.

  Args:
    **values: all keys but `dir`; `configs/imagenet.py` says what they are.
  """
  section = ml_collections.ConfigDict(values)
  # None is $TFDS_DATA_DIR or ~/tensorflow_datasets.
  section.dir = ml_collections.config_dict.placeholder(str)
  return section


def classification(
    *, bce_threshold: float | None = None, **values: Any
) -> ml_collections.ConfigDict:
  """Returns the section `task` of a classification.

  Args:
    bce_threshold: with the loss 'bce', targets above it become 1 and the others
      0; None leaves them as they are.
    **values: loss, label_smoothing, mixup, cutmix (alpha of each; 0 is off),
      mean and std (per channel, in units of 0..255).
  """
  section = ml_collections.ConfigDict(values)
  section.name = 'classification'
  section.bce_threshold = ml_collections.config_dict.placeholder(float)
  section.bce_threshold = bce_threshold
  # Every batch is mixed, by one or the other, where they are on.
  section.mix_probability = 1.0
  section.mix_switch_probability = 0.5
  return section


def model(
    name: str, *, num_classes: int, attention: str, aw_conv: bool, **wanted: Any
) -> ml_collections.ConfigDict:
  """Returns the section `model`: all options of a network.

  Args:
    name: of the network, such as 'resnet50'.
    num_classes: of the logits.
    attention: 'none' or a name in `ATTENTION`.
    aw_conv: whether convolutions become AW-convolutions.
    **wanted: as of `network`.

  Raises:
    ValueError: an unknown attention.
  """
  section = ml_collections.ConfigDict()
  section.name = name
  section.num_classes = num_classes
  section.update(network(name, **wanted))
  # A placeholder, so that --config.model.attention=se finds its type.
  section.attention = ml_collections.config_dict.placeholder(str)
  if attention != 'none':
    section.attention = attention
  section.attention_options = attention_options(attention)
  section.aw_conv = aw_conv
  section.aw_where = '3x3'
  # None is all of them; or such as (3, 4).
  section.aw_stages = ml_collections.config_dict.placeholder(tuple)
  section.aw_options = aw_options()
  section.norm_momentum = 0.9
  section.norm_epsilon = 1e-5
  section.dtype = 'float32'
  section.param_dtype = 'float32'
  return section


# All options of the detectors by preset, as `models.detector_presets` has them.
_MMDET = dict(
    mask_padding=True,
    norm_train=False,
    beta=0.0,
    pyramid=dict(features=256),
    anchors=dict(
        strides=(4, 8, 16, 32, 64),
        scale=8.0,
        ratios=(0.5, 1.0, 2.0),
        rounded=False,
    ),
    anchor_matcher=dict(
        positive=0.7, negative=0.3, min_positive=0.3, low_quality='gt'
    ),
    anchor_sampler=dict(number=256, fraction=0.5),
    anchor_coder=dict(
        weights=(1.0, 1.0, 1.0, 1.0), clamp=4.135166556742356, clamp_below=True
    ),
    proposals=dict(
        train_candidates=2000,
        candidates=1000,
        train_number=1000,
        number=1000,
        threshold=0.7,
        min_size=0.0,
    ),
    roi_matcher=dict(
        positive=0.5, negative=0.5, min_positive=None, low_quality='gt'
    ),
    roi_sampler=dict(number=512, fraction=0.25),
    roi_coder=dict(
        weights=(10.0, 10.0, 5.0, 5.0),
        clamp=4.135166556742356,
        clamp_below=True,
    ),
    roi_levels=dict(finest=56.0, rule='mmdet'),
    roi_align=dict(output=7, sampling=2, adaptive=False, aligned=True),
    head=dict(features=1024, background='last'),
    detections=dict(min_score=0.05, threshold=0.5, number=100, min_size=0.0),
)
_TORCHVISION = _MMDET | dict(
    mask_padding=False,
    beta=1 / 9,
    anchors=_MMDET['anchors'] | dict(rounded=True),
    anchor_matcher=_MMDET['anchor_matcher']
    | dict(min_positive=0.0, low_quality='own'),
    anchor_coder=_MMDET['anchor_coder'] | dict(clamp_below=False),
    proposals=_MMDET['proposals'] | dict(train_number=2000, min_size=1e-3),
    roi_coder=_MMDET['roi_coder'] | dict(clamp_below=False),
    roi_levels=dict(finest=56.0, rule='torchvision'),
    roi_align=_MMDET['roi_align'] | dict(aligned=False),
    head=dict(features=1024, background='first'),
    detections=_MMDET['detections'] | dict(min_size=1e-2),
)
DETECTORS = {'mmdet': _MMDET, 'torchvision': _TORCHVISION}


def detector(
    backbone: ml_collections.ConfigDict,
    *,
    num_classes: int,
    preset: str,
    **wanted: Mapping[str, Any],
) -> ml_collections.ConfigDict:
  """Returns the section `model` of a detector: all of its options.

  Args:
    backbone: of `model`.
    num_classes: without the background.
    preset: a name in `DETECTORS`.
    **wanted: values other than the preset's; groups of options need not be
      complete.

  Raises:
    ValueError: an unknown preset.
  """
  section = ml_collections.ConfigDict()
  section.name = 'faster_rcnn'
  section.num_classes = num_classes
  section.backbone = backbone
  # The backbone's classes are the detector's affair.
  del section.backbone['num_classes']
  section.dtype = 'float32'
  section.param_dtype = 'float32'
  section.update(choose('preset', preset, DETECTORS))
  for group in ('anchor_matcher', 'roi_matcher'):
    least = section[group]['min_positive']
    section[group]['min_positive'] = ml_collections.config_dict.placeholder(
        float
    )
    section[group]['min_positive'] = least
  for name, value in wanted.items():
    if isinstance(value, Mapping):
      section[name].update(value)
    else:
      section[name] = value
  return section


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Parses 'key=value,key=value' by the types of the defaults.

  Args:
    arg: what follows the colon in `--config=configs/x.py:...`; may be empty.
    **defaults: every known key with its default, of type bool, int, float or
      str.

  Returns:
    The values by name.

  Raises:
    ValueError: an unknown key, no '=', a value of another type, or one that
      holds ',' or '=', which separate arguments.
  """
  values = dict(defaults)
  for item in filter(None, (arg or '').split(',')):
    key, equals, text = item.partition('=')
    if '=' in text or not (equals or key in defaults):
      raise ValueError(
          f"config argument {item!r} is not key=value: a value cannot hold ','"
          " or '='; give such a one by its path, as in --config.data.name=..."
      )
    if key not in defaults:
      near = difflib.get_close_matches(key, defaults, n=1)
      hint = f' (did you mean {near[0]!r}?)' if near else ''
      raise ValueError(
          f'unknown config argument {key!r}{hint}; '
          f'known: {", ".join(sorted(defaults))}'
      )
    if not equals:
      raise ValueError(f'config argument {item!r} has no value: {key}=...')
    values[key] = _convert(key, text, type(defaults[key]))
  return ml_collections.ConfigDict(values)


def _convert(key: str, text: str, kind: type) -> Any:
  if kind is bool:
    if text.lower() not in ('true', 'false'):
      raise ValueError(f'config argument {key}={text!r} must be true or false')
    return text.lower() == 'true'
  try:
    return kind(text)
  except ValueError:
    raise ValueError(
        f'config argument {key}={text!r} must be of type {kind.__name__}'
    ) from None
