"""Decoding: what is read, how exactly, and what is refused."""

from concurrent import futures
import errno
import io
import os
from unittest import mock
import warnings

import cv2
import numpy as np
import pictures
from PIL import EpsImagePlugin, ExifTags, Image, ImageOps
import pytest
import simplejpeg

from awconv_jax import errors, memory
from awconv_jax.data import augment, create, decode

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
def test_reads_what_images_are_kept_in_and_refuses_a_part(
    kind, mode, options, tolerance
):
  data = pictures.encode(SMOOTH, kind, mode, **options)
  encoded = decode.EncodedImage(data, 3)
  assert (encoded.height, encoded.width) == (40, 50)
  pixels = encoded.pixels()
  assert pixels.shape == (40, 50, 3) and pixels.dtype == np.uint8
  assert np.abs(pixels.astype(int) - SMOOTH).mean() <= tolerance
  for share in (0.02, 0.5, 0.9):
    with pytest.raises(decode.UnreadableError) as caught:
      decode.EncodedImage(data[: int(len(data) * share)], 3).pixels()
    assert str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('size', [(40, 50), (40, 40)])
def test_images_are_upright_as_exif_says_in_every_format(turn, size):
  exif, stored = Image.Exif(), pictures.smooth(*size)
  exif[ExifTags.Base.Orientation] = turn
  exif.endian = '<>'[turn % 2]
  wanted = Image.fromarray(stored)
  wanted.getexif()[ExifTags.Base.Orientation] = turn
  wanted = np.asarray(ImageOps.exif_transpose(wanted)).astype(int)
  options = {'JPEG': {'quality': 95}, 'WEBP': {'lossless': True}}
  files = {
      kind: pictures.encode(stored, kind, exif=exif, **options.get(kind, {}))
      for kind in ('JPEG', 'PNG', 'WEBP', 'TIFF')
  }
  # Other programs write the chunk behind the pixels.
  png, plain = files['PNG'], pictures.encode(stored)
  start = png.index(b'eXIf') - 4
  chunk = png[start : png.index(b'IDAT', start) - 4]
  files['late'] = plain[:-12] + chunk + plain[-12:]
  # Bytes of 255 may lead any marker.
  files['filled'] = files['JPEG'].replace(b'\xff\xe1', b'\xff\xff\xff\xe1')
  for kind, data in files.items():
    image = decode.EncodedImage(data, 3)
    assert (image.height, image.width) == wanted.shape[:2], kind
    cut = image.crop((4, 0, 32, 32), 32, 'area').astype(int)
    assert np.abs(cut - wanted[4:36, :32]).mean() < 8, kind
    assert np.abs(image.pixels() - wanted).mean() < 2, kind


def test_what_opencv_turns_twice_is_refused():
  tags = {ExifTags.Base.Orientation: 3}
  data = pictures.encode(SMOOTH, 'TIFF', tiffinfo=tags)
  assert decode.EncodedImage(data, 3).height == 40
  old, new = ExifTags.Base.RowsPerStrip, ExifTags.Base.TileWidth
  data = data.replace(old.to_bytes(2, 'little'), new.to_bytes(2, 'little'), 1)
  with pytest.raises(decode.UnreadableError, match='TIFF in tiles'):
    decode.EncodedImage(data, 3)


def test_a_jpeg_that_claims_more_than_it_can_hold_is_refused():
  data = bytearray(pictures.encode(SMOOTH, 'JPEG'))
  frame = data.index(b'\xff\xc0')
  data[frame + 5 : frame + 9] = 2 * (10_000).to_bytes(2)
  with pytest.raises(decode.UnreadableError, match='hold 10000 x 10000 pixels'):
    decode.EncodedImage(bytes(data), 3)


def test_pillow_says_nothing_on_standard_error():
  header = np.zeros((1, 1), np.uint8)
  data = bytearray(pictures.encode(header[..., None], 'BMP'))
  data[18:26] = 2 * (10_000).to_bytes(4, 'little')
  decode._silence_pillow.cache_clear()
  with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter('always')
    with pytest.raises(decode.UnreadableError, match='truncated'):
      decode.EncodedImage(bytes(data), 3)
  assert not seen


