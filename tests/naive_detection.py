"""Float64 references of what a detector is made of, box by box.

Nothing here calls JAX or the package; see `naive`.
"""

import itertools
import math

import naive
import numpy as np


def conv(params, x):
  """A convolution with its bias that keeps the image's size."""
  kernel, bias = (np.float64(params[k]) for k in ('kernel', 'bias'))
  pads = ((len(kernel) // 2,) * 2,) * 2
  return naive.conv(x, kernel, padding=pads) + bias


def area(box):
  x1, y1, x2, y2 = map(float, box)
  return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)


def iou(a, b):
  """Intersection over union of two boxes; 0 where one is empty."""
  both = area([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
  return both / (area(a) + area(b) - both) if both else 0.0


def ious(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return np.array([[iou(x, y) for y in b] for x in a])


def encode(box, anchor, weights):
  x1, y1, x2, y2 = map(float, box)
  p1, q1, p2, q2 = map(float, anchor)
  return np.array(weights) * [
      ((x1 + x2) / 2 - (p1 + p2) / 2) / (p2 - p1),
      ((y1 + y2) / 2 - (q1 + q2) / 2) / (q2 - q1),
      math.log((x2 - x1) / (p2 - p1)),
      math.log((y2 - y1) / (q2 - q1)),
  ]


def decode(deltas, anchor, weights, lowest, highest):
  x1, y1, x2, y2 = map(float, anchor)
  dx, dy, dw, dh = np.asarray(deltas, np.float64) / weights
  x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
  w = math.exp(min(max(dw, lowest), highest)) * (x2 - x1)
  h = math.exp(min(max(dh, lowest), highest)) * (y2 - y1)
  return np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def anchors(canvas, strides, sizes, ratios, *, rounded=False):
  """Anchors of all levels, [A, 4]: rows, columns, ratios."""
  result = []
  for stride, size in zip(strides, sizes, strict=True):
    starts = [range(0, length, stride) for length in canvas]
    for row, column, ratio in itertools.product(*starts, ratios):
      w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
      corners = np.array([-w / 2, -h / 2, w / 2, h / 2])
      corners = corners.round() if rounded else corners
      result.append(corners + [column, row, column, row])
  return np.array(result)


def match(overlaps, positive, negative, min_positive=None, low_quality='gt'):
  """Ground truth and label of each anchor; `overlaps` without any padding."""
  number, count = np.shape(overlaps)
  best = np.max(overlaps, axis=0, initial=0.0)
  index = np.argmax(overlaps, axis=0) if number else np.zeros(count, int)
  label = np.where(best >= positive, 1, np.where(best < negative, 0, -1))
  for g, own in enumerate(overlaps if min_positive is not None else ()):
    if max(own) >= min_positive and max(own) > 0:
      label[own == max(own)] = 1
      if low_quality == 'gt':  # Later ones overwrite.
        index[own == max(own)] = g
  return index, label


def nms(boxes, scores, valid, threshold, groups=None):
  """Greedy suppression; returns which boxes stay."""
  keep = np.zeros(len(boxes), bool)
  groups = np.zeros(len(boxes)) if groups is None else groups
  for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
    if valid[i]:
      keep[i] = all(
          groups[i] != groups[j] or iou(boxes[i], boxes[j]) <= threshold
          for j in np.flatnonzero(keep)
      )
  return keep


def survivors(
    scores, deltas, anchors, valid, coder, size, *, threshold, min_size
):
  """Returns the scores and boxes of what stays of one class, or level."""
  clamp = coder.clamp
  boxes = [
      np.clip(decode(d, a, coder.weights, -clamp, clamp), 0, [*size[::-1]] * 2)
      for d, a in zip(deltas, anchors, strict=True)
  ]
  large = [min(b[2:] - b[:2]) >= max(min_size, 1e-9) for b in boxes]
  keep = nms(boxes, scores, np.logical_and(valid, large), threshold)
  return [(scores[i], boxes[i]) for i in np.flatnonzero(keep)]


def box_losses(deltas, targets, beta):
  """Returns the smooth L1 loss of boxes, summed."""
  return sum(
      d**2 / beta / 2 if d < beta else d - beta / 2
      for d in np.abs(np.float64(deltas) - targets).ravel()
  )
