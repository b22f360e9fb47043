"""The two published settings of Faster R-CNN with FPN, every number of them.

mmdetection, https://arxiv.org/abs/1906.07155, and torchvision,
https://docs.pytorch.org/vision/stable/models/faster_rcnn.html. A group holds
the arguments of one function; see `models.faster_rcnn.FasterRCNN`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from awconv_jax import errors
from awconv_jax.models import checks
from awconv_jax.models.detection.box_head import BACKGROUND
from awconv_jax.ops.boxes import MAX_LOG_RATIO
from awconv_jax.ops.matcher import LOW_QUALITY

Options = Mapping[str, Any]

# Of mmdetection 3, configs/_base_/models/faster-rcnn_r50_fpn.py, but for the
# samples of RoIAlign (adaptive there: 2 to 4 for nearly all regions) and what
# the padding does, see `mask_padding`.
MMDET = dict(
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
        weights=(1.0, 1.0, 1.0, 1.0), clamp=MAX_LOG_RATIO, clamp_below=True
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
        weights=(10.0, 10.0, 5.0, 5.0), clamp=MAX_LOG_RATIO, clamp_below=True
    ),
    roi_levels=dict(finest=56.0, rule='mmdet'),
    roi_align=dict(output=7, sampling=2, adaptive=False, aligned=True),
    head=dict(features=1024, background='last'),
    detections=dict(min_score=0.05, threshold=0.5, number=100, min_size=0.0),
)
# Of torchvision, fasterrcnn_resnet50_fpn, whose 91 classes are 90 and the
# background. The canvas must be a multiple of 64: it derives strides from it.
TORCHVISION = MMDET | dict(
    mask_padding=False,
    beta=1 / 9,
    anchors=MMDET['anchors'] | dict(rounded=True),
    anchor_matcher=MMDET['anchor_matcher']
    | dict(min_positive=0.0, low_quality='own'),
    anchor_coder=MMDET['anchor_coder'] | dict(clamp_below=False),
    proposals=MMDET['proposals'] | dict(train_number=2000, min_size=1e-3),
    roi_coder=MMDET['roi_coder'] | dict(clamp_below=False),
    roi_levels=dict(finest=56.0, rule='torchvision'),
    roi_align=MMDET['roi_align'] | dict(aligned=False),
    head=dict(features=1024, background='first'),
    detections=MMDET['detections'] | dict(min_size=1e-2),
)
PRESETS = {'mmdet': MMDET, 'torchvision': TORCHVISION}
# Options by group that are numbers of something, from 0 to 1, above 0, at least
# 0, several above 0, yes or no, or one of a few.
_COUNTS = {
    'pyramid': ('features',),
    'anchor_sampler': ('number',),
    'proposals': ('train_candidates', 'candidates', 'train_number', 'number'),
    'roi_sampler': ('number',),
    'roi_align': ('output', 'sampling'),
    'head': ('features',),
    'detections': ('number',),
}
_SHARES = {
    'anchor_matcher': ('positive', 'negative'),
    'anchor_sampler': ('fraction',),
    'proposals': ('threshold',),
    'roi_matcher': ('positive', 'negative'),
    'roi_sampler': ('fraction',),
    'detections': ('min_score', 'threshold'),
}
_POSITIVE = {
    'anchors': ('scale',),
    'anchor_coder': ('clamp',),
    'roi_coder': ('clamp',),
    'roi_levels': ('finest',),
}
_LENGTHS = {'proposals': ('min_size',), 'detections': ('min_size',)}
_POSITIVES = {
    'anchors': ('ratios',),
    'anchor_coder': ('weights',),
    'roi_coder': ('weights',),
}
_FLAGS = {
    'anchors': ('rounded',),
    'anchor_coder': ('clamp_below',),
    'roi_coder': ('clamp_below',),
    'roi_align': ('adaptive', 'aligned'),
}
_CHOICES = {
    'anchor_matcher': {'low_quality': tuple(LOW_QUALITY)},
    'roi_matcher': {'low_quality': tuple(LOW_QUALITY)},
    'roi_levels': {'rule': ('mmdet', 'torchvision')},
    'head': {'background': BACKGROUND},
}


def _merge_group(name: str, given: Any, known: Options) -> Options:
  """Returns a group with some of its options replaced."""
  if not isinstance(given, Mapping):
    raise errors.InputError(
        f'model.{name}={given!r} must hold options by name: {", ".join(known)}'
    )
  for option in given:
    if option not in known:
      raise errors.unknown_name(f'option in model.{name}', option, known)
  return known | dict(given)


def merge(options: Options, preset: str) -> dict[str, Any]:
  """Returns a preset's options with some of them replaced.

  Args:
    options: by the names of a preset; those of a group need not be complete.
    preset: name in `PRESETS`.

  Raises:
    InputError: the preset or an option is unknown.
  """
  checks.check_choice('preset', preset, tuple(PRESETS))
  merged = dict(PRESETS[preset])
  for name, value in options.items():
    if name not in merged:
      raise errors.unknown_name('option of the detector', name, merged)
    if isinstance(merged[name], Mapping):
      value = _merge_group(name, value, merged[name])
    merged[name] = value
  return merged


def _check_share(field: str, value: Any) -> None:
  """Raises InputError if a field's value is not a number from 0 to 1."""
  checks.check_number(field, value)
  if not 0 <= value <= 1:
    raise errors.InputError(f'model.{field}={value!r} is not in [0, 1]')


