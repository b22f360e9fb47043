"""An image is the same pixels, whatever it comes as."""

import os

import numpy as np
import pictures
from PIL import Image
import pytest

from awconv_jax.data import any_image
from awconv_jax.errors import InputError

COLOR = pictures.smooth(20, 30)
GREY = COLOR[..., :1]


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
    'pixels, mode',
    [(COLOR, 'RGB'), (COLOR, 'RGBA'), (COLOR, 'P'), (GREY, 'L'), (GREY, 'LA')],
)
def test_a_file_pillows_image_and_an_array_agree(
    pixels, mode, channels, tmp_path
):
  path, exif = tmp_path / 'a.png', Image.Exif()
  exif[0x0112] = 6  # As of a camera that was turned.
  path.write_bytes(pictures.encode(pixels, 'PNG', mode, exif=exif))
  image = Image.open(path)
  as_file = any_image.pixels_of(path, channels)
  assert as_file.shape == (30, 20, channels)
  as_image = any_image.pixels_of(image, channels).astype(int)
  # Grey of colours is rounded by each decoder.
  assert abs(as_image - as_file).max() <= 1
  if mode in ('RGB', 'RGBA', 'L'):
    array = np.rot90(np.asarray(image), -1)  # A view that runs backwards.
    as_array = any_image.pixels_of(array, channels).astype(int)
    assert abs(as_array - as_file).max() <= 1


def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path):
  deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
  Image.fromarray(deep).save(tmp_path / 'a.png')
  for image in (tmp_path / 'a.png', Image.open(tmp_path / 'a.png')):
    found = any_image.pixels_of(image, 3)
    np.testing.assert_array_equal(found, np.stack([deep >> 8] * 3, -1))


@pytest.mark.parametrize('dtype, words', [('f4', 'float32'), ('i4', '32 bits')])
def test_of_other_depths_nothing_is_made_up(dtype, words, tmp_path):
  deep = Image.fromarray(
      np.linspace(0, 2**20, 600, dtype=dtype).reshape(20, 30)
  )
  deep.save(tmp_path / 'a.tif')
  for image in (tmp_path / 'a.tif', deep):
    with pytest.raises(InputError, match=f'{words}, want 8 or 16'):
      any_image.pixels_of(image, 1)


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'a.png')
  with pytest.raises(InputError, match='it is no file, but a pipe'):
    any_image.pixels_of(tmp_path / 'a.png', 1)


@pytest.mark.parametrize(
    'wrong',
    [np.zeros((4, 4)), np.zeros((3, 4, 5), 'u1'), np.zeros((0, 4), 'u1'), None],
)
def test_what_is_no_image_says_what_is_wanted(wrong):
  with pytest.raises(InputError, match=r'want uint8 \[H, W\] or'):
    any_image.pixels_of(wrong, 3)