@pytest.mark.parametrize(
    'kind', ['JPEG', 'PNG', 'GIF', 'TIFF', 'WEBP', 'BMP', 'PPM']
)
def test_the_header_is_looked_at_before_anything_is_decoded(kind, monkeypatch):
  data = pictures.encode(SMOOTH, kind)
  monkeypatch.setattr(decode, 'MAX_PIXELS', 40 * 50 - 1)
  monkeypatch.setattr(cv2, 'imdecode', None)
  with pytest.raises(decode.UnreadableError, match='40 x 50 pixels are more'):
    decode.EncodedImage(data, 3)


def test_no_program_is_run_for_a_format_that_is_not_ours(monkeypatch):
  postscript = io.BytesIO()
  Image.fromarray(SMOOTH).save(postscript, 'EPS')
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', None)
  with pytest.raises(decode.UnreadableError, match='^it is no image$'):
    decode.EncodedImage(postscript.getvalue(), 3)


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


def test_what_is_no_image_or_of_absurd_size_is_refused(monkeypatch):
  monkeypatch.setattr(decode, 'MAX_PIXELS', 40 * 50 - 1)
  files = {'empty': b'', 'no image': b'no image at all', '.': b'\xff\xd8\xff'}
  files['40 x 50 pixels'] = pictures.encode(SMOOTH, 'JPEG')
  for words, data in files.items():
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
  # Decoded at half its size, too.
  cut = found.crop((0, 0, 40, 40), 20, 'area').astype(int)
  dirty_crop = decode.EncodedImage(dirty, 3).crop((0, 0, 40, 40), 20, 'area')
  assert np.abs(cut - dirty_crop).mean() < 4


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
  image = pictures.smooth(64, 96)
  how = dict(size=28, share=0.875, interpolation=interpolation)
  cut = decode.center_crop(image, **how)
  method = Image.Resampling.BILINEAR
  whole = np.asarray(Image.fromarray(image).resize((48, 32), method))
  # At its border the box sees no neighbours.
  difference = np.abs(cut.astype(int) - whole[2:30, 10:38])[2:-2, 2:-2]
  assert difference.mean() < 1.5 and difference.max() < 12


@pytest.mark.parametrize(
    'height, width, whole, corner',
    # As torchvision rounds: sizes down, and offsets of a half to the even one.
    [(45, 105, (32, 74), (2, 23)), (97, 66, (47, 32), (10, 2))],
)
def test_torchvisions_resize_and_centre_crop_pixel_by_pixel(
    height, width, whole, corner
):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (height, width, 3), np.uint8)
  (rows, columns), (top, left) = whole, corner
  method = Image.Resampling.BILINEAR
  resized = np.asarray(Image.fromarray(image).resize((columns, rows), method))
  how = dict(share=0.875, interpolation='area', how='torchvision')
  cut = decode.center_crop(image, size=28, **how)
  expected = resized[top : top + 28, left : left + 28]
  np.testing.assert_array_equal(cut, expected)
  # A line would become one of a gigabyte.
  with pytest.raises(decode.UnreadableError, match='more than 2'):
    decode.center_crop(np.zeros((1, 10**6, 1), np.uint8), size=224, **how)


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


KINDS = [dict(subsampling='4:4:4'), dict(subsampling='4:2:0')]
KINDS += [dict(mode='L'), dict(restart_marker_rows=1)]


@pytest.mark.parametrize('options', KINDS)
def test_the_upper_rows_are_those_of_the_whole(options):
  data = pictures.encode(pictures.smooth(150, 90), 'JPEG', **options)
  assert (b'\xff\xd0' in data) == ('restart_marker_rows' in options)
  whole = simplejpeg.decode_jpeg(data)
  for rows in (1, 7, 8, 33, 120):
    shorter = decode.shorten_jpeg(data, rows)
    upper = simplejpeg.decode_jpeg(shorter, strict=False)
    assert rows <= upper.shape[0] < 150
    np.testing.assert_array_equal(upper[:rows], whole[:rows])


