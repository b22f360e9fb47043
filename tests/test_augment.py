"""Augmentations: what they draw, how a chain applies them, what is refused."""

import collections
from unittest import mock

import numpy as np
import pictures
import pytest

from awconv_jax import config, data
from awconv_jax.data import augment, auto_augment, decode, operations
from awconv_jax.errors import InputError

AFFINE = dict(rotation=10.0, translation=0.1, scale=(0.9, 1.1), shear=5.0)
STILL = dict(rotation=0, translation=0, scale=(1, 1), shear=0)
CROP = dict(area=(0.1, 1.0), ratio=(0.75, 1.33), interpolation='linear')
JITTER = dict(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
ERASE = dict(probability=1.0, area=(0.1, 0.3), ratio=(0.5, 2.0), fill='noise')
RAND = dict(num_ops=2, magnitude=7, magnitude_std=0.5)
RAND |= dict(probability=1.0, increasing=True)
ALL = {
    'random_affine': AFFINE,
    'pad_crop': dict(padding=4),
    'flip': {},
    'color_jitter': JITTER,
    'rand_augment': RAND,
    'auto_augment': dict(policy='cifar10'),
    'random_erasing': ERASE,
}


def assert_share(number, draws, probability):
  """The number of hits lies within 4.5 standard deviations."""
  deviation = np.sqrt(draws * probability * (1 - probability))
  assert abs(number - draws * probability) < 4.5 * deviation


def test_options_are_checked_by_the_signatures():
  sizes = dict(image_size=8, eval_image_size=8)
  how = dict(train=True, batch_size=1, seed=0)
  for steps, message in (
      ([('flop', {})], r"0\]: unknown .* 'flop' \(did you mean 'flip'\?\)"),
      ([('flip', {}), ('flip', {'p': 1})], r'1\].p; known: none'),
      ([('random_resized_crop', CROP | {'size': 5})], r'0\].size; known: ar'),
      ([('flip',)], r"0\]=\('flip',\) has too few values"),
  ):
    with pytest.raises(InputError, match=rf'config.augment\[{message}'):
      config.complete(
          sizes | how | {'augment': steps}, data.reader_of('digits')
      )
  late = [('flip', {}), ('random_resized_crop', CROP)]
  with pytest.raises(InputError, match="'random_resized_crop' must come first"):
    data.create({'name': 'digits', 'augment': late} | sizes, **how)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', augment.AUGMENTATIONS)
def test_contract(name, channels):
  def run(image, seed):
    rng = np.random.default_rng(seed)
    return augment.AUGMENTATIONS[name](image, rng, **ALL[name])

  image = pictures.smooth(20, 30)[..., :channels]
  view = np.pad(image, ((4, 4), (4, 4), (0, 0)))[4:-4, 4:-4]
  view.flags.writeable = False
  results = [run(view, seed) for seed in range(30)]
  np.testing.assert_array_equal(view, image)
  for seed, result in enumerate(results):
    assert result.shape == image.shape and result.dtype == np.uint8
    # Mirrored as a view, it would be slow to make a batch of.
    assert result.strides[1] > 0
    np.testing.assert_array_equal(result, run(image, seed))
  distinct = len({result.tobytes() for result in results})
  assert distinct == 2 if name == 'flip' else distinct > 12
  for shape in ((1, 1, 3), (1, 9, 3), (2, 1, 1)):
    for seed in range(40):
      assert run(np.full(shape, 100, np.uint8), seed).shape == shape


@pytest.mark.parametrize('crop', [(), (('random_resized_crop', CROP),)])
def test_a_chain_is_its_steps_in_order(crop):
  encoded = decode.EncodedImage(pictures.encode(pictures.smooth(50, 40)), 3)
  steps = (('random_affine', AFFINE), ('pad_crop', {'padding': 9}))
  rng = np.random.default_rng(2)
  result = augment.augmented(encoded, rng, steps=crop + steps, size=16)
  rng = np.random.default_rng(2)
  expected = encoded.pixels()
  if crop:
    expected = augment.random_resized_crop(encoded, rng, size=16, **CROP)
  for name, options in steps:
    expected = augment.AUGMENTATIONS[name](expected, rng, **options)
  expected = decode.resize(expected, 16, 'area')
  np.testing.assert_array_equal(result, expected)


def moved(image, **options):
  """Returns the image moved by the upper ends of the ranges of `options`."""
  rng = mock.Mock()
  rng.uniform = lambda _, high, *size: np.full(size, high)[()]
  return augment.random_affine(image, rng, **(STILL | options))


def test_affine_is_exact_where_pixels_meet_pixels():
  image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
  shifted = np.zeros_like(image)
  shifted[5:, 5:] = image[:15, :15]
  np.testing.assert_array_equal(moved(image), image)
  np.testing.assert_array_equal(moved(image, rotation=90), np.rot90(image, -1))
  np.testing.assert_array_equal(moved(image, translation=0.25), shifted)


def test_affine_scale_and_shear_about_the_centre():
  image = np.zeros((41, 41, 1), np.uint8)
  image[15:26, 15:26] = 255
  larger, slanted = moved(image, scale=(1, 2)), moved(image, shear=45)[..., 0]
  assert larger[20, 10] == larger[10, 20] == 255 and larger[20, 7] == 0
  # x moves by y: the square's lower edge goes right, its upper edge left.
  assert slanted[25, 18:27].tolist()[::8] == [0, 255]
  assert slanted[15, 14:23].tolist()[::8] == [255, 0]


def test_pad_crop_reaches_all_offsets_and_flip_mirrors_one_time_in_two():
  image, rng = np.arange(16, dtype='u1').reshape(
      4, 4, 1
  ), np.random.default_rng(0)
  seen = {augment.pad_crop(image, rng, padding=1).tobytes() for _ in range(200)}
  assert len(seen) == 9
  results = [augment.flip(image, rng) for _ in range(400)]
  mirrored = sum(np.array_equal(r, image[:, ::-1]) for r in results)
  assert_share(mirrored, 400, 0.5)
  assert mirrored + sum(np.array_equal(r, image) for r in results) == 400


def draw(function, times, image=None, seed=0, **options):
  """Returns by call (name, value, how) of the operations, not carried out."""
  calls, rng = [], np.random.default_rng(seed)

  def record(image, name, value, **how):
    calls[-1].append((name, value, how))
    return image

  with mock.patch.object(operations, 'apply', record):
    for _ in range(times):
      calls.append([])
      function(image, rng, **options)
  return calls


def draw_rand(times, **options):
  return draw(auto_augment.rand_augment, times, **RAND | options)


def values_of(calls):
  values = collections.defaultdict(list)
  for name, value, _ in sum(calls, []):
    values[name].append(value)
  return values


def test_rand_augment_draws_with_replacement_and_skips_some():
  calls = draw_rand(3000, probability=0.6)
  applied = sum(calls, [])
  counts = collections.Counter(name for name, _, _ in applied)
  assert set(counts) == set(operations.OPERATIONS) and len(counts) == 15
  assert_share(len(applied), 6000, 0.6)
  for number in counts.values():
    assert_share(number, len(applied), 1 / 15)
  pairs = [call for call in calls if len(call) == 2]
  twice = sum(first[0] == second[0] for first, second in pairs)
  assert_share(twice, len(pairs), 1 / 15)
  how = dict(fill=(124, 116, 104), interpolation='linear')
  assert all(given == how for _, _, given in applied)


def test_rand_augment_keeps_magnitudes_in_their_range():
  drawn = values_of(draw_rand(1500, magnitude=9.0, magnitude_std=5.0))
  angles = np.abs(drawn['rotate']).tolist()
  # Phi(-1.8) = 0.036 are cut off below, Phi(-0.2) = 0.421 above.
  assert max(angles) == 30 and min(angles) == 0
  assert_share(angles.count(30), len(angles), 0.421)
  assert_share(angles.count(0), len(angles), 0.036)
  colors = np.array(drawn['color'])
  assert_share(np.sum(colors > 1), np.sum(colors != 1), 0.5)


ENHANCE = ('color', 'contrast', 'brightness', 'sharpness')
ALWAYS = {
    **dict.fromkeys(('auto_contrast', 'equalize', 'invert'), {None}),
    'rotate': {-9, 9},
    'solarize_add': {33},
    **dict.fromkeys(('shear_x', 'shear_y'), {-0.09, 0.09}),
    **dict.fromkeys(('translate_x', 'translate_y'), {-0.135, 0.135}),
}
INCREASING = dict.fromkeys(ENHANCE, {0.73, 1.27})
INCREASING |= dict(posterize={3}, solarize={180})
NOT_INCREASING = dict.fromkeys(ENHANCE, {0.64})
NOT_INCREASING |= dict(posterize={1}, solarize={76})


def rounded(calls, digits):
  return {
      name: {v if v is None else round(float(v), digits) for v in values}
      for name, values in values_of(calls).items()
  }


def test_rand_augment_values_at_magnitude_3():
  for increasing, others in ((True, INCREASING), (False, NOT_INCREASING)):
    how = dict(magnitude=3, magnitude_std=0.0, increasing=increasing)
    assert rounded(draw_rand(300, **how), 9) == ALWAYS | others


def test_rand_augment_applies_what_it_has_drawn_in_order():
  image = pictures.smooth(20, 20)
  options = RAND | dict(num_ops=4)
  (records,) = draw(auto_augment.rand_augment, 1, image, 5, **options)
  got = auto_augment.rand_augment(image, np.random.default_rng(5), **options)
  want = image
  for name, value, how in records:
    want = operations.apply(want, name, value, **how)
  assert len(records) == 4
  np.testing.assert_array_equal(got, want)


# 10 times the probabilities of each operation in the paper's table, added up.
TENTHS = dict(auto_contrast=50, brightness=23, color=29, contrast=8)
TENTHS |= dict(equalize=47, invert=2, posterize=3, rotate=7, sharpness=28)
TENTHS |= dict(shear_y=7, solarize=19, translate_x=8, translate_y=34)


AUTO_VALUES = {
    **dict.fromkeys(('auto_contrast', 'equalize', 'invert'), {None}),
    'rotate': {-6.6667, 6.6667},  # Magnitude 2 of 0 to 30 degrees.
    'shear_y': {-0.2667, -0.2333, 0.2333, 0.2667},  # 8 and 7 of 0 to 0.3.
    'translate_x': {-0.3125, -0.2778, 0.2778, 0.3125},  # 9, 8 of 10 / 32.
    'translate_y': {-0.3125, -0.1042, 0.1042, 0.3125},  # 9 and 3.
    'posterize': {5},  # 7 of 8 to 4 bits, rounded.
    'solarize': {199, 28, 114, 171},  # 2, 8, 5 and 3 of 256 to 0.
    'contrast': {1.3, 1.5},  # 6 and 7 of 0.1 to 1.9, as all below.
    'color': {0.7, 1.5, 1.7, 1.9, 0.1},  # 3, 7, 8, 9 and 0.
    'brightness': {1.5, 1.9, 1.3, 0.7},  # 7, 9, 6 and 3.
    'sharpness': {0.3, 0.7, 1.9, 1.1, 1.3},  # 1, 3, 9, 5 and 6.
}


def test_auto_augment_draws_pairs_and_values_as_in_the_paper():
  policy = auto_augment.POLICIES['cifar10']
  tenths = collections.Counter()
  for name, probability, _ in sum(policy, ()):
    tenths[name] += round(10 * probability)
  assert len(policy) == 25 and tenths == TENTHS
  # How probabilities are paired, in a number.
  assert abs(sum(first[1] * last[1] for first, last in policy) - 7.08) < 1e-9
  draws = 10000
  calls = draw(auto_augment.auto_augment, draws, policy='cifar10')
  names = collections.Counter(tuple(step[0] for step in c) for c in calls)
  pairs = sum(names[n] for n in names if len(n) == 2)
  assert_share(pairs, draws, 7.08 / 25)
  # Of one pair, in its order.
  assert_share(names['rotate', 'translate_x'], draws, 0.21 / 25)
  assert ('translate_x', 'rotate') not in names
  how = dict(fill=(125, 123, 114), interpolation='nearest')
  assert all(given == how for _, _, given in sum(calls, []))
  assert rounded(calls, 4) == AUTO_VALUES
  angles = values_of(calls)['rotate']
  assert_share(np.sum(np.array(angles) > 0), len(angles), 0.5)


def test_color_jitter_draws_factors_and_orders():
  image, options = pictures.smooth(9, 11), JITTER | dict(brightness=1.5)
  records, rng = [], np.random.default_rng(0)

  def recorder(name):
    return lambda image, value: records.append((name, value)) or image

  with mock.patch.multiple(operations, **{n: recorder(n) for n in JITTER}):
    for _ in range(3000):
      augment.color_jitter(image, rng, **options)
  got = augment.color_jitter(image, np.random.default_rng(0), **options)
  # It applies what it has drawn, in that order.
  want = image
  for name, value in records[:4]:
    want = getattr(operations, name)(want, value)
  np.testing.assert_array_equal(got, want)
  names = [name for name, _ in records]
  orders = collections.Counter(zip(*[iter(names)] * 4, strict=True))
  assert len(orders) == 24 and all(len(set(order)) == 4 for order in orders)
  for number in orders.values():
    assert_share(number, 3000, 1 / 24)
  ranges = dict(brightness=(0, 2.5), contrast=(0.7, 1.3))
  ranges |= dict(saturation=(0.8, 1.2), hue=(-0.1, 0.1))
  for name, (low, high) in ranges.items():
    values = np.array([value for key, value in records if key == name])
    assert low <= values.min() and values.max() <= high
    below = np.sum(values < low + 0.25 * (high - low))
    assert_share(below, 3000, 0.25)


def erase(shape, number, **options):
  rng = np.random.default_rng(0)
  image, how = np.full(shape, 9, np.uint8), ERASE | options
  return [augment.random_erasing(image, rng, **how) for _ in range(number)]


def boxes(results):
  """Returns top, left, height and width of what is 0."""
  found = []
  for result in results:
    rows, columns = np.nonzero((result == 0).all(-1))
    top, left = rows.min(), columns.min()
    size = rows.max() + 1 - top, columns.max() + 1 - left
    assert len(rows) == size[0] * size[1]
    found.append((top, left, *size))
  return np.array(found).T


def test_random_erasing_draws_area_and_ratio():
  options = dict(ratio=(0.5, 4.5), fill='zero')
  _, _, height, width = boxes(erase((200, 120, 3), 1500, **options))
  share, ratio = height * width / 24000, height / width
  assert 0.097 < share.min() < 0.105 and 0.295 < share.max() < 0.31
  assert_share(np.sum(share < 0.15), 1500, 0.25)
  assert_share(np.sum(share < 0.2), 1500, 0.5)
  assert 0.48 < ratio.min() < 0.53 and 4.3 < ratio.max() < 4.7
  assert_share(np.sum(ratio < 0.5 * 9**0.25), 1500, 0.25)
  assert_share(np.sum(ratio < 1.5), 1500, 0.5)


def test_random_erasing_draws_every_place():
  options = dict(area=(0.25, 0.25), ratio=(1.0, 1.0), fill='zero')
  top, left, height, width = boxes(erase((12, 12, 1), 2000, **options))
  assert set(height) == set(width) == {6}
  counts = np.bincount(7 * top + left, minlength=49).reshape(7, 7)
  for number in (*counts.sum(0), *counts.sum(1)):
    assert_share(number, 2000, 1 / 7)
  assert counts.min() > 0


def test_random_erasing_fills_with_noise():
  options = dict(area=(1.0, 1.0), ratio=(1.0, 1.0))
  noise = np.stack(erase((64, 64, 3), 4, **options))
  # All intensities alike, each number independent.
  for number in np.bincount(noise.ravel(), minlength=256):
    assert_share(number, noise.size, 1 / 256)
  one, other = noise[:, :-1].ravel(), noise[:, 1:].ravel()
  assert abs(np.corrcoef(one, other)[0, 1]) < 0.05


def test_random_erasing_is_drawn_and_gives_up_where_nothing_fits():
  # One try in twenty fits into 4 rows: ten do for 40 per cent of the images.
  options = dict(area=(0.2, 0.2), ratio=(0.25, 5.657), fill='zero')
  results = erase((4, 60, 1), 900, probability=0.7, **options)
  ratios = np.exp(np.linspace(np.log(0.25), np.log(5.657), 100001))
  fits = np.mean(np.round(np.sqrt(48 * ratios)) <= 4)
  assert 0.02 < fits < 0.2
  erased = sum(bool(np.any(r == 0)) for r in results)
  assert_share(erased, 900, 0.7 * (1 - (1 - fits) ** 10))
