"""Every network with every attention: exact counts, and a training step."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awconv_jax import errors, models
from awconv_jax.models.attention import ATTENTION

KEY = jax.random.key(0, impl='rbg')

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def shapes_of(model, size=32, batch=1):
  """Returns the variables' shapes; computes nothing."""
  x = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  return jax.eval_shape(functools.partial(model.init, train=False), KEY, x)


@functools.cache
def parameters(name, size=32, **options):
  shapes = shapes_of(models.create(name, **options), size)
  return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


# Published with the networks, or integer counts of other implementations.
IMAGENET = {
    None: (11_689_512, 21_797_672, 25_557_032, 44_549_160),
    'se': (11_778_592, 21_958_868, 28_088_024, 49_326_872),
    'cbam': (11_779_392, 21_960_468, 28_089_624, 49_330_172),
    'bam': (11_712_503, 21_820_663, 25_915_099, 44_907_227),
    'eca': (11_689_548, 21_797_746, 25_557_118, 44_549_331),
}
CIFAR = {
    ('resnet18', None): 11_220_132,
    ('resnet34', None): 21_328_292,
    ('resnet50', None): 23_705_252,
    ('resnet50', 'se'): 26_236_244,
    ('resnet50', 'cbam'): 26_237_844,
    ('resnet50', 'bam'): 24_063_319,
}


@pytest.mark.parametrize('attention', IMAGENET)
@pytest.mark.parametrize('place, depth', enumerate([18, 34, 50, 101]))
def test_parameters_for_imagenet(attention, place, depth):
  expected = IMAGENET[attention][place]
  assert parameters(f'resnet{depth}', attention=attention) == expected


@pytest.mark.parametrize('name, attention', CIFAR)
def test_parameters_for_cifar(name, attention):
  own = parameters(name, attention=attention, stem='cifar', num_classes=100)
  assert own == CIFAR[name, attention]


@pytest.mark.parametrize(
    'name, options, expected',
    [
        ('wrn_28_10', dict(num_classes=100), 36_536_884),
        ('resnext50_32x4d', {}, 25_028_904),
        ('resnext101_32x8d', {}, 88_791_336),
        ('mobilenet_v2', {}, 3_504_872),
    ],
)
def test_parameters_of_other_networks(name, options, expected):
  assert parameters(name, **options) == expected


@pytest.mark.parametrize(
    'name, million', [('resnet50', 25.78), ('resnet101', 45.36)]
)
def test_parameters_with_augmented_convolutions(name, million):
  # The tables of relative positions are as large as the images.
  own = parameters(name, size=224, attention='aa')
  assert own == pytest.approx(1e6 * million, rel=1e-3)


TWO = dict(stage_sizes=(1, 1), width=16, stem='cifar', zero_init_residual=False)
# One of each family, as small as it can be.
TINY = {
    'basic': ('resnet18', TWO | dict(width=32)),
    'bottleneck': ('resnet50', TWO),
    'grouped': ('resnext50_32x4d', TWO | dict(groups=2, group_width=32)),
    'wide': ('wrn_16_4', dict(blocks=1, widen=1, width=32)),
    'depthwise': (
        'mobilenet_v2',
        dict(stages=((1, 16, 1, 1), (2, 16, 2, 2)), stem='cifar', dropout=0.0),
    ),
}
# Augmentation makes a part of the outputs of a dense convolution by attention.
WITHOUT = {('grouped', 'aa'), ('depthwise', 'aa')}


def create(family, attention, aw_conv):
  name, options = TINY[family]
  attention_options = None
  if attention in ('se', 'cbam', 'bam'):
    attention_options = dict(reduction=4)
  return models.create(
      name,
      num_classes=3,
      attention=attention,
      attention_options=attention_options,
      aw_conv=aw_conv,
      **options,
  )


def train_once(model, batch):
  """Returns the loss, and the gradients by path."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, 16, 16, 3)).astype(np.float32)
  labels = np.arange(batch) % 3
  shapes = shapes_of(model, 16)

  def value(path, leaf):
    values = rng.normal(size=leaf.shape)
    name = path[-1].key
    if name in ('scale', 'var'):
      values = 1 + 0.2 * np.tanh(values)
    elif name in ('bias', 'mean'):
      values *= 0.2
    else:
      values /= np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
    return values.astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(value, shapes)

  @jax.jit
  @jax.value_and_grad
  def step(params):
    logits, _ = model.apply(
        variables | {'params': params}, x, train=True, mutable=['batch_stats']
    )
    losses = -jax.nn.log_softmax(logits)[np.arange(batch), labels]
    return losses.mean()

  loss, gradients = step(variables['params'])
  flat, _ = jax.tree_util.tree_flatten_with_path(gradients)
  return loss, {
      jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
      for path, leaf in flat
  }


# A batch norm takes away the biases before it; of MobileNet's linear blocks
# they reach one through a 1x1 convolution, unless a gate is in between.
TAKEN_AWAY = {
    'bam': r'channel_reduce/bias|spatial_conv[123]/bias',
    'depthwise': r'norm3/bias',
}
# Over one value, as of BAM's pooled channels at batch 1, it takes away all.
TAKEN_AWAY_OF_ONE = r'channel_reduce/kernel|channel_norm/scale'


def has_no_gradient(path, family, attention, batch):
  """Returns whether a parameter cannot learn, by a norm's doing."""
  taken = []
  if attention == 'bam':
    taken.append(TAKEN_AWAY['bam'])
    if batch == 1:
      taken.append(TAKEN_AWAY_OF_ONE)
  if family == 'depthwise' and attention in (None, 'bam'):
    # BAM stands behind the first stage.
    first = 'stage1' if attention == 'bam' else '(none)'
    if not path.startswith(first):
      taken.append(TAKEN_AWAY['depthwise'])
  return any(re.search(f'/({pattern})$', path) for pattern in taken)


