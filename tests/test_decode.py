"""Decoding: what is read, how exactly, and what is refused."""

from concurrent import futures

import cv2
import numpy as np
import pictures
from PIL import Image
import pytest
import simplejpeg

from awconv_jax.data import augment, decode

SMOOTH = pictures.smooth(40, 50)
# Kind, colour mode, options, and the largest mean difference in grey levels.
WHOLE = [
    ('JPEG', None, {'quality': 95}, 2.0),
    ('JPEG', 'CMYK', {'quality': 95}, 2.5),
    ('JPEG', 'YCbCr', {'quality': 95, 'progressive': True}, 2.0),
    ('PNG', None, {}, 0.0),
    ('PNG', 'RGBA', {}, 0.0),
    ('WEBP', None, {'lossless': True}, 0.0),
    ('BMP', None, {}, 0.0),
    ('TIFF', None, {}, 0.0),
    ('PPM', None, {}, 0.0),
    ('GIF', None, {}, 12.0),  # 256 colours.
]


@pytest.mark.parametrize('kind, mode, options, tolerance', WHOLE)
def test_reads_what_images_are_kept_in(kind, mode, options, tolerance):
  encoded = decode.EncodedImage(
      pictures.encode(SMOOTH, kind, mode, **options), 3
  )

  assert (encoded.height, encoded.width) == (40, 50)
  pixels = encoded.pixels()
  assert pixels.shape == (40, 50, 3) and pixels.dtype == np.uint8
  assert np.abs(pixels.astype(int) - SMOOTH).mean() <= tolerance


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_grey_and_colour_are_converted(kind):
  grey = SMOOTH.mean(-1, keepdims=True).astype(np.uint8)
  as_colour = decode.EncodedImage(pictures.encode(grey, kind), 3).pixels()
  as_grey = decode.EncodedImage(pictures.encode(SMOOTH, kind), 1).pixels()

  assert as_colour.shape == (40, 50, 3) and as_grey.shape == (40, 50, 1)
  assert (as_colour == as_colour[..., :1]).all()
  assert np.abs(as_colour - grey.astype(float)).mean() < 2
  weighed = SMOOTH @ [0.299, 0.587, 0.114]
  assert np.abs(as_grey[..., 0] - weighed).mean() < 2


def test_sixteen_bits_become_eight():
  deep = SMOOTH[..., 0].astype(np.uint16) * 257
  _, png = cv2.imencode('.png', deep)
  pixels = decode.EncodedImage(png.tobytes(), 1).pixels()
  np.testing.assert_array_equal(pixels[..., 0], SMOOTH[..., 0])


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_an_exif_orientation_is_not_applied(kind):
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned by 90 degrees.
  encoded = decode.EncodedImage(pictures.encode(SMOOTH, kind, exif=exif), 3)
  assert encoded.pixels().shape == (40, 50, 3)


@pytest.mark.parametrize('kind, mode, options, _', WHOLE)
@pytest.mark.parametrize('share', [0.02, 0.5, 0.9])
def test_half_an_image_is_refused(kind, mode, options, _, share):
  data = pictures.encode(SMOOTH, kind, mode, **options)
  with pytest.raises(decode.UnreadableError) as caught:
    decode.EncodedImage(data[: int(len(data) * share)], 3).pixels()
  assert str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'data, words',
    [(b'', 'empty'), (b'no image at all', 'no image'), (b'\xff\xd8\xff', '.')],
)
def test_what_is_no_image_is_refused(data, words):
  with pytest.raises(decode.UnreadableError, match=words):
    decode.EncodedImage(data, 3)


def test_a_jpeg_with_garbage_before_a_marker_is_read():
  """libjpeg warns of it; the image is sound."""
  data = pictures.encode(SMOOTH, 'JPEG', quality=95)
  table = data.index(b'\xff\xdb')
  dirty = data[:table] + bytes(5) + data[table:]
  with pytest.raises(ValueError):
    simplejpeg.decode_jpeg(dirty)

  sound, found = (decode.EncodedImage(d, 3) for d in (data, dirty))
  np.testing.assert_array_equal(found.pixels(), sound.pixels())
  # Also where a crop is decoded at half its size.
  cut = found.crop((0, 0, 40, 40), 20, 'area').astype(int)
  dirty_crop = decode.EncodedImage(dirty, 3).crop((0, 0, 40, 40), 20, 'area')
  assert np.abs(cut - dirty_crop).mean() < 4


def test_an_image_of_absurd_size_is_refused(monkeypatch):
  monkeypatch.setattr(decode, 'MAX_PIXELS', 40 * 50 - 1)
  data = pictures.encode(SMOOTH, 'JPEG')
  with pytest.raises(decode.UnreadableError, match='40 x 50 pixels'):
    decode.EncodedImage(data, 3)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('interpolation', decode.INTERPOLATIONS)
def test_one_pixel_fills_any_size(kind, channels, interpolation):
  data = pictures.encode(np.full((1, 1, 3), 77, np.uint8), kind)
  encoded = decode.EncodedImage(data, channels)
  result = encoded.crop((0, 0, 1, 1), 8, interpolation)
  assert result.shape == (8, 8, channels)
  assert np.abs(result.astype(int) - 77).max() <= 1


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'area'])
def test_the_central_crop_is_resize_and_cut(interpolation):
  """'Resize the shorter side to 32, cut 28' gives nearly the same."""
  image = pictures.smooth(64, 96)

  cut = decode.center_crop(
      image, size=28, share=0.875, interpolation=interpolation
  )

  method = Image.Resampling.BILINEAR
  whole = np.asarray(Image.fromarray(image).resize((48, 32), method))
  expected = whole[2:30, 10:38]
  inner = np.s_[2:-2, 2:-2]  # At its border the box sees no neighbours.
  difference = np.abs(cut[inner].astype(int) - expected[inner])
  assert difference.mean() < 1.5 and difference.max() < 12


