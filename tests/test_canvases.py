"""Geometry of images and boxes, on squares whose place shows in the pixels."""

import numpy as np
import pytest

from awconv_jax.data.detection import canvases, objects


def scene(height, width, boxes):
  """Returns a black image with a white rectangle at each box."""
  pixels = np.zeros((height, width, 3), np.uint8)
  for x0, y0, x1, y1 in boxes:
    pixels[y0:y1, x0:x1] = 255
  n = len(boxes)
  return pixels, objects.create(boxes, range(n), [False] * n, [1.0] * n)


def found(pixels):
  """Returns the box of the only white rectangle."""
  rows = np.flatnonzero((pixels[..., 0] > 127).any(1))
  columns = np.flatnonzero((pixels[..., 0] > 127).any(0))
  return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_fitted_keeps_the_ratio():
  sizes = (480, 640), (640, 480), (300, 900), (1, 5000)
  found = [canvases.fitted(*size, 800, 1333) for size in sizes]
  # Of the last two, the long side is the limit.
  assert found == [(800, 1067), (1067, 800), (444, 1333), (1, 1333)]


@pytest.mark.parametrize('size', [(15, 20), (45, 60)])
def test_boxes_follow_the_pixels(size):
  pixels, scenery = canvases.resize(*scene(30, 40, [(8, 4, 20, 22)]), size)
  assert pixels.shape == (*size, 3)
  np.testing.assert_allclose(scenery.boxes[0], found(pixels), atol=1)
  wanted = np.array([8, 4, 20, 22]) * size[0] / 30
  np.testing.assert_allclose(scenery.boxes[0], wanted, rtol=1e-6)
  flipped, mirrored = canvases.flip(pixels, scenery)
  np.testing.assert_array_equal(flipped, pixels[:, ::-1])
  np.testing.assert_allclose(mirrored.boxes[0], found(flipped), atol=1)


def test_pixels_are_mixed_linearly_by_the_places_of_their_centres():
  for row, wanted in (
      # Centres at -0.25, 0.25, 0.75, ...: beyond the border is the border.
      ([0, 80, 160, 240], [0, 20, 60, 100, 140, 180, 220, 240]),
      # Centres at 1.5 and 5.5: two pixels each, not the mean of all four.
      ([0, 40, 80, 240, 0, 100, 200, 4], [60, 150]),
  ):
    line = np.array(row, np.uint8)[:, None, None].repeat(3, 2)
    size = len(wanted), 1
    found, _ = canvases.resize(line, objects.NOTHING, size)
    turned, _ = canvases.resize(
        line.swapaxes(0, 1), objects.NOTHING, size[::-1]
    )
    assert found[:, 0].T.tolist() == turned[0].T.tolist() == [wanted] * 3


def test_crop_cuts_boxes_and_drops_those_outside():
  boxes = [(8, 4, 20, 22), (0, 0, 10, 3), (30, 0, 40, 30), (0, 0, 10, 6)]
  pixels, scenery = scene(30, 40, boxes)
  part, left = canvases.crop(pixels, scenery, (5, 10), (20, 15))
  assert part.shape == (20, 15, 3)
  # The second lies above, the third to the right, the fourth touches a side.
  assert left.labels.tolist() == [0]
  assert left.boxes.tolist() == [[0, 0, 10, 17]]


def test_jitter_covers_its_range_and_keeps_boxes_on_the_image():
  pixels, scenery = scene(30, 40, [(8, 4, 20, 22)])
  scales, kept = [], 0
  for seed in range(200):
    rng = np.random.default_rng(seed)
    image, left = canvases.jitter(pixels, scenery, (48, 64), (0.25, 2.0), rng)
    height, width = image.shape[:2]
    assert height <= 48 and width <= 64
    scales.append(height / 48)
    for box in left.boxes:
      kept += 1
      assert (box >= 0).all() and (box <= [width, height] * 2).all()
      np.testing.assert_allclose(box, found(image), atol=1.5)
  assert min(scales) < 0.35 and np.mean(np.array(scales) == 1) > 0.4
  assert 150 < kept <= 200


def test_what_is_trained_on():
  boxes = [(0, 0, 5, 5), (0, 0, 5, 5), (0, 0, 0.5, 5), (3, 3, 3, 3)]
  scenery = objects.create(
      boxes, range(4), [False, True, False, False], [1] * 4
  )
  assert scenery.trainable().tolist() == [True, False, False, False]
