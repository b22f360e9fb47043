"""ResNet: geometry, places of AW-convolutions, numpy, and padding."""

import functools
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import naive_resnet
import numpy as np
import pytest
from random_values import KEY, close, images, of_model

from awconv_jax import models
from awconv_jax.weights import state_dict

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

# One or two blocks a stage of 4 channels and more: compiles in seconds.
TINY = dict(width=4, stem='cifar', num_classes=3)
# Four channels divided by the default 16 would leave one unit, often dead.
SE_OF_2 = dict(attention='se', attention_options=dict(reduction=2))
BASIC = dict(block='basic', stage_sizes=(1, 1)) | TINY
BOTTLENECK = dict(block='bottleneck', stage_sizes=(1, 1)) | TINY


def create(depth=18, **options):
  return models.create(f'resnet{depth}', **options)


def tiny(base, **options):
  return create(aw_stages=(1, 2), **(base | options))


def apply(model, variables, x, mutable=False, train=False, **arrays):
  call = functools.partial(model.apply, train=train, mutable=mutable)
  return jax.jit(call)(variables, x, **arrays)


@pytest.mark.parametrize(
    'depth, where, stages, expected',
    [
        (18, '3x3', (4,), '4_1/1 4_1/2 4_2/1 4_2/2'),
        (18, 'first_3x3', (1, 3), '1_1/1 1_2/1 3_1/1 3_2/1'),
        (18, '3x3', (), ''),
        (50, '3x3', (1, 4), '1_1/2 1_2/2 1_3/2 4_1/2 4_2/2 4_3/2'),
        (
            50,
            'all',
            (2,),
            ' '.join(f'2_{i}/{j}' for i in (1, 2, 3, 4) for j in (1, 2, 3)),
        ),
    ],
)
def test_only_the_named_convolutions_become_aw(depth, where, stages, expected):
  aw, plain = (
      traverse_util.flatten_dict(models.shapes_of(model)['params'], sep='/')
      for model in (
          create(depth, aw_where=where, aw_stages=stages, aw_conv=aw_conv)
          for aw_conv in (True, False)
      )
  )
  # Nothing else changes.
  assert plain.items() <= aw.items()
  assert {path.split('/attention/')[0] for path in aw.keys() - plain} == {
      re.sub(r'(\d)_(\d)/(\d)', r'stage\1_block\2/conv\3', place)
      for place in expected.split()
  }