@pytest.mark.parametrize('size', [224, 100, 60, 25])
@pytest.mark.parametrize('box', [(0, 0, 375, 500), (37, 51, 240, 260)])
def test_a_crop_of_a_jpeg_is_the_crop_of_its_pixels(box, size):
  """Also where it was decoded at a half, a quarter or an eighth."""
  data = pictures.encode(pictures.smooth(375, 500), 'JPEG', quality=95)

  cut = decode.EncodedImage(data, 3).crop(box, size, 'linear')

  top, left, height, width = box
  pixels = simplejpeg.decode_jpeg(data)
  region = pixels[top : top + height, left : left + width]
  expected = cv2.resize(region, (size, size), interpolation=cv2.INTER_AREA)
  # At an eighth, the box is rounded by up to half a pixel of the result.
  tolerance = 4 if size == 25 else 2
  assert np.abs(cut.astype(int) - expected).mean() < tolerance
  if size == 224:  # Not reduced: the same, but for the quicker transforms.
    exact = cv2.resize(region, (size, size), interpolation=cv2.INTER_LINEAR)
    difference = np.abs(cut.astype(int) - exact)
    assert difference.max() <= 8 and difference.mean() < 1.5


JPEGS = {
    '4:4:4': dict(subsampling='4:4:4'),
    '4:2:0': dict(subsampling='4:2:0'),
    'grey': dict(mode='L'),
    'restarts': dict(restart_marker_rows=1),
}


@pytest.mark.parametrize('kind', JPEGS)
@pytest.mark.parametrize('rows', [1, 7, 8, 33, 120])
def test_the_upper_rows_are_those_of_the_whole(kind, rows):
  data = pictures.encode(pictures.smooth(150, 90), 'JPEG', **JPEGS[kind])
  assert (b'\xff\xd0' in data) == (kind == 'restarts')
  whole = simplejpeg.decode_jpeg(data)

  shorter = decode.shorten_jpeg(data, rows)

  upper = simplejpeg.decode_jpeg(shorter, strict=False)
  assert rows <= upper.shape[0] < 150
  np.testing.assert_array_equal(upper[:rows], whole[:rows])


SQUARE = pictures.encode(pictures.smooth(64, 64), 'JPEG')
PROGRESSIVE = pictures.encode(pictures.smooth(64, 64), 'JPEG', progressive=True)


@pytest.mark.parametrize(
    'data, rows',
    [
        (SQUARE, 63),
        (SQUARE[:-9], 8),
        (PROGRESSIVE, 8),
        (b'\xff\xd8\xff\xd9', 8),
    ],
)
def test_what_cannot_be_shortened_is_left(data, rows):
  assert decode.shorten_jpeg(data, rows) is None


def test_a_cut_image_is_refused_even_where_the_crop_is_whole():
  data = pictures.encode(pictures.smooth(375, 500), 'JPEG')
  encoded = decode.EncodedImage(data[:-500], 3)
  with pytest.raises(decode.UnreadableError, match='truncated'):
    encoded.crop((0, 0, 100, 100), 50, 'linear')


def boxes(height, width, number=3000, **ranges):
  rng = np.random.default_rng(0)
  ranges = {'area': (0.08, 1.0), 'ratio': (0.75, 4 / 3)} | ranges
  return np.array(
      [augment.crop_box(height, width, rng, **ranges) for _ in range(number)]
  )


def test_random_boxes_are_drawn_as_the_recipes_say():
  top, left, high, wide = boxes(400, 400).T
  assert (top >= 0).all() and (top + high <= 400).all()
  assert (left >= 0).all() and (left + wide <= 400).all()
  share, ratio = high * wide / 400**2, wide / high
  assert 0.079 < share.min() < 0.09 and 0.95 < share.max() <= 1
  assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.35
  # Large boxes of a far ratio do not fit and are drawn again.
  assert 0.47 < share.mean() < 0.54
  assert abs(np.log(ratio).mean()) < 0.02
  # A half of those that leave room lie above the middle.
  free = 400 - high > 40
  assert 0.45 < np.mean(top[free] / (400 - high[free])) < 0.55


def test_boxes_of_odd_images():
  assert (boxes(1, 1) == (0, 0, 1, 1)).all()
  assert boxes(1, 40)[:, 2:].min() == 1
  # One too long for any box gives its middle.
  for size, middle in (
      ((10, 1000), (0, 494, 10, 13)),
      ((1000, 10), (494, 0, 13, 10)),
  ):
    found = boxes(*size, number=50, area=(0.5, 1.0))
    assert (found == found[0]).all() and abs(found[0] - middle).max() <= 1


@pytest.mark.parametrize('threads', [1, 8])
def test_crops_share_no_memory(threads):
  """The scratch memory of a thread serves every crop in turn."""
  files = [
      pictures.encode(pictures.smooth(150, 160, seed), 'JPEG')
      for seed in range(24)
  ]

  def cut(data):  # As large as the result: nothing to be resized.
    return decode.EncodedImage(data, 3).crop((0, 5, 150, 150), 150, 'linear')

  expected = [cut(data).copy() for data in files]
  with futures.ThreadPoolExecutor(threads) as pool:
    found = list(pool.map(cut, files * 4))
  np.testing.assert_array_equal(found, expected * 4)
