"""The data set cluttered_digits: balanced, exact, and nothing leaks."""

import numpy as np
import pytest

from awconv_jax.data import cluttered_digits, decode, sources
from awconv_jax.data.detection import digit_scenes


@pytest.fixture
def paintings(monkeypatch):
  """Returns the opacities that `draw` paints, in their order."""
  painted = []

  def paint(place, alpha, contrast, rng, paint=digit_scenes.paint):
    painted.append(alpha)
    paint(place, alpha, contrast, rng)

  monkeypatch.setattr(digit_scenes, 'paint', paint)
  return painted


def test_an_image_is_a_function_of_its_number():
  image, label = cluttered_digits.draw(6003)
  assert image.shape == (48, 48, 3) and image.dtype == np.uint8
  np.testing.assert_array_equal(cluttered_digits.draw(6003)[0], image)
  assert np.any(cluttered_digits.draw(6013)[0] != image)
  record = sources.open_source('cluttered_digits', None, 'test[3:]')[0]
  assert (record['label'], record['id']) == (label, 6003) == (3, 6003)
  pixels = decode.EncodedImage(record['image'], 3).pixels()
  np.testing.assert_array_equal(pixels, image)


def test_the_pixels_are_those_of_the_runs_before():
  """Numbers of runs compare with those of others, also after an update."""
  images = [cluttered_digits.draw(number)[0] for number in (0, 5999, 6000)]
  blocks = np.reshape(images, (3, 3, 16, 3, 16, 3)).mean((2, 4, 5))
  want = [
      [[121.4, 137.6, 148.6], [119.4, 131.2, 112.3], [94.1, 120.7, 100.9]],
      [[133.7, 178.1, 174.3], [144.7, 143.0, 117.1], [81.8, 88.3, 107.0]],
      [[88.0, 44.8, 33.0], [84.6, 84.8, 63.7], [79.1, 117.5, 49.6]],
  ]
  np.testing.assert_allclose(blocks, want, atol=0.06)


def test_one_digit_is_whole_and_the_others_are_not(paintings):
  """The digit is painted last, and is at least twice as high as a fragment."""
  for number in range(0, 6040, 151):
    paintings.clear()
    cluttered_digits.draw(number)
    *fragments, digit = paintings
    low, high = cluttered_digits.FRAGMENTS
    assert low <= len(fragments) <= high
    assert max(len(part) for part in fragments) <= len(digit) / 2 + 1
    assert min(part.max() for part in fragments) > 0.5
    # All of the ink's extent, at every edge.
    for edge in (digit[0], digit[-1], digit[:, 0], digit[:, -1]):
      assert edge.max() > 0.3


def test_classes_and_scans_are_equally_frequent(monkeypatch):
  """And all are of the split's own writers, also those of the fragments."""
  drawn = []

  def opacity(scan, heights, rng, most):
    drawn.append(scan)
    return np.ones((20, 12))

  monkeypatch.setattr(digit_scenes, 'opacity', opacity)
  for name, first, size in (('train', 0, 6000), ('test', 6000, 2000)):
    assert len(sources.open_source('cluttered_digits', None, name)) == size
    scans, labels, _ = digit_scenes.materials(name == 'train')
    numbers = range(first, first + size)
    taken = np.array([cluttered_digits.whole(i, labels) for i in numbers])
    assert set(np.bincount(labels[taken])) == {size // 10}
    for label in range(10):
      times = np.bincount(taken, minlength=len(labels))[labels == label]
      assert np.ptp(times) <= 1 and min(times) > 0
    for number in numbers[::200]:
      drawn.clear()
      _, label = cluttered_digits.draw(number)
      assert label == labels[taken[number - first]]
      assert np.array_equal(drawn[-1], scans[taken[number - first]])
      # Views of the split's scans.
      assert all(np.shares_memory(scan, scans) for scan in drawn)
