"""Chains of augmentations: their order, their errors."""

import numpy as np
import pictures
import pytest

from awconv_jax.data import augment, decode
from awconv_jax.errors import InputError

AFFINE = {'rotation': 10.0, 'translation': 0.1, 'scale': (0.9, 1.1)}
CROP = {'area': (0.1, 1.0), 'ratio': (0.75, 1.33), 'interpolation': 'linear'}
JITTER = dict(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
ERASE = dict(probability=1.0, area=(0.1, 0.3), ratio=(0.5, 2.0), fill='noise')
RAND = dict(
    num_ops=2,
    magnitude=7,
    magnitude_std=0.5,
    probability=0.5,
    increasing=True,
)


@pytest.mark.parametrize(
    'steps, message',
    [
        ((('flop', {}),), r"'flop' \(did you mean 'flip'\?\)"),
        ((('flip', {'p': 1}),), "'flip' .* p: Extra .*; its options: none"),
        ((('pad_crop', {'pading': 4}),), 'padding: Field required; pading: E'),
        ((('pad_crop', {'padding': -1}),), 'padding: .* than or equal to 0'),
        ((('color_jitter', JITTER | {'hue': 0.6}),), 'hue: .* equal to 0.5'),
        ((('rand_augment', RAND | {'num_ops': 1.5}),), 'num_ops: .* integer'),
        ((('auto_augment', {'policy': 'c'}),), "policy: .*'cifar10'"),
        ((('random_erasing', ERASE | {'fill': 'x'}),), "fill: .*'noise' or"),
        (
            (('flip', {}), ('random_resized_crop', CROP)),
            "'random_resized_crop' must come first",
        ),
        ((('random_resized_crop', CROP | {'size': 5}),), 'size: Extra'),
        (
            (('random_resized_crop', CROP | {'area': (0.5, 0.1)}),),
            r'area: .*must be \(least, greatest\)',
        ),
        (
            (('random_resized_crop', CROP | {'area': (0.5, 1.1)}),),
            r'area.1: .* less than or equal to 1',
        ),
        ((('flip',),), r"augment holds \(\('flip',\),\); want a tuple of pa"),
        ({'flip': {}}, 'want a tuple of pairs'),
    ],
)
def test_augmentation_errors(steps, message):
  with pytest.raises(InputError, match=message) as caught:
    augment.Chain(steps, 32)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
    'name, options, shape',
    [
        ('random_affine', AFFINE | {'shear': 5.0}, (20, 30)),
        ('pad_crop', {'padding': 4}, (20, 30)),
        ('flip', {}, (20, 30)),
    ],
)
def test_augmentations_keep_the_contract(name, options, shape, channels):
  image = pictures.smooth(20, 30)[..., :channels]
  before = image.copy()
  run = augment.AUGMENTATIONS[name]
  results = [
      run(image, np.random.default_rng(s), **options) for s in (0, 0, *range(9))
  ]

  np.testing.assert_array_equal(image, before)
  np.testing.assert_array_equal(results[0], results[1])
  assert {r.shape for r in results} == {(*shape, channels)}
  assert {r.dtype for r in results} == {np.dtype(np.uint8)}
  distinct = len({r.tobytes() for r in results})
  assert {'flip': 2}.get(name, 7) <= distinct <= 9


def test_options_may_be_lists_and_whole_numbers():
  steps = (('random_erasing', ERASE | {'area': [1, 1]}), ('rand_augment', RAND))
  encoded = decode.EncodedImage(pictures.encode(pictures.smooth(9, 9)), 3)
  result = augment.Chain(steps, 8)(encoded, np.random.default_rng(1))
  assert result.shape == (8, 8, 3)


def test_a_chain_applies_its_steps_in_order_and_then_resizes():
  image = pictures.smooth(20, 20)
  steps = (('random_affine', AFFINE | {'shear': 5.0}), ('flip', {}))
  encoded = decode.EncodedImage(pictures.encode(image), 3)

  result = augment.Chain(steps, 8)(encoded, np.random.default_rng(1))

  rng = np.random.default_rng(1)
  expected = image
  for name, options in steps:
    expected = augment.AUGMENTATIONS[name](expected, rng, **options)
  expected = decode.resize(expected, 8, 'area')
  np.testing.assert_array_equal(result, expected)


def test_a_crop_comes_before_the_rest():
  encoded = decode.EncodedImage(pictures.encode(pictures.smooth(50, 40)), 3)
  chain = augment.Chain((('random_resized_crop', CROP), ('flip', {})), 16)

  result = chain(encoded, np.random.default_rng(2))

  rng = np.random.default_rng(2)
  cut = augment.CROPS['random_resized_crop'](encoded, rng, size=16, **CROP)
  expected = augment.AUGMENTATIONS['flip'](cut, rng)
  np.testing.assert_array_equal(result, expected)
