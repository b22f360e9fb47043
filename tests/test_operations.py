"""Operations on pixels against formulas in numpy, and against Pillow."""

import colorsys

import numpy as np
import pictures
from PIL import Image, ImageEnhance, ImageOps
import pytest

from awconv_jax.data import operations

FILL = (124, 116, 104)
GREY = (0.299, 0.587, 0.114)


def grey(x):
  return x[..., 0] if x.shape[2] == 1 else x @ GREY


def smooth(x):
  around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
  total = 4 * x + sum(np.roll(x, place, (0, 1)) for place in around)
  smoothed = x.copy()
  smoothed[1:-1, 1:-1] = total[1:-1, 1:-1] / 13
  return smoothed


BLENDS = {
    'color': lambda x: grey(x)[..., None],
    'contrast': lambda x: grey(x).mean(),
    'brightness': lambda x: 0,
    'sharpness': smooth,
}
VALUES = {
    **dict.fromkeys(('auto_contrast', 'equalize', 'invert'), (None,)),
    'posterize': (0, 1, 4, 5, 8),
    'solarize': (0, 77, 255, 256),
    'solarize_add': (0, 77, 128),
    **dict.fromkeys(BLENDS, (0.0, 0.1, 0.63, 1.0, 1.9)),
}
CASES = [(name, v) for name, vs in VALUES.items() for v in vs]
MOVES = [('rotate', -29.0), ('rotate', 13.0)]
MOVES += [(f'shear_{axis}', v) for axis in 'xy' for v in (-0.29, 0.21)]
MOVES += [(f'translate_{axis}', v) for axis in 'xy' for v in (-0.31, 0.25)]


def images(channels):
  """Returns noise, a dark and narrow range, a smooth one, and one intensity."""
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (23, 31, channels)).astype(np.uint8)
  whole = pictures.smooth(23, 31)[..., :channels]
  return noise, noise // 4 + 20, whole, np.full_like(noise, 90)


def apply(image, name, value, interpolation='linear'):
  how = dict(fill=FILL, interpolation=interpolation)
  return operations.apply(image, name, value, **how)


def as_pillow(image):
  return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name, value', CASES)
def test_intensities(name, value, channels):
  for image in images(channels):
    got = apply(image, name, value)
    assert got.dtype == np.uint8 and got.shape == image.shape
    x, tolerance = image.astype(float), 0.0
    if name in BLENDS:
      want = (value * x + (1 - value) * BLENDS[name](x)).clip(0, 255)
      # OpenCV has rounded the matrix of `color` to 1 / 1024.
      tolerance = 0.501 + 3 * 255 / 2048 * (name == 'color')
      enhancer = getattr(ImageEnhance, name.capitalize())(as_pillow(image))
      by_pillow = np.array(enhancer.enhance(value)).reshape(image.shape)
      # Pillow cuts off the fraction, and rounds the mean grey first.
      assert np.abs(got - by_pillow.astype(float)).max() <= 1
    elif name == 'posterize':  # Pillow refuses 0 bits.
      want = x - x % 2 ** (8 - value)
    elif name == 'solarize_add':
      want = np.where(x < 128, np.minimum(x + value, 255), x)
    else:
      by_pillow = getattr(ImageOps, name.replace('_', ''))
      values = () if value is None else (value,)
      want = np.array(by_pillow(as_pillow(image), *values)).reshape(image.shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


PAD = 24


def moved_by_pillow(image, name, value, fill, resample):
  """On a canvas of the fill, as Pillow does not blend with what is outside."""
  height, width, channels = image.shape
  canvas = np.full((height + 2 * PAD, width + 2 * PAD, channels), fill)
  canvas[PAD:-PAD, PAD:-PAD] = image
  whole = as_pillow(canvas.astype(np.uint8))
  if name == 'rotate':
    moved = whole.rotate(value, resample)
  else:
    matrix = {
        'shear_x': (1, value, -value * PAD, 0, 1, 0),
        'shear_y': (1, 0, 0, value, 1, -value * PAD),
        'translate_x': (1, 0, value * width, 0, 1, 0),
        'translate_y': (1, 0, 0, 0, 1, value * height),
    }[name]
    affine = Image.Transform.AFFINE
    moved = whole.transform(whole.size, affine, matrix, resample)
  return np.array(moved).reshape(canvas.shape)[PAD:-PAD, PAD:-PAD].astype(float)


@pytest.mark.parametrize('interpolation', ['linear', 'nearest'])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name, value', MOVES)
def test_moves(name, value, channels, interpolation):
  image = pictures.smooth(23, 31)[..., :channels]
  got = apply(image, name, value, interpolation=interpolation)
  fill = FILL if channels == 3 else (117,)  # The grey of that colour.
  names = {'linear': 'BILINEAR', 'nearest': 'NEAREST'}
  resample = Image.Resampling[names[interpolation]]
  want = moved_by_pillow(image, name, value, fill, resample)

  assert got.dtype == np.uint8 and got.shape == image.shape
  if interpolation == 'nearest':
    # A few places lie in the middle between two pixels, but for rounding.
    assert np.mean(np.any(got != want, axis=2)) < 0.01
  else:
    # Before its version 5, OpenCV knew places to 1 / 32 of a pixel.
    np.testing.assert_allclose(got, want, rtol=0, atol=3)
    assert np.mean(np.abs(got - want)) < 0.6
  is_fill = np.all(got == fill, axis=2)
  assert 0.02 < is_fill.mean() < 0.5


@pytest.mark.parametrize('shift', [-0.5, -0.21, 0.0, 0.37])
def test_hue(shift):
  image = np.concatenate(images(3))
  # Also the corners of the cube of colours, where the formula changes.
  image[:8, 0] = [[255 * (i >> c & 1) for c in range(3)] for i in range(8)]

  def turn(pixel):
    h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
    return 255 * np.array(colorsys.hsv_to_rgb((h + shift) % 1, s, v))

  got = operations.hue(image, shift)
  want = np.apply_along_axis(turn, 2, image)
  assert got.dtype == np.uint8
  np.testing.assert_allclose(got, want, rtol=0, atol=0.501)
  grey_one = image[..., :1]
  np.testing.assert_array_equal(operations.hue(grey_one, shift), grey_one)
