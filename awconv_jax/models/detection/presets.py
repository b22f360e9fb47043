"""What published detectors set otherwise than the defaults of `FasterRCNN`.

Those are of mmdetection 3, configs/_base_/models/faster-rcnn_r50_fpn.py,
https://arxiv.org/abs/1906.07155, but for the samples of RoIAlign (adaptive
there: 2 to 4 for nearly all regions) and `mask_padding`.
"""

from collections.abc import Mapping
from typing import Any

from awconv_jax.errors import look_up

DEFAULT = 'mmdet'
PRESETS = {
    DEFAULT: {},
    # fasterrcnn_resnet50_fpn, whose 91 classes are 90 and the background; see
    # https://docs.pytorch.org/vision/stable/models/faster_rcnn.html. The canvas
    # must be a multiple of 64: it derives strides from it.
    'torchvision': dict(
        mask_padding=False,
        beta=1 / 9,
        anchors=dict(rounded=True),
        anchor_matcher=dict(min_positive=0.0, low_quality='own'),
        anchor_coder=dict(clamp_below=False),
        proposals=dict(train_number=2000, min_size=1e-3),
        roi_coder=dict(clamp_below=False),
        roi_levels=dict(rule='torchvision'),
        roi_align=dict(aligned=False),
        head=dict(background='first'),
        detections=dict(min_size=1e-2),
    ),
}


def with_preset(preset: str, **options: Any) -> dict[str, Any]:
  """Returns options of `FasterRCNN` over those of one of the `PRESETS`.

  Groups need not be complete. Raises InputError for an unknown preset.
  """
  merged = dict(look_up('preset', preset, PRESETS))
  for name, value in options.items():
    if isinstance(value, Mapping):
      value = {**merged.get(name, {}), **value}
    merged[name] = value
  return merged
