"""Captions of a contact sheet lie below their pictures, and nowhere else."""

import numpy as np
import pytest

from awconv_jax.tools import contact_sheet


@pytest.mark.parametrize('number', [1, 5])
def test_every_picture_has_its_caption_in_its_own_column(number):
  rng = np.random.default_rng(0)
  tiles = []
  for n in range(number):
    size = rng.integers(1, 700, 2)
    pixels = np.full((*size, 1 + 2 * (n % 2)), 200, np.uint8)
    tiles.append((pixels, [('long \n' * 40 + str(n), 'black'), ('b', 'black')]))
  sheet = np.asarray(contact_sheet.make(tiles, 100))
  # Ink is black, pictures are grey, and the gaps between columns are white.
  columns = (sheet.min(2) < 128).any(0)
  width = 100 + contact_sheet._GAP
  for edge in range(0, sheet.shape[1], width):
    assert not columns[edge : edge + contact_sheet._GAP].any()
  starts = range(contact_sheet._GAP, sheet.shape[1] - 1, width)
  assert all(columns[start : start + 100].any() for start in starts)
  below = sheet.min(2)[100 + contact_sheet._GAP :]
  ends = np.flatnonzero((below < 128).any(1))
  assert np.diff(ends).max() > 1  # Two lines, which do not touch.


@pytest.mark.parametrize('number, most', [(7, 3), (3, 7), (5, 0), (100, 16)])
def test_pictures_are_spread_evenly(number, most):
  chosen = contact_sheet.Spread(number, most)
  shown = [n for n in range(1, number + 1) if chosen(n)]
  assert len(shown) == min(number, most)
  gaps = np.diff([0, *shown])
  assert not most or (shown[-1] == number and np.ptp(gaps) <= 1)
  # What is broken gives its place to the next one.
  chosen = contact_sheet.Spread(4, 2)
  assert [n for n in (1, 3, 4) if chosen(n)] == [3, 4]
