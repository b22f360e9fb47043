"""Pictures with boxes: where which colour is."""

import numpy as np
import pytest

from awconv_jax.tools import draw_boxes


def draw(image, boxes, labels=(), names=(), truth=()):
  """Draws boxes of the score .97 on all of an image."""
  count = len(labels)
  one = dict(image_size=np.array(image.shape[:2]), boxes=np.float32(boxes))
  one |= dict(labels=np.array(labels), scores=np.full(count, 0.97))
  one |= dict(valid=np.ones(count, bool), gt_valid=np.ones(len(truth), bool))
  one['gt_boxes'] = np.float32(truth).reshape(-1, 4)
  return draw_boxes.draw(image, one, names or [''] * 9, 0.5)


def outline(picture, box, color):
  """Returns whether the box's sides but the upper, of a caption, have it."""
  x1, y1, x2, y2 = box
  x, y = (x1 + x2) // 2, (y1 + y2) // 2
  return (picture[[y, y, y2 - 1], [x1, x2 - 1, x]] == color).all()


def test_boxes_are_outlined_by_the_pixels_they_hold():
  image = np.full((500, 600, 3), 7, np.uint8)
  box = [100, 200, 300, 260]
  picture = draw(image, [box], [4])
  assert picture.shape == image.shape and (image == 7).all()
  color = draw_boxes.color_of(4)
  assert outline(picture, box, color)
  x1, y1, x2, y2 = box
  # Nothing beyond it, besides the caption above, which has ink on its colour.
  for rest in (
      *(picture[: y1 - 30], picture[y2:]),
      *(picture[:, :x1], picture[:, x2:], picture[y1 + 5 : y2 - 5, 150]),
  ):
    assert (rest == 7).all()
  caption = picture[y1 - 14 : y1, x1 : x1 + 40].reshape(-1, 3)
  assert (caption == color).all(1).any() and (caption == 0).all(1).any()


def test_a_caption_stays_on_the_picture():
  """No room above: it is inside. None to the right: it is moved left.

  The patch is red and the image black, so that what is green is ink.
  """
  image = np.zeros((500, 500, 3), np.uint8)
  ink = []
  for box in ([100, 300, 400, 490], [100, 0, 400, 90], [480, 300, 500, 490]):
    picture = draw(image, [box], [0], ['wi\nde'])
    rows, columns = np.nonzero(picture[..., 1] > 100)
    assert abs(rows - box[1]).max() < 20
    ink.append((len(rows), np.ptp(rows), np.ptp(columns)))
  # All of it every time, and it is as long as its letters.
  assert ink[0] == ink[1] == ink[2] and ink[0][2] > 15


@pytest.mark.parametrize('size, factor', [((96, 128), 4), ((480, 90), 1)])
def test_small_images_are_enlarged(size, factor):
  image = np.random.default_rng(0).integers(0, 99, (*size, 3)).astype(np.uint8)
  enlarged = image.repeat(factor, 0).repeat(factor, 1)
  np.testing.assert_array_equal(draw(image, []), enlarged)
  box = np.array([20, 40, 60, 60])
  color = draw_boxes.color_of(1)
  assert outline(draw(image, [box], [1]), box * factor, color)


def test_the_first_box_lies_on_top_and_the_truth_below():
  box, truth = [100, 100, 300, 300], [10, 20, 490, 480]
  # It can be seen on white, too.
  image = np.full((500, 500, 3), 255, np.uint8)
  picture = draw(image, [box, box], [1, 2], truth=[box, truth])
  assert outline(picture, box, draw_boxes.color_of(1))
  assert outline(picture, truth, draw_boxes.TRUTH_COLOR)
  assert outline(picture, [11, 21, 489, 479], (0, 0, 0))
  # Of no size, or beyond the image, they do no harm.
  boxes = [[5, 5, 5, 5], [9, 9, 10, 10], [-50, -50, 900, 900]]
  draw(image, boxes, [0, 1, 2], truth=boxes)


def test_neighbouring_classes_have_colours_apart():
  colors = np.array([draw_boxes.color_of(label) for label in range(80)])
  assert len(np.unique(colors, axis=0)) == 80
  assert np.abs(np.diff(colors, axis=0)).sum(1).min() > 150


def test_no_caption_lies_on_another_and_the_truth_has_its_class(monkeypatch):
  drawn = {}
  monkeypatch.setattr(
      draw_boxes,
      '_write',
      lambda _, patch, text, *rest: drawn.update({text: patch}),
  )
  image = np.zeros((500, 600, 3), np.uint8)
  box = np.array([100, 100, 180, 160])
  names = [f'number {n}' for n in range(9)]
  one = dict(
      image_size=np.array(image.shape[:2]),
      boxes=box + np.arange(6)[:, None],
      labels=np.arange(6),
      scores=np.linspace(0.9, 0.6, 6),
      valid=np.ones(6, bool),
      gt_boxes=box[None],
      gt_labels=np.array([8]),
      gt_valid=np.ones(1, bool),
  )

  draw_boxes.draw(image, one, names, 0.5)

  # The best are there, and so is the truth: there is room for seven.
  assert 'number 0: 90%' in drawn and 'number 8' in drawn and len(drawn) == 7
  for text, (x1, y1, x2, y2) in drawn.items():
    assert 0 <= x1 < x2 <= 600 and 0 <= y1 < y2 <= 500
    for other, (a1, b1, a2, b2) in drawn.items():
      apart = x2 <= a1 or a2 <= x1 or y2 <= b1 or b2 <= y1
      assert text == other or apart, (text, other)
