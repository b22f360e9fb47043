"""Operations on pixels against loops, and against Pillow's."""

import naive_operations as naive
import numpy as np
import pictures
from PIL import Image, ImageEnhance, ImageOps
import pytest

from awconv_jax.data import color, operations

FILL = (124, 116, 104)
INTENSITY_VALUES = {
    'auto_contrast': (None,),
    'equalize': (None,),
    'invert': (None,),
    'posterize': (0, 1, 4, 5, 8),
    'solarize': (0, 77, 255, 256),
    'solarize_add': (0, 77, 128),
    'color': (0.1, 0.63, 1.0, 1.9),
    'contrast': (0.1, 0.63, 1.0, 1.9),
    'brightness': (0.0, 0.63, 1.0, 1.9),
    'sharpness': (0.1, 0.63, 1.0, 1.9),
}
MOVE_VALUES = {
    'rotate': (-29.0, 13.0),
    'shear_x': (-0.29, 0.21),
    'shear_y': (-0.29, 0.21),
    'translate_x': (-0.31, 0.25),
    'translate_y': (-0.31, 0.25),
}
CASES = [(name, v) for name, vs in INTENSITY_VALUES.items() for v in vs]
MOVES = [(name, v) for name, vs in MOVE_VALUES.items() for v in vs]
BLENDS = ('color', 'contrast', 'brightness', 'sharpness')
PILLOW = {
    'auto_contrast': lambda image, value: ImageOps.autocontrast(image),
    'equalize': lambda image, value: ImageOps.equalize(image),
    'invert': lambda image, value: ImageOps.invert(image),
    'posterize': ImageOps.posterize,
    'solarize': ImageOps.solarize,
    'color': lambda image, value: ImageEnhance.Color(image).enhance(value),
    'contrast': (
        lambda image, value: ImageEnhance.Contrast(image).enhance(value)
    ),
    'brightness': (
        lambda image, value: ImageEnhance.Brightness(image).enhance(value)
    ),
    'sharpness': (
        lambda image, value: ImageEnhance.Sharpness(image).enhance(value)
    ),
}


def images(channels):
  """Returns noise, a dark and narrow range, a smooth one, and one intensity."""
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (23, 31, channels)).astype(np.uint8)
  smooth = pictures.smooth(23, 31)[..., :channels]
  return noise, noise // 4 + 20, smooth, np.full_like(noise, 90)


def apply(image, name, value, fill=FILL, interpolation='linear'):
  return operations.apply(
      image, name, value, fill=fill, interpolation=interpolation
  )


def as_pillow(image):
  return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def test_every_operation_is_tested():
  assert {*INTENSITY_VALUES, *MOVE_VALUES} == set(operations.OPERATIONS)
  assert len(operations.OPERATIONS) == 15


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name, value', CASES)
def test_intensities(name, value, channels):
  for image in images(channels):
    got = apply(image, name, value)
    want = naive.INTENSITIES[name](image, value)

    assert got.dtype == np.uint8 and got.shape == image.shape
    # Tables are exact; blends are rounded to the nearest one, after OpenCV
    # has rounded the matrix of `color` to 1 / 1024.
    tolerance = 0.501 if name in BLENDS else 0
    tolerance += 3 * 255 / 2048 * (name == 'color')
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
    'name, value', [(n, v) for n, v in CASES if n in PILLOW and v != 0]
)
def test_intensities_are_those_of_pillow(name, value, channels):
  for image in images(channels):
    got = apply(image, name, value)
    want = np.array(PILLOW[name](as_pillow(image), value), int)

    # Pillow cuts off the fraction of blends, and rounds the mean grey first.
    tolerance = 1 if name in BLENDS else 0
    np.testing.assert_allclose(
        got, want.reshape(image.shape), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize('interpolation', ['linear', 'nearest'])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name, value', MOVES)
def test_moves(name, value, channels, interpolation):
  image = pictures.smooth(23, 31)[..., :channels]
  got = apply(image, name, value, interpolation=interpolation)
  fill = FILL if channels == 3 else (117,)  # The grey of that colour.
  want = naive.move(image, name, value, fill, interpolation)

  assert got.dtype == np.uint8 and got.shape == image.shape
  if interpolation == 'nearest':
    # A few places lie in the middle between two pixels, but for rounding.
    assert np.mean(np.any(got != want, axis=2)) < 0.01
  else:
    # Before its version 5, OpenCV knew places to 1 / 32 of a pixel.
    np.testing.assert_allclose(got, want, rtol=0, atol=3)
    assert np.mean(np.abs(got - want)) < 0.5
  # Both the image and what is outside of it are in the result.
  is_fill = np.all(got == fill, axis=2)
  assert 0.02 < is_fill.mean() < 0.5


@pytest.mark.parametrize('name, value', MOVES)
def test_moves_are_those_of_pillow(name, value):
  image = pictures.smooth(23, 31)
  options = dict(resample=Image.Resampling.BILINEAR, fillcolor=0)
  height, width = image.shape[:2]

  def by_pillow(pixels):
    whole = as_pillow(pixels)
    if name == 'rotate':
      return np.array(whole.rotate(value, **options))
    matrix = {
        'shear_x': (1, value, 0, 0, 1, 0),
        'shear_y': (1, 0, 0, value, 1, 0),
        'translate_x': (1, 0, value * width, 0, 1, 0),
        'translate_y': (1, 0, 0, 0, 1, value * height),
    }[name]
    return np.array(
        whole.transform(whole.size, Image.Transform.AFFINE, matrix, **options)
    )

  # Pillow does not blend the outermost half pixel with what is outside.
  inner = np.zeros_like(image)
  inner[1:-1, 1:-1] = 255
  inside = by_pillow(inner)[..., 0] == 255
  assert inside.mean() > 0.4
  got = apply(image, name, value).astype(int)
  np.testing.assert_allclose(
      got[inside], by_pillow(image)[inside], rtol=0, atol=3
  )


@pytest.mark.parametrize('name, value', CASES + MOVES)
def test_a_grey_image_is_one_channel_of_a_grey_image_in_colour(name, value):
  grey = images(1)[2]
  wide = np.repeat(grey, 3, axis=2)
  got = apply(grey, name, value, fill=(70, 70, 70))
  want = apply(wide, name, value, fill=(70, 70, 70))
  # 0.299 + 0.587 + 0.114 is not quite 1.
  np.testing.assert_allclose(got, want[..., :1].astype(int), rtol=0, atol=1)
  assert name in BLENDS or np.array_equal(got, want[..., :1])


@pytest.mark.parametrize('name, value', CASES + MOVES)
def test_the_input_may_be_a_view_and_read_only(name, value):
  image = images(3)[0]
  view = np.pad(image, ((4, 4), (4, 4), (0, 0)))[4:-4, 4:-4]
  view.flags.writeable = False
  before = view.copy()
  result = apply(view, name, value)
  np.testing.assert_array_equal(result, apply(image, name, value))
  np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('shift', [-0.5, -0.21, -0.01, 0.0, 0.1, 0.37, 0.5])
def test_hue(shift, channels):
  image = np.concatenate(images(channels))
  # Also the corners of the cube of colours, where the formula changes.
  image[: 2**channels, 0] = [
      [255 * (corner >> c & 1) for c in range(channels)]
      for corner in range(2**channels)
  ]
  got = color.adjust_hue(image, shift)
  want = naive.hue(image, shift)
  assert got.shape == image.shape and got.dtype == np.uint8
  np.testing.assert_allclose(got, want, rtol=0, atol=0.501)