@pytest.mark.parametrize(
    'base, width, stem, first, size',
    [
        (BASIC, 4, 'imagenet', 4, 33),
        (BASIC, 4, 'cifar', 1, 1),
        (BOTTLENECK, 16, 'imagenet', 4, 1),
        (BOTTLENECK, 16, 'cifar', 1, 33),
    ],
)
def test_features_of_all_sizes(base, width, stem, first, size):
  options = dict(stage_sizes=(1, 1, 1, 1), stem=stem, num_classes=None)
  model = create(**(base | options), aw_conv=True)
  x = jax.ShapeDtypeStruct((2, size, size + 2, 3), jnp.float32)
  init = functools.partial(model.init_with_output, train=False)
  features, variables = jax.eval_shape(init, KEY, x)
  assert 'head' not in variables['params']
  assert {name: feature.shape for name, feature in features.items()} == {
      f'c{i + 2}': (2, -(-size // s), -(-(size + 2) // s), width * 2**i)
      for i, s in enumerate((first, 2 * first, 4 * first, 8 * first))
  }


@pytest.mark.parametrize(
    'base, options',
    [
        (BASIC, dict(stem='imagenet')),
        (BASIC, dict(attention='se', norm_epsilon=0.1)),
        (BOTTLENECK, dict(version='v1.5')),
        (BOTTLENECK, dict(version='v1')),
    ],
)
def test_network_equals_numpy_with_symmetric_padding(base, options):
  # Even sizes, where 'SAME' would pad a stride of 2 on one side only.
  model = tiny(base, **options)
  imagenet = options.get('stem') == 'imagenet'
  x = images(2, *((20, 12) if imagenet else (6, 4)), 3)
  variables = of_model(model)
  expected = naive_resnet.Resnet(
      state_dict.to_state_dict(variables),
      imagenet,
      strided=1 if options.get('version') == 'v1' else 2,
      epsilon=model.norm_epsilon,
  )(x)
  out = apply(model, variables, x)
  assert out.shape == (2, 3) and out.dtype == jnp.float32
  close(out, expected['fc'], 1e-4)


@pytest.mark.parametrize(
    'base, last', [(BASIC, 'norm2'), (BOTTLENECK, 'norm3')]
)
@pytest.mark.parametrize('zero', [False, True])
def test_zero_init_residual_starts_blocks_as_the_identity(base, last, zero):
  model = create(**base | dict(stage_sizes=(1,), zero_init_residual=zero))
  init = jax.jit(functools.partial(model.init, train=True))
  block = init(KEY, images(2, 4, 4, 3))['params']['stage1_block1']
  np.testing.assert_array_equal(block[last]['scale'], 0 if zero else 1)
  np.testing.assert_array_equal(block['norm1']['scale'], 1)


def test_bfloat16_has_wide_parameters_statistics_and_logits():
  options = dict(aw_conv=True, attention='se')
  model = tiny(BOTTLENECK, dtype='bfloat16', **options)
  for leaf in jax.tree.leaves(models.shapes_of(model)):
    assert leaf.dtype == jnp.float32
  x = images(2, 6, 5, 3)
  variables = of_model(model)
  features = jax.eval_shape(
      functools.partial(model.clone(num_classes=None).apply, train=False),
      variables,
      x,
  )
  assert {leaf.dtype for leaf in features.values()} == {jnp.dtype('bfloat16')}
  out = apply(model, variables, x)
  assert out.dtype == jnp.float32
  close(out, apply(tiny(BOTTLENECK, **options), variables, x), 5e-2)


PLAIN = dict(stem='imagenet', version='v1')
AW = SE_OF_2 | dict(aw_conv=True)


@pytest.mark.parametrize(
    'base, options',
    [
        pytest.param(
            *(BOTTLENECK | dict(stage_sizes=(2, 1)), PLAIN),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            BOTTLENECK,
            AW | dict(stem='imagenet', aw_where='all'),
            marks=pytest.mark.slow,
        ),
        (BASIC, AW),
    ],
)
def test_a_padded_image_gives_what_the_image_alone_does(base, options):
  imagenet = options.get('stem') == 'imagenet'  # Its features, else the logits.
  model = tiny(base, **options | dict(num_classes=None if imagenet else 3))
  variables = of_model(model)  # Also the biases of the norms.
  sizes = [(20, 13), (17, 28)] if imagenet else [(5, 8), (9, 2)]
  parts = [images(1, *size, 3, seed=i) for i, size in enumerate(sizes)]
  # Zeros, and whatever else.
  padded = np.zeros((2, *((37, 29) if imagenet else (12, 9)), 3), np.float32)
  padded[1] = 50
  for n, (h, w) in enumerate(sizes):
    padded[n, :h, :w] = parts[n][0]
  # The attention maps are among the outputs.
  run = functools.partial(apply, model, variables, mutable=['intermediates'])
  own = run(padded, valid_size=sizes)

  def same(own, expected, n):
    own, expected = np.asarray(own[n]), np.asarray(expected[0])
    if imagenet and own.ndim == 3:
      own = own[: expected.shape[0], : expected.shape[1]]
    assert own.shape == expected.shape
    assert np.abs(own - expected).max() <= 1e-5 * np.abs(expected).max()

  for n, part in enumerate(parts):
    jax.tree.map(functools.partial(same, n=n), own, run(part))


def test_the_norms_options_reach_the_attention_branches():
  x = images(2, 6, 5, 3)

  def moved(**options):
    model = tiny(BASIC, aw_conv=True, **options)
    variables = of_model(model)
    _, moved = apply(model, variables, x, ['batch_stats'], train=True)
    parts = (v['batch_stats']['stage1_block1'] for v in (variables, moved))
    by = jax.tree.map(lambda a, b: np.float64(b) - np.float64(a), *parts)
    return by['norm1'], by['conv1']

  def share_is(part, base, share):
    same = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    jax.tree.map(lambda a, b: same(a, share * b), part, base)

  norm, conv = moved(norm_momentum=0.5)
  assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(conv))
  both = moved(norm_momentum=0.75)
  share_is(both[0], norm, 0.5)
  share_is(both[1], conv, 0.5)
  own = moved(norm_momentum=0.5, aw_options=dict(norm_momentum=0.75))
  share_is(own[0], norm, 1)
  share_is(own[1], conv, 0.5)
