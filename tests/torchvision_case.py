"""A small Faster R-CNN of torchvision: what goes in, and what came out there.

  python tests/torchvision_case.py

writes torchvision_case.npz beside this file; it needs torch and torchvision.
The tests read that file and need neither. No weights are in it: each array
is drawn from its name.
"""

import json
import pathlib
import zlib

import numpy as np

PATH = pathlib.Path(__file__).with_suffix('.npz')
CANVAS = (64, 128)
# The second image is smaller than the canvas, and its padding counts there.
SIZES = ((64, 128), (50, 90))
CLASSES = 5
PYRAMID, HEAD = 16, 32
PROPOSALS = dict(train_number=60, number=40)
DETECTIONS = 30
# The first object is so flat that no anchor fits it.
TRUTH = [
    [
        *[((4, 56, 100, 60), 2), ((10, 12, 80, 60), 2)],
        *[((60, 3, 120, 41.5), 4), ((3, 4, 20, 30), 0)],
    ],
    [((30, 10, 88, 45.5), 1), ((36, 12, 85, 48), 3)],
]
LOSSES = {
    'rpn_class': 'loss_objectness',
    'rpn_box': 'loss_rpn_box_reg',
    'roi_class': 'loss_classifier',
    'roi_box': 'loss_box_reg',
}
# Of predictions, so that they differ enough to be ranked.
SCALES = {'rpn.head': 2.0, 'cls_score': 4.0, 'bbox_pred': 0.5}


def draw(name, shape):
  """Returns the array of that name in the state dict."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  values = rng.normal(size=shape)
  if name.endswith('running_var'):
    values = 1 + 0.3 * np.tanh(values)
  elif len(shape) > 1:
    values /= np.sqrt(np.prod(shape[1:]))
    for part, scale in SCALES.items():
      values *= scale if part in name else 1
  else:
    norm_scale = name.endswith('weight')
    values = norm_scale + 0.1 * values
  return values.astype(np.float32)


def images():
  """Returns normalised images [2, *CANVAS, 3] with zeros for padding."""
  x = np.random.default_rng(0).normal(size=(2, *CANVAS, 3))
  height, width = SIZES[1]
  x[1, height:] = x[1, :, width:] = 0
  return x.astype(np.float32)


def _model(torch):
  from torchvision.models import resnet
  from torchvision.models.detection import faster_rcnn
  from torchvision.models.detection.backbone_utils import BackboneWithFPN
  from torchvision.ops.misc import FrozenBatchNorm2d

  body = resnet.ResNet(
      resnet.BasicBlock, [1, 1, 1, 1], norm_layer=FrozenBatchNorm2d
  )
  layers = {f'layer{i}': str(i - 1) for i in range(1, 5)}
  widths = [64, 128, 256, 512]
  model = faster_rcnn.FasterRCNN(
      BackboneWithFPN(body, layers, widths, PYRAMID),
      box_head=faster_rcnn.TwoMLPHead(PYRAMID * 49, HEAD),
      box_predictor=faster_rcnn.FastRCNNPredictor(HEAD, CLASSES + 1),
      image_mean=[0, 0, 0],
      image_std=[1, 1, 1],
      size_divisible=64,
      rpn_post_nms_top_n_train=PROPOSALS['train_number'],
      rpn_post_nms_top_n_test=PROPOSALS['number'],
      box_detections_per_img=DETECTIONS,
  )
  model.transform.resize = lambda image, target=None: (image, target)
  # All of them: what is drawn at random there cannot be drawn here.
  for sampler in (model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler):
    sampler.batch_size_per_image, sampler.positive_fraction = 10**6, 0.5
  state = model.state_dict()
  model.load_state_dict(
      {n: torch.from_numpy(draw(n, tuple(x.shape))) for n, x in state.items()}
  )
  return model


def main():
  import torch

  model = _model(torch)
  cut = [
      torch.from_numpy(image[:height, :width].transpose(2, 0, 1).copy())
      for image, (height, width) in zip(images(), SIZES, strict=True)
  ]
  boxes = [torch.tensor([box for box, _ in rows]).float() for rows in TRUTH]
  labels = [torch.tensor([1 + label for _, label in rows]) for rows in TRUTH]
  pairs = zip(boxes, labels, strict=True)
  targets = [dict(boxes=b, labels=label) for b, label in pairs]
  arrays = {}
  with torch.no_grad():
    for n, found in enumerate(model.eval()(cut)):
      arrays |= {f'{key}{n}': value.numpy() for key, value in found.items()}
    losses = model.train()(cut, targets)
  arrays |= {ours: losses[name].numpy() for ours, name in LOSSES.items()}
  shapes = {n: list(x.shape) for n, x in model.state_dict().items()}
  np.savez_compressed(PATH, shapes=json.dumps(shapes), **arrays)


if __name__ == '__main__':
  main()