def test_what_cannot_be_shortened_is_left():
  image = pictures.smooth(64, 64)
  data = pictures.encode(image, 'JPEG')
  progressive = pictures.encode(image, 'JPEG', progressive=True)
  assert decode.shorten_jpeg(data, 63) is None
  for other in (data[:-9], progressive, b'\xff\xd8\xff\xd9'):
    assert decode.shorten_jpeg(other, 8) is None


def test_a_cut_image_is_refused_even_where_the_crop_is_whole():
  data = pictures.encode(pictures.smooth(375, 500), 'JPEG')
  encoded = decode.EncodedImage(data[:-500], 3)
  with pytest.raises(decode.UnreadableError, match='truncated'):
    encoded.crop((0, 0, 100, 100), 50, 'linear')


def boxes(height, width, number=1000, **ranges):
  rng = np.random.default_rng(0)
  ranges = {'area': (0.08, 1.0), 'ratio': (0.75, 4 / 3)} | ranges
  return np.array(
      [augment.crop_box(height, width, rng, **ranges) for _ in range(number)]
  )


def test_boxes_of_odd_images():
  assert (boxes(1, 1) == (0, 0, 1, 1)).all()
  assert boxes(1, 40)[:, 2:].min() == 1
  _, _, high, wide = boxes(90, 90, area=(0.1, 0.2), ratio=(2.0, 3.0)).T
  assert np.ptp(wide / high) > 0.9 and (wide > 1.7 * high).all()
  # One too long for any box gives its middle.
  wide, high = (boxes(*s, 50, area=(0.5, 1)) for s in ((10, 999), (999, 10)))
  assert (np.abs(wide - (0, 493, 10, 13)) <= 1).all() and (
      wide == wide[0]
  ).all()
  np.testing.assert_array_equal(high, wide[:, [1, 0, 3, 2]])


def test_crops_share_no_memory():
  """The scratch memory of a thread serves every crop in turn."""
  images = [pictures.smooth(150, 160, seed) for seed in range(24)]
  files = [pictures.encode(image, 'JPEG') for image in images]

  def cut(data):  # As large as the result: nothing to be resized.
    return decode.EncodedImage(data, 3).crop((0, 5, 150, 150), 150, 'linear')

  expected = [cut(data).copy() for data in files]
  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(cut, files * 4))
  np.testing.assert_array_equal(found, expected * 4)


@pytest.mark.parametrize('code', [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_errors_of_the_system_are_not_an_images(tmp_path, monkeypatch, code):
  def no_file(path, *_):
    raise OSError(code, os.strerror(code), path)

  for name in ('val/a/1.png', 'val/b/1.png'):
    (path := tmp_path / name).parent.mkdir(parents=True)
    path.write_bytes(pictures.photo(1, 'PNG'))
  options = dict(name=f'folder:{tmp_path}', eval_split='val', image_size=8)
  options |= dict(eval_image_size=8, max_bad_fraction=1.0)
  batches = create(options, train=False, batch_size=1, seed=0)
  monkeypatch.setattr(decode, 'open', no_file, raising=False)
  with pytest.raises(OSError, match=os.strerror(code)) as caught:
    list(batches)
  line = errors.reported(caught.value)
  assert line.startswith(os.strerror(code)) and f'{tmp_path}/val' in line
  monkeypatch.undo()
  monkeypatch.setattr(decode.Image, 'open', mock.Mock(side_effect=MemoryError))
  with pytest.raises(MemoryError):
    list(batches)


_V1 = 'memory/memory.limit_in_bytes'


@pytest.mark.parametrize(
    'groups, name', [('0::/a/b', 'a/memory.max'), ('4:memory:/', _V1)]
)
def test_memory_is_that_of_the_container(tmp_path, monkeypatch, groups, name):
  monkeypatch.setattr(memory, '_GROUPS', tmp_path / 'groups')
  monkeypatch.setattr(memory, '_LIMITS', tmp_path)
  whole = memory.limit()
  (tmp_path / 'groups').write_text(f'{groups}\n')
  (file := tmp_path / name).parent.mkdir()
  (tmp_path / 'memory.max').write_text('max\n')
  assert memory.limit() == whole
  file.write_text('1000\n')
  assert memory.limit() == 1000
