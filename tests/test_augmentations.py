"""RandAugment, AutoAugment, colour jitter and erasing: what they draw.

What an operation does to pixels is tested in test_operations.
"""

import collections

import naive_operations as naive
import numpy as np
import pictures
import pytest

from awconv_jax.data import auto_augment, color, crops, operations

RAND = dict(
    num_ops=2,
    magnitude=7.0,
    magnitude_std=0.5,
    probability=0.5,
    increasing=True,
)
JITTER = dict(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
ERASE = dict(probability=1.0, area=(0.1, 0.3), ratio=(0.5, 2.0), fill='noise')
ALL = {
    'rand_augment': (auto_augment.rand_augment, RAND),
    'auto_augment': (auto_augment.auto_augment, dict(policy='cifar10')),
    'color_jitter': (color.color_jitter, JITTER),
    'random_erasing': (
        crops.random_erasing,
        ERASE | dict(probability=0.7),
    ),
}
BLANK = np.zeros((8, 8, 1), np.uint8)


def assert_share(number, draws, probability):
  """The number of hits lies within 4.5 standard deviations."""
  deviation = np.sqrt(draws * probability * (1 - probability))
  assert abs(number - draws * probability) < 4.5 * deviation


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', ALL)
def test_contract(name, channels):
  run, options = ALL[name]
  image = pictures.smooth(20, 30)[..., :channels]
  view = np.pad(image, ((4, 4), (4, 4), (0, 0)))[4:-4, 4:-4]
  view.flags.writeable = False
  results = [run(view, np.random.default_rng(s), **options) for s in range(30)]

  np.testing.assert_array_equal(view, image)
  for seed, result in enumerate(results):
    assert result.shape == image.shape and result.dtype == np.uint8
    assert result.flags.c_contiguous
    again = run(image, np.random.default_rng(seed), **options)
    np.testing.assert_array_equal(result, again)
  # RandAugment leaves an image in four as it is.
  assert len({result.tobytes() for result in results}) > 12


@pytest.mark.parametrize('name', ALL)
def test_one_pixel_and_one_row(name):
  run, options = ALL[name]
  rng = np.random.default_rng(0)
  for shape in ((1, 1, 3), (1, 9, 3), (2, 1, 1)):
    image = np.full(shape, 100, np.uint8)
    for _ in range(40):
      assert run(image, rng, **options).shape == shape


# --- RandAugment and AutoAugment ---------------------------------------------


@pytest.fixture
def applied(monkeypatch):
  """Operations are recorded, as (name, value, how), and not carried out."""
  records = []

  def record(image, name, value, **how):
    records.append((name, value, how))
    return image

  monkeypatch.setattr(operations, 'apply', record)
  return records


def draw_rand(number, **options):
  rng = np.random.default_rng(0)
  for _ in range(number):
    auto_augment.rand_augment(BLANK, rng, **RAND | options)


def test_rand_augment_draws_each_operation_alike_and_skips_some(applied):
  draw_rand(2000, num_ops=3, probability=0.6)
  counts = collections.Counter(name for name, _, _ in applied)
  assert set(counts) == set(operations.OPERATIONS)
  assert_share(len(applied), 6000, 0.6)
  for number in counts.values():
    assert_share(number, len(applied), 1 / 15)
  assert all(
      how == dict(fill=(124, 116, 104), interpolation='linear')
      for _, _, how in applied
  )


def test_rand_augment_draws_with_replacement(applied):
  rng = np.random.default_rng(0)
  twice = 0
  for _ in range(1500):
    applied.clear()
    auto_augment.rand_augment(BLANK, rng, **RAND | dict(probability=1.0))
    assert len(applied) == 2
    twice += applied[0][0] == applied[1][0]
  assert_share(twice, 1500, 1 / 15)


def test_rand_augment_draws_magnitudes_and_signs(applied):
  draw_rand(6000, probability=1.0)
  values = collections.defaultdict(list)
  for name, value, _ in applied:
    values[name].append(value)
  units = dict(rotate=3, shear_x=0.03, shear_y=0.03)
  units |= dict(translate_x=0.045, translate_y=0.045)
  for name, unit in units.items():
    magnitudes = np.array(values[name]) / unit
    assert_share(np.sum(magnitudes > 0), len(magnitudes), 0.5)
    # About 800 numbers: 4.5 standard errors.
    assert abs(np.mean(np.abs(magnitudes)) - 7) < 0.08
    assert abs(np.std(np.abs(magnitudes)) - 0.5) < 0.06
  for name in ('color', 'contrast', 'brightness', 'sharpness'):
    magnitudes = (np.array(values[name]) - 1) / 0.09
    assert_share(np.sum(magnitudes > 0), len(magnitudes), 0.5)
    assert abs(np.mean(np.abs(magnitudes)) - 7) < 0.08


def test_rand_augment_keeps_magnitudes_in_their_range(applied):
  draw_rand(1500, probability=1.0, magnitude=9.0, magnitude_std=5.0)
  angles = [abs(value) for name, value, _ in applied if name == 'rotate']
  # Phi(-1.8) = 0.036 are cut off below, Phi(-0.2) = 0.421 above.
  assert max(angles) == 30 and min(angles) == 0
  assert_share(angles.count(30), len(angles), 0.421)
  assert_share(angles.count(0), len(angles), 0.036)


ALWAYS = {
    'auto_contrast': {None},
    'equalize': {None},
    'invert': {None},
    'rotate': {-9, 9},
    'solarize_add': {33},
    'shear_x': {-0.09, 0.09},
    'shear_y': {-0.09, 0.09},
    'translate_x': {-0.135, 0.135},
    'translate_y': {-0.135, 0.135},
}
ENHANCE = ('color', 'contrast', 'brightness', 'sharpness')


@pytest.mark.parametrize(
    'increasing, others',
    [
        (
            True,
            dict(posterize={3}, solarize={180})
            | dict.fromkeys(ENHANCE, {0.73, 1.27}),
        ),
        (
            False,
            dict(posterize={1}, solarize={76}) | dict.fromkeys(ENHANCE, {0.64}),
        ),
    ],
)
def test_rand_augment_values_at_magnitude_3(applied, increasing, others):
  draw_rand(
      300,
      probability=1.0,
      magnitude=3,
      magnitude_std=0.0,
      increasing=increasing,
  )
  values = collections.defaultdict(set)
  for name, value, _ in applied:
    values[name].add(value if value is None else round(float(value), 9))
  assert values == ALWAYS | others


def test_rand_augment_applies_what_it_has_drawn_in_order(applied, monkeypatch):
  image = pictures.smooth(20, 20)
  options = RAND | dict(num_ops=4, probability=1.0)
  auto_augment.rand_augment(image, np.random.default_rng(5), **options)
  monkeypatch.undo()
  got = auto_augment.rand_augment(image, np.random.default_rng(5), **options)

  want = image
  for name, value, how in applied:
    want = operations.apply(want, name, value, **how)
  assert len(applied) == 4
  np.testing.assert_array_equal(got, want)


# 10 times the probabilities of each operation in the paper's table, added up.
TENTHS = {
    'auto_contrast': 50,
    'brightness': 23,
    'color': 29,
    'contrast': 8,
    'equalize': 47,
    'invert': 2,
    'posterize': 3,
    'rotate': 7,
    'sharpness': 28,
    'shear_y': 7,
    'solarize': 19,
    'translate_x': 8,
    'translate_y': 34,
}


def test_the_policy_is_that_of_the_paper():
  pairs = auto_augment.POLICIES['cifar10']
  tenths = collections.Counter()
  for name, probability, _ in (step for pair in pairs for step in pair):
    tenths[name] += round(10 * probability)
  assert len(pairs) == 25 and tenths == TENTHS
  # How probabilities are paired, in a number.
  assert abs(sum(first[1] * last[1] for first, last in pairs) - 7.08) < 1e-9


def test_auto_augment_draws_pairs_alike_and_their_operations_apart(applied):
  rng = np.random.default_rng(0)
  draws, whole = 10000, collections.Counter()
  for _ in range(draws):
    before = len(applied)
    auto_augment.auto_augment(BLANK, rng, policy='cifar10')
    whole[tuple(name for name, _, _ in applied[before:])] += 1
  counts = collections.Counter(name for name, _, _ in applied)
  assert counts.keys() == TENTHS.keys()
  for name, tenths in TENTHS.items():
    # Its variance is at most that of two tosses a draw.
    mean = draws * tenths / 250
    assert abs(counts[name] - mean) < 4.5 * np.sqrt(2 * mean)
  assert_share(sum(whole[n] for n in whole if len(n) == 2), draws, 7.08 / 25)
  # Of one pair, in its order.
  assert_share(whole['rotate', 'translate_x'], draws, 0.21 / 25)
  assert ('translate_x', 'rotate') not in whole
  assert all(
      how == dict(fill=(125, 123, 114), interpolation='nearest')
      for _, _, how in applied
  )


def test_auto_augment_values_are_the_ranges_of_the_paper(applied):
  rng = np.random.default_rng(0)
  for _ in range(8000):
    auto_augment.auto_augment(BLANK, rng, policy='cifar10')
  values = collections.defaultdict(collections.Counter)
  for name, value, _ in applied:
    values[name][value if value is None else round(float(value), 4)] += 1

  def both(*numbers):
    return {sign * n for n in numbers for sign in (-1, 1)}

  assert {name: set(numbers) for name, numbers in values.items()} == {
      'auto_contrast': {None},
      'equalize': {None},
      'invert': {None},
      'rotate': both(6.6667),  # Magnitude 2 of 0 to 30 degrees.
      'shear_y': both(0.2667, 0.2333),  # 8 and 7 of 0 to 0.3.
      'translate_x': both(0.3125, 0.2778),  # 9 and 8 of 0 to 10 / 32.
      'translate_y': both(0.3125, 0.1042),  # 9 and 3.
      'posterize': {5},  # 7 of 8 to 4 bits, rounded.
      'solarize': {199, 28, 114, 171},  # 2, 8, 5 and 3 of 256 to 0.
      'contrast': {1.3, 1.5},  # 6 and 7 of 0.1 to 1.9, as all below.
      'color': {0.7, 1.5, 1.7, 1.9, 0.1},  # 3, 7, 8, 9 and 0.
      'brightness': {1.5, 1.9, 1.3, 0.7},  # 7, 9, 6 and 3.
      'sharpness': {0.3, 0.7, 1.9, 1.1, 1.3},  # 1, 3, 9, 5 and 6.
  }
  for name in ('rotate', 'shear_y', 'translate_x', 'translate_y'):
    up = sum(number for value, number in values[name].items() if value > 0)
    assert_share(up, sum(values[name].values()), 0.5)


# --- colour jitter -----------------------------------------------------------


@pytest.fixture
def adjusted(monkeypatch):
  """Adjustments are recorded, as (name, value), and not carried out."""
  records = []

  def recorder(name):
    def record(image, value):
      records.append((name, value))
      return image

    return record

  for name in JITTER:
    monkeypatch.setitem(color.ADJUSTMENTS, name, recorder(name))
  return records


def test_color_jitter_draws_factors_and_orders(adjusted):
  rng = np.random.default_rng(0)
  options = JITTER | dict(brightness=1.5)
  for _ in range(3000):
    color.color_jitter(BLANK, rng, **options)
  orders = collections.Counter(
      tuple(name for name, _ in adjusted[i : i + 4])
      for i in range(0, len(adjusted), 4)
  )
  assert len(orders) == 24 and all(len(set(order)) == 4 for order in orders)
  for number in orders.values():
    assert_share(number, 3000, 1 / 24)
  ranges = dict(brightness=(0, 2.5), contrast=(0.7, 1.3))
  ranges |= dict(saturation=(0.8, 1.2), hue=(-0.1, 0.1))
  for name, (low, high) in ranges.items():
    values = np.array([value for key, value in adjusted if key == name])
    assert low <= values.min() and values.max() <= high
    for quarter in np.split(np.linspace(low, high, 5), 5)[1:]:
      below = (high - quarter[0]) / (high - low)
      if below:
        assert_share(np.sum(values > quarter[0]), 3000, below)


def test_color_jitter_is_its_adjustments_one_after_the_other(
    adjusted, monkeypatch
):
  image = pictures.smooth(9, 11)
  color.color_jitter(image, np.random.default_rng(3), **JITTER)
  monkeypatch.undo()
  got = color.color_jitter(image, np.random.default_rng(3), **JITTER)

  want = image.astype(float)
  names = dict(saturation='color')
  for name, value in adjusted:
    change = naive.INTENSITIES.get(names.get(name, name), naive.hue)
    want = change(want, value)
  assert len(adjusted) == 4
  # Four times rounded, and amplified by up to 1.4 * 1.3 * 1.2 afterwards.
  np.testing.assert_allclose(got, want, rtol=0, atol=2.5)
  assert np.abs(got - image.astype(float)).mean() > 5


def test_color_jitter_of_nothing_is_nothing():
  image = pictures.smooth(9, 11)
  still = dict.fromkeys(JITTER, 0)
  got = color.color_jitter(image, np.random.default_rng(0), **still)
  np.testing.assert_array_equal(got, image)


# --- random erasing ----------------------------------------------------------


def erase(image, number, **options):
  rng = np.random.default_rng(0)
  return [
      crops.random_erasing(image, rng, **ERASE | options) for _ in range(number)
  ]


def boxes(results):
  """Returns top, left, height and width of what is 0, which is one box."""
  found = []
  for result in results:
    rows, columns = np.nonzero(result[..., 0] == 0)
    top, left = rows.min(), columns.min()
    size = rows.max() + 1 - top, columns.max() + 1 - left
    assert len(rows) == size[0] * size[1]
    assert np.all(result[result[..., 0] == 0] == 0)
    found.append((top, left, *size))
  return np.array(found).T


def test_random_erasing_happens_with_its_probability():
  image = np.full((16, 16, 3), 9, np.uint8)
  results = erase(image, 1000, probability=0.3, fill='zero')
  changed = sum(not np.array_equal(result, image) for result in results)
  assert_share(changed, 1000, 0.3)


def test_random_erasing_draws_area_and_ratio():
  image = np.full((100, 120, 3), 9, np.uint8)
  _, _, height, width = boxes(erase(image, 1500, fill='zero'))
  # Sides are whole numbers, of 24 at least.
  share, ratio = height * width / 12000, height / width
  assert 0.097 < share.min() < 0.105 and 0.295 < share.max() < 0.31
  assert_share(np.sum(share < 0.15), 1500, 0.25)
  assert_share(np.sum(share < 0.2), 1500, 0.5)
  assert 0.48 < ratio.min() < 0.53 and 1.9 < ratio.max() < 2.1
  # In its logarithm: as many below 1 as above, and a quarter below 2^-0.5.
  assert_share(np.sum(ratio < 2**-0.5), 1500, 0.25)
  assert_share(np.sum(ratio < 1), 1500, 0.5)


def test_random_erasing_draws_every_place():
  image = np.full((12, 12, 1), 9, np.uint8)
  options = dict(area=(0.25, 0.25), ratio=(1.0, 1.0), fill='zero')
  top, left, height, width = boxes(erase(image, 2000, **options))
  assert set(height) == set(width) == {6}
  counts = np.zeros((7, 7))
  np.add.at(counts, (top, left), 1)
  for number in (*counts.sum(0), *counts.sum(1)):
    assert_share(number, 2000, 1 / 7)
  assert counts.min() > 0


@pytest.mark.parametrize('channels', [1, 3])
def test_random_erasing_fills_with_noise(channels):
  image = np.full((64, 64, channels), 9, np.uint8)
  options = dict(area=(1.0, 1.0), ratio=(1.0, 1.0))
  noise = np.stack(erase(image, 4, **options))
  # All intensities alike, in 4 * 64 * 64 * C independent numbers.
  for number in np.bincount(noise.ravel(), minlength=256):
    assert_share(number, noise.size, 1 / 256)
  assert (
      abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.05
  )
  assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1
  if channels == 3:
    assert (
        abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1])
        < 0.05
    )


def test_random_erasing_gives_up_where_nothing_fits():
  image = pictures.smooth(4, 60)
  # Squares of 45 to 60 pixels' area do not fit into 4 rows.
  options = dict(area=(0.2, 0.25), ratio=(1.0, 1.0))
  for result in erase(image, 20, **options):
    np.testing.assert_array_equal(result, image)
  # One try in twenty fits: ten do for 40 per cent of the images.
  options = dict(area=(0.2, 0.2), ratio=(0.25, 5.657), fill='zero')
  results = erase(np.full((4, 60, 1), 9, np.uint8), 600, **options)
  fits = np.mean(
      [
          round(np.sqrt(48 * r)) <= 4
          for r in np.exp(np.linspace(np.log(0.25), np.log(5.657), 100001))
      ]
  )
  assert 0.02 < fits < 0.2
  assert_share(
      sum(bool(np.any(r == 0)) for r in results), 600, 1 - (1 - fits) ** 10
  )