def check_step(family, attention, aw_conv, batch):
  loss, gradients = train_once(create(family, attention, aw_conv), batch)
  assert np.isfinite(loss)
  for path, gradient in gradients.items():
    assert np.all(np.isfinite(gradient)), path
    if has_no_gradient(path, family, attention, batch):
      assert np.abs(gradient).max() < 1e-5, path
    else:
      assert np.abs(gradient).max() > 1e-5, path


COMBINATIONS = [
    (family, attention, aw_conv)
    for family, attention, aw_conv in itertools.product(
        TINY, (None, *ATTENTION), (False, True)
    )
    if (family, attention) not in WITHOUT
]
# Each family, and each attention, with AW-convolutions.
FEW = [c for c in COMBINATIONS if c[2] and (c[1] is None or c[0] == 'basic')]


@pytest.mark.parametrize('family, attention, aw_conv', FEW)
def test_a_step_trains_every_parameter(family, attention, aw_conv):
  check_step(family, attention, aw_conv, batch=1)


@pytest.mark.parametrize(
    'family, attention', [('wide', 'eca'), ('depthwise', 'cbam')]
)
def test_a_step_at_batch_4_without_aw(family, attention):
  check_step(family, attention, aw_conv=False, batch=4)


@pytest.mark.slow
@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('family, attention, aw_conv', COMBINATIONS)
def test_a_step_trains_every_parameter_of_all(
    family, attention, aw_conv, batch
):
  check_step(family, attention, aw_conv, batch)


@pytest.mark.parametrize('family, attention', sorted(WITHOUT))
def test_what_cannot_be_augmented_is_refused(family, attention):
  with pytest.raises(errors.InputError, match='dense 3x3 convolutions'):
    create(family, attention, False)


@pytest.mark.parametrize(
    'name, options, words',
    [
        ('wrn_28_10', dict(dropout=1.0), ['model.dropout=1.0', '[0, 1)']),
        ('wrn_28_10', dict(widen=0), ['model.widen=0']),
        ('wrn_28_10', dict(aw_stages=(4,)), ['1 to 3']),
        ('mobilenet_v2', dict(stem='small'), ["'small'", 'cifar']),
        ('mobilenet_v2', dict(width_factor=0), ['width_factor=0', 'above 0']),
        ('mobilenet_v2', dict(stages=((1, 2, 0, 1),)), ['stages[0][2]=0']),
        ('resnet18', dict(groups=2), ['model.groups=2', "'bottleneck'"]),
        ('resnext50_32x4d', dict(groups=0), ['model.groups=0']),
        ('resnext50_32x4d', dict(width=8), ['model.width=8', 'at least 16']),
        ('resnet18', dict(stage_sizes=()), ['stage_sizes=()', 'empty']),
        ('mobilenet_v2', dict(stages=()), ['model.stages', 'empty']),
        ('mobilenet_v2', dict(stages=((6, 16, 1),)), ['(6, 16, 1)', 'four']),
        (
            'resnet18',
            dict(aw_options=dict(kernel_dilation=2)),
            ["'kernel_dilation'"],
        ),
    ],
)
def test_wrong_options_are_one_line(name, options, words):
  with pytest.raises(errors.InputError) as error:
    models.create(name, **options)
  message = str(error.value)
  assert '\n' not in message
  for word in words:
    assert word in message


def test_refinement_by_name_reaches_the_aw_convolutions():
  options = dict(aw_conv=True, aw_options=dict(refinement='se'))
  shapes = shapes_of(models.create('resnet50', **options))['params']
  conv = shapes['stage4_block1']['conv2']
  assert conv['refinement']['reduce']['kernel'].shape == (512, 32)
  with pytest.raises(errors.InputError, match="refinement.*'bam'.*eca"):
    models.create('resnet50', aw_options=dict(refinement='bam'))


def test_dropout_drops_in_training_only():
  model = models.create('wrn_16_4', blocks=1, widen=1, dropout=0.5)
  x = np.ones((2, 8, 8, 3), np.float32)
  variables = jax.jit(functools.partial(model.init, train=False))(KEY, x)

  @functools.partial(jax.jit, static_argnames='train')
  def run(key, train):
    out = model.apply(
        variables,
        x,
        train=train,
        mutable=['batch_stats'],
        rngs=dict(dropout=key),
    )
    return out[0]

  keys = [jax.random.key(i) for i in range(2)]
  assert np.array_equal(run(keys[0], False), run(keys[1], False))
  assert not np.array_equal(run(keys[0], True), run(keys[1], True))
