"""Anchors against a loop, against numbers by hand, and their count."""

import naive_detection as naive
import numpy as np
import pytest

from awconv_jax.ops.anchors import Anchors


def test_a_few_by_hand():
  levels = Anchors().pyramid((800, 1344))
  assert [len(a) for a in levels] == [201600, 50400, 12600, 3150, 819]
  assert all(a.dtype == np.float32 for a in levels)
  # 32 pixels at stride 4: 32 * sqrt(2) = 45.2548 by 22.6274, and the square.
  want = [[-22.62742, -11.31371, 22.62742, 11.31371], [-16, -16, 16, 16]]
  np.testing.assert_allclose(levels[0][:2], want, rtol=1e-6)
  # Row 1, column 2 of 84 at stride 16, the square of 128 pixels.
  square = levels[2][(84 + 2) * 3 + 1]
  np.testing.assert_array_equal(square, [32 - 64, 16 - 64, 32 + 64, 16 + 64])
  # The last one: row 12 and column 20 at stride 64, 512 pixels, upright.
  want = 1280 - 181.01934, 768 - 362.03867, 1280 + 181.01934, 768 + 362.03867
  np.testing.assert_allclose(levels[4][-1], want, rtol=1e-6)


@pytest.mark.parametrize('rounded', [False, True])
@pytest.mark.parametrize('canvas', [(64, 128), (70, 33)])
@pytest.mark.parametrize(
    'options', [{}, dict(scale=4.3, strides=(8, 16), ratios=(0.3, 1.0, 1.7))]
)
def test_equal_the_loop(canvas, rounded, options):
  made = Anchors(rounded=rounded, **options)
  sizes = [made.scale * stride for stride in made.strides]
  want = naive.anchors(
      canvas, made.strides, sizes, made.ratios, rounded=rounded
  )
  got = np.concatenate(made.pyramid(canvas))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
