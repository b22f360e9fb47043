"""The test-time flip: mirroring, merging, and both around a task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awconv_jax.tasks import flipped

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')
MOST = 8


def detections(boxes, scores, labels, valid=None):
  """Returns detections padded to MOST with what must not matter."""
  n = len(scores)
  spare = MOST - n
  return {
      'boxes': np.float32([*boxes, *[[0, 0, 9, 9]] * spare]),
      'scores': np.float32([*scores, *[2.0] * spare]),
      'labels': np.int32([*labels, *[0] * spare]),
      'valid': np.array([*(valid or [True] * n), *[False] * spare]),
  }


def listed(merged):
  """Returns (score, label, box) of what is valid, in order."""
  rows = zip(
      *(np.asarray(merged[k]).tolist() for k in flipped.DETECTIONS), strict=True
  )
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


def test_the_same_twice_is_the_same_once():
  boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [30, 0, 40, 10]]
  one = detections(boxes, [0.5, 0.9, 0.7], [1, 2, 1])
  got = listed(jax.jit(flipped.merge)(one, one, 0.5))
  assert [label for _, label, _ in got] == [2, 1, 1]
  assert sorted(got) == sorted(listed(one))


def test_the_better_of_two_stays_within_a_class():
  one = detections([[0, 0, 10, 10], [20, 0, 30, 10]], [0.5, 0.75], [1, 1])
  two = detections([[0, 0, 10, 11], [20, 0, 30, 11]], [0.875, 0.25], [1, 2])
  assert listed(flipped.merge(one, two, 0.5)) == [
      (0.875, 1, [0, 0, 10, 11]),
      (0.75, 1, [20, 0, 30, 10]),
      (0.25, 2, [20, 0, 30, 11]),
  ]
  # By the threshold: they overlap by 10 / 11.
  assert len(listed(flipped.merge(one, two, 0.95))) == 4


def test_there_are_never_more_than_before_and_the_best_stay():
  rng = np.random.default_rng(1)
  corners = np.arange(2 * MOST)[:, None] * 20 + np.zeros(2)
  boxes = np.concatenate([corners, corners + 10], 1)
  scores = rng.permutation(2 * MOST) / 64
  labels = np.zeros(2 * MOST, int)
  halves = [
      detections(boxes[part], scores[part], labels[part])
      for part in (slice(0, MOST), slice(MOST, None))
  ]
  got = [score for score, _, _ in listed(flipped.merge(*halves, 0.5))]
  assert got == sorted(scores, reverse=True)[:MOST]


class _Bright:
  """Finds the bright pixels that lie on the image, as one box.

  Its score is larger the further left the box begins.
  """

  def predict(self, variables, batch):
    del variables
    image, size = batch['image'], batch['image_size']
    rows, columns = (jnp.arange(n) for n in image.shape[1:3])
    on = (rows[:, None] < size[:, 0, None, None]) & (
        columns < size[:, 1, None, None]
    )
    bright = (image.max(-1) > 128) & on
    ends = []
    for axis, places in ((1, columns), (2, rows)):
      some = bright.any(axis)
      low = jnp.where(some, places, 10**6).min(1)
      ends += [low, jnp.where(some, places + 1, 0).max(1)]
    x1, x2, y1, y2 = (end.astype(jnp.float32) for end in ends)
    return {
        'boxes': jnp.stack([x1, y1, x2, y2], -1)[:, None],
        'scores': 1 / (1 + x1)[:, None],
        'labels': jnp.zeros((len(image), 1), jnp.int32),
        'valid': bright.any((1, 2))[:, None],
        'gt_boxes': batch['gt_boxes'],
        'image_id': batch['image_id'],
    }


def test_a_task_sees_both_and_boxes_come_back_mirrored():
  # Within the canvas of 8 x 16 an image is as wide as the canvas or less.
  image = np.zeros((3, 8, 16, 3), np.uint8)
  image[0, 1:3, 9:14] = 255
  image[1, 2:5, 4:9] = 255
  batch = {
      'image': image,
      'image_size': np.int32([[8, 16], [6, 11], [8, 16]]),
      'gt_boxes': np.ones((3, 2, 4), np.float32),
      'image_id': np.arange(3),
  }
  plain = _Bright().predict({}, batch)
  outputs = jax.jit(flipped.Flipped(_Bright(), 0.5).predict)({}, batch)
  assert outputs.keys() == plain.keys()
  for name in ('boxes', 'valid', 'gt_boxes', 'image_id'):
    rows = slice(0, 2) if name == 'boxes' else slice(None)
    np.testing.assert_array_equal(outputs[name][rows], plain[name][rows])
  # Of the mirrored images the boxes begin at 2, and at 2 of 11 columns.
  np.testing.assert_allclose(outputs['scores'][:2, 0], 1 / 3, rtol=1e-6)
  assert float(plain['scores'][0, 0]) == pytest.approx(0.1)
  assert not outputs['valid'][2].any()
