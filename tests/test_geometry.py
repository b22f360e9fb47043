"""Affine maps, shifted crops and mirroring, where they can be told exactly."""

import numpy as np
import pytest

from awconv_jax.data import geometry

STILL = {'rotation': 0, 'translation': 0, 'scale': (1, 1), 'shear': 0}


class Extreme:
  """An rng whose uniform numbers are the upper ends of their ranges."""

  def uniform(self, low, high, size=None):
    del low
    return high if size is None else np.full(size, high)


@pytest.mark.parametrize(
    'options, expected',
    [
        ({}, lambda image: image),
        ({'rotation': 90}, lambda image: np.rot90(image, -1)),
        ({'rotation': 180}, lambda image: image[::-1, ::-1]),
        (
            {'translation': 0.25},
            lambda image: np.pad(image, ((5, 0), (5, 0), (0, 0)))[:20, :20],
        ),
    ],
)
def test_affine_is_exact_where_pixels_meet_pixels(options, expected):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)

  moved = geometry.random_affine(image, Extreme(), **(STILL | options))

  np.testing.assert_array_equal(moved, expected(image))


def test_affine_scale_and_shear_about_the_centre():
  image = np.zeros((41, 41, 1), np.uint8)
  image[15:26, 15:26] = 255

  larger = geometry.random_affine(
      image, Extreme(), **(STILL | {'scale': (1, 2)})
  )
  slanted = geometry.random_affine(image, Extreme(), **(STILL | {'shear': 45}))

  assert larger[20, 10] == larger[10, 20] == 255 and larger[20, 7] == 0
  # x moves by y: the square's lower edge goes right, its upper edge left.
  assert slanted[25, 26, 0] == 255 and slanted[25, 18, 0] == 0
  assert slanted[15, 14, 0] == 255 and slanted[15, 22, 0] == 0


def test_pad_crop_reaches_all_offsets():
  image = np.full((4, 4, 1), 9, np.uint8)
  rng = np.random.default_rng(0)
  seen = {
      geometry.pad_crop(image, rng, padding=1).tobytes() for _ in range(200)
  }

  assert len(seen) == 9


@pytest.mark.parametrize('channels', [1, 3])
def test_flip_mirrors_one_time_in_two(channels):
  image = np.arange(2 * 3 * channels, dtype=np.uint8).reshape(2, 3, channels)
  rng = np.random.default_rng(0)
  results = [geometry.flip(image, rng) for _ in range(400)]
  mirrored = [np.array_equal(r, image[:, ::-1]) for r in results]

  assert all(
      m or np.array_equal(r, image)
      for m, r in zip(mirrored, results, strict=True)
  )
  assert 160 < sum(mirrored) < 240  # 4 standard deviations.
  # Not a view of negative strides, which is slow to make a batch of.
  assert all(r.strides[1] > 0 for r in results)