def _check_length(field: str, value: Any) -> None:
  """Raises InputError if a field's value is not a number of at least 0."""
  checks.check_number(field, value)
  if not value >= 0:
    raise errors.InputError(f'model.{field}={value!r} must be at least 0')


def _check_positives(field: str, values: Any) -> None:
  """Raises InputError if a field's value is not a sequence of such numbers."""
  if not isinstance(values, Sequence) or isinstance(values, str) or not values:
    raise errors.InputError(
        f'model.{field}={values!r} must be a sequence of numbers above 0'
    )
  for i, value in enumerate(values):
    checks.check_positive(f'{field}[{i}]', value)


def _check_flag(field: str, value: Any) -> None:
  """Raises InputError if a field's value is not True or False."""
  if not isinstance(value, bool):
    raise errors.InputError(f'model.{field}={value!r} must be True or False')


def check(options: Options) -> None:
  """Raises InputError for a value in complete options that cannot be used."""
  for check_value, groups in (
      (checks.check_count, _COUNTS),
      (_check_share, _SHARES),
      (checks.check_positive, _POSITIVE),
      (_check_length, _LENGTHS),
      (_check_positives, _POSITIVES),
      (_check_flag, _FLAGS),
  ):
    for group, names in groups.items():
      for name in names:
        check_value(f'{group}.{name}', options[group][name])
  _check_length('beta', options['beta'])
  for name in ('mask_padding', 'norm_train'):
    _check_flag(name, options[name])
  for group, choices in _CHOICES.items():
    for name, known in choices.items():
      checks.check_choice(f'{group}.{name}', options[group][name], known)
  checks.check_counts('anchors.strides', options['anchors']['strides'])
  for group in ('anchor_coder', 'roi_coder'):
    weights = options[group]['weights']
    if len(weights) != 4:
      raise errors.InputError(
          f'model.{group}.weights={tuple(weights)} must be 4, of dx, dy, dw, dh'
      )
  for group in ('anchor_matcher', 'roi_matcher'):
    if (least := options[group]['min_positive']) is not None:
      _check_share(f'{group}.min_positive', least)
    low, high = (options[group][name] for name in ('negative', 'positive'))
    if low > high:
      raise errors.InputError(
          f'model.{group}.negative={low} must not be above '
          f'model.{group}.positive={high}'
      )
