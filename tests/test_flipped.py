"""The test-time flip: mirroring, merging, and both around a task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awconv_jax.tasks import flipped

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')
MOST = 8


def detections(boxes, scores, labels):
  """Returns detections padded to MOST with what must not matter."""
  spare = MOST - len(scores)
  return {
      'boxes': np.float32([*boxes, *[[0, 0, 9, 9]] * spare]),
      'scores': np.float32([*scores, *[2.0] * spare]),
      'labels': np.int32([*labels, *[0] * spare]),
      'valid': np.arange(MOST) < len(scores),
  }


def merged(one, two, threshold):
  """Returns (score, label, box) of what is valid, in order."""
  found = jax.device_get(flipped.merge(one, two, threshold))
  rows = zip(*(found[k].tolist() for k in flipped.DETECTIONS), strict=True)
  return [(s, label, box) for box, s, label, valid in rows if valid]


def test_images_are_mirrored_within_their_width():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 4, 7, 3)).astype(np.uint8)
  widths = np.float32([7, 4, 1])
  got = np.asarray(flipped.mirror(images, widths))
  assert got.dtype == np.uint8
  for one, image, width in zip(got, images, widths.astype(int), strict=True):
    np.testing.assert_array_equal(one[:, :width], image[:, :width][:, ::-1])
    np.testing.assert_array_equal(one[:, width:], image[:, width:])


def test_the_better_of_two_stays_within_a_class():
  one = detections([[0, 0, 10, 10], [20, 0, 30, 10]], [0.5, 0.75], [1, 1])
  two = detections([[0, 0, 10, 11], [20, 0, 30, 11]], [0.875, 0.25], [1, 2])
  assert merged(one, two, 0.5) == [
      (0.875, 1, [0, 0, 10, 11]),
      (0.75, 1, [20, 0, 30, 10]),
      (0.25, 2, [20, 0, 30, 11]),
  ]
  # By the threshold: they overlap by 10 / 11.
  assert len(merged(one, two, 0.95)) == 4


def test_there_are_never_more_than_before_and_the_best_stay():
  rng = np.random.default_rng(1)
  corners = np.arange(2 * MOST)[:, None] * 20 + np.zeros(2)
  boxes = np.concatenate([corners, corners + 10], 1)
  scores = rng.permutation(2 * MOST) / 64
  parts = slice(0, MOST), slice(MOST, None)
  halves = [detections(boxes[i], scores[i], [0] * MOST) for i in parts]
  got = [score for score, _, _ in merged(*halves, 0.5)]
  assert got == sorted(scores, reverse=True)[:MOST]


class _Bright:
  """Finds the bright pixels of an image one row high, best on the left."""

  def predict(self, variables, batch):
    del variables
    columns = jnp.arange(batch['image'].shape[2])
    bright = batch['image'][:, 0, :, 0] > 128
    bright &= columns < batch['image_size'][:, 1, None]
    x1 = jnp.where(bright, columns, 99).min(1)
    x2 = jnp.where(bright, columns + 1, 0).max(1)
    boxes = jnp.stack([x1, x1 * 0, x2, x1 * 0 + 1], -1).astype(jnp.float32)
    return {
        'boxes': boxes[:, None],
        'scores': 1 / (1 + x1)[:, None],
        'labels': jnp.zeros((len(x1), 1), jnp.int32),
        'valid': bright.any(1)[:, None],
        'image_id': batch['image_id'],
    }


def test_a_task_sees_both_and_boxes_come_back_mirrored():
  # An image is as wide as the canvas or less.
  image = np.zeros((3, 1, 16, 3), np.uint8)
  image[0, :, 9:14] = image[1, :, 4:9] = 255
  size = np.int32([[1, 16], [1, 11], [1, 16]])
  batch = {'image': image, 'image_size': size, 'image_id': np.arange(3)}
  plain = _Bright().predict({}, batch)
  outputs = jax.jit(flipped.Flipped(_Bright(), 0.5).predict)({}, batch)
  assert outputs.keys() == plain.keys()
  np.testing.assert_array_equal(outputs['boxes'][:2], plain['boxes'][:2])
  for name in ('valid', 'image_id'):
    np.testing.assert_array_equal(outputs[name], plain[name])
  # Of the mirrored images the boxes begin at 2, and at 2 of 11 columns.
  np.testing.assert_allclose(outputs['scores'][:2, 0], 1 / 3, rtol=1e-6)
  assert float(plain['scores'][0, 0]) == pytest.approx(0.1)
  assert not outputs['valid'][2].any()
