"""Every network with every attention: exact counts, and a training step."""

from collections.abc import Mapping
import functools
import itertools
import re
from typing import Annotated, Any

from flax import traverse_util
import jax
import numpy as np
import pytest
from random_values import images, of_model

from awconv_jax import config, errors, models
from awconv_jax.layers.attention import ATTENTION, AW_CONV, place_of
from awconv_jax.options import Named

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


# Published with the networks, or integer counts of other implementations.
DEPTHS = ('resnet18', 'resnet34', 'resnet50', 'resnet101')
IMAGENET = {
    None: (11_689_512, 21_797_672, 25_557_032, 44_549_160),
    'se': (11_778_592, 21_958_868, 28_088_024, 49_326_872),
    'cbam': (11_779_392, 21_960_468, 28_089_624, 49_330_172),
    'bam': (11_712_503, 21_820_663, 25_915_099, 44_907_227),
    'eca': (11_689_548, 21_797_746, 25_557_118, 44_549_331),
}
CIFAR = dict(stem='cifar', num_classes=100)
COUNTS = [
    *(
        pytest.param(
            *(name, dict(attention=attention), count),
            # The others have each block with each attention.
            marks=pytest.mark.slow
            if name == 'resnet101' or attention and name == 'resnet34'
            else (),
        )
        for attention, counts in IMAGENET.items()
        for name, count in zip(DEPTHS, counts, strict=True)
    ),
    ('resnet18', CIFAR, 11_220_132),
    ('resnet34', CIFAR, 21_328_292),
    ('resnet50', CIFAR, 23_705_252),
    ('resnet50', CIFAR | dict(attention='se'), 26_236_244),
    ('resnet50', CIFAR | dict(attention='cbam'), 26_237_844),
    ('resnet50', CIFAR | dict(attention='bam'), 24_063_319),
    ('wrn_28_10', dict(num_classes=100), 36_536_884),
    # 3x3 convolutions of 64, 128, 256 and 512 channels, 3, 4, 6 and 3 times.
    (
        'resnet50',
        dict(aw_conv=True),
        25_557_032 + 3 * 1_800 + 4 * 11_280 + 6 * 77_856 + 3 * 573_504,
    ),
    ('resnext50_32x4d', {}, 25_028_904),
    pytest.param('resnext101_32x8d', {}, 88_791_336, marks=pytest.mark.slow),
    ('wide_resnet50_2', {}, 68_883_240),
    pytest.param('wide_resnet101_2', {}, 126_886_696, marks=pytest.mark.slow),
    ('mobilenet_v2', {}, 3_504_872),
    ('mobilenet_v2', dict(attention='simam'), 3_504_872),
    # What the arrays of its authors' models add up to.
    *(
        ('resnet50', dict(attention='ge', size=224) | options, count)
        for options, count in (
            ({}, 25_557_032),
            (dict(attention_options=dict(form='theta')), 31_106_600),
            (dict(attention_options=dict(form='theta_plus')), 33_637_592),
        )
    ),
    # Of ODConv's authors, to two digits of a million. Of SKNet's prototxt, and
    # the norms that follow here.
    ('resnet18', dict(attention='odconv'), 44.90e6),
    (
        'resnext50_32x4d',
        dict(attention='sk'),
        27_479_784 + 2 * (3 * 128 + 4 * 256 + 6 * 512 + 3 * 1024),
    ),
    # By hand: E kernels, and a routing of C + 1 by E.
    (
        'resnet18',
        dict(attention='condconv'),
        11_689_512
        + 7 * 10_985_472
        + 8 * (5 * 65 + 4 * 129 + 4 * 257 + 3 * 513),
    ),
    # The same, and a branch of C by C / 4 by E.
    (
        'resnet18',
        dict(attention='dynamic'),
        11_689_512
        + 3 * 10_985_472
        + sum(n * c // 4 * (c + 4) for n, c in ((5, 64), (4, 128), (4, 256)))
        + 3 * 128 * 516,
    ),
    # To two digits of a million; the tables of relative positions are as large
    # as the images.
    ('resnet50', dict(attention='aa', size=224), 25.78e6),
    pytest.param(
        *('resnet101', dict(attention='aa', size=224), 45.36e6),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize('name, options, expected', COUNTS)
def test_parameters(name, options, expected):
  options = dict(options)
  size = options.pop('size', 32)
  shapes = models.shapes_of(models.create(name, **options), size)
  found = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
  if isinstance(expected, float):
    expected = pytest.approx(expected, rel=1e-3)
  assert found == expected


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
IN_PLACE = [k for k, v in ATTENTION.items() if place_of(v) == AW_CONV]


def has_no_gradient(path, family, attention, batch):
  """Returns whether a batch norm takes away what a parameter adds.

  That is a bias before it; of MobileNet's linear blocks it reaches one through
  a 1x1 convolution, unless a gate is in between.
  """
  taken = []
  if attention == 'bam':
    taken.append(r'channel_reduce/bias|spatial_conv[123]/bias')
    if batch == 1:  # Over one value, as of BAM's pooled channels, all is.
      taken.append(r'channel_reduce/kernel|channel_norm/scale')
  if attention == 'coord':
    taken.append('attention/reduce/bias')
  if attention in IN_PLACE and batch == 1:
    taken.append(r'norm/scale')
    if attention != 'dynamic':  # Which has no norm there.
      taken.append(r'squeeze/kernel')
  # BAM stands behind the first stage.
  gated = attention == 'bam' and path.startswith('stage1')
  linear = attention in (None, 'bam', *IN_PLACE)
  if family == 'depthwise' and linear and not gated:
    taken.append('norm3/bias')
  return any(re.search(f'/({pattern})$', path) for pattern in taken)


# With AW-convolutions: none, SE, augmented attention, and a depthwise network;
# the rest is slow, also what is made as these are.
STEPS = [
    pytest.param(
        *(family, attention, aw_conv, batch),
        marks=pytest.mark.slow
        if not aw_conv
        or batch > 1
        or family not in ('basic', 'depthwise')
        or attention in ('cbam', 'eca', 'bam', 'coord', 'simam', 'ge')
        or attention
        and family != 'basic'
        else (),
    )
    for family, attention, aw_conv, batch in itertools.product(
        TINY, (None, *ATTENTION), (False, True), (1, 4)
    )
    if (family, attention) not in WITHOUT
    and not (aw_conv and attention in IN_PLACE)
]


@pytest.mark.parametrize('family, attention, aw_conv, batch', STEPS)
def test_a_step_trains_every_parameter(family, attention, aw_conv, batch):
  name, options = TINY[family]
  if attention in ('se', 'cbam', 'bam'):
    options = options | dict(attention_options=dict(reduction=4))
  chosen = dict(attention=attention, aw_conv=aw_conv, num_classes=3)
  model = models.create(name, **chosen, **options)
  x, labels = images(batch, 16, 16, 3), np.arange(batch) % 3
  variables = of_model(model, 16)

  @jax.jit
  @jax.value_and_grad
  def step(params):
    own, options = variables | {'params': params}, dict(mutable=['batch_stats'])
    logits, _ = model.apply(own, x, train=True, **options)
    return -jax.nn.log_softmax(logits)[np.arange(batch), labels].mean()

  loss, gradients = step(variables['params'])
  assert np.isfinite(loss)
  for path, gradient in traverse_util.flatten_dict(gradients, sep='/').items():
    assert np.all(np.isfinite(gradient)), path
    learns = not has_no_gradient(path, family, attention, batch)
    assert (np.abs(gradient).max() > 1e-5) == learns, path


def root(model: Annotated[Mapping[str, Any], Named(models.MODELS, 'model')]):
  """A config that holds a network."""
  del model


@pytest.mark.parametrize('name', models.MODELS)
def test_a_complete_config_is_the_network_that_its_name_makes(name):
  given = dict(name=name, attention='se')
  section = config.complete(dict(model=given), root).model.to_dict()
  plain, whole = models.create(**given), models.create(**section)
  fields = set(type(plain).__dataclass_fields__) - {'parent', 'name'}
  assert set(section) == fields | {'name'}
  options = {'attention_options': dict(reduction=16), 'dtype': 'float32'}
  options |= {'param_dtype': 'float32', 'aw_options': whole.aw_options}
  for field in fields:
    want = options.get(field, getattr(plain, field))
    assert getattr(whole, field) == want, field
  assert whole.aw_options['gate'] == 'sigmoid'


@pytest.mark.parametrize(
    'name, options, words',
    [
        ('resnet51', {}, "model 'resnet51'.*'resnet50'.*resnet152"),
        (
            'resnet18',
            dict(widht=3),
            "'widht' .*'width'.*norm_momentum, num_classes, param_dtype, stage",
        ),
        ('resnet18', dict(attention='sse'), "'sse' .*'se'"),
        ('resnet18', dict(groups=2), "model.groups=2.*block='bottleneck'"),
        ('resnext50_32x4d', dict(width=8), 'width=8.*at least 16'),
        ('wrn_28_10', dict(aw_stages=(2, 4)), r'aw_stages=\(2, 4\).*1 to 3'),
        ('mobilenet_v2', dict(attention='aa'), 'dense 3x3 convolutions'),
        ('resnext50_32x4d', dict(attention='aa'), 'dense 3x3 convolutions'),
        (
            'wrn_16_4',
            dict(attention='odconv', aw_conv=True),
            "'odconv' stands where AW-convolutions would: .*aw_conv=False",
        ),
        ('resnet50', dict(stem='x'), "unknown stem 'x'; known: cifar, image"),
        ('resnet50', dict(aw_where='first_3x3'), "aw_where 'first_3x3'.*all"),
        # A field of the convolution itself, which its slot decides.
        ('wrn_16_4', dict(aw_options={'strides': 2}), "unknown opt.*'strides'"),
        (
            'resnet18',
            dict(attention='se', attention_options={'reductoin': 8}),
            "option of attention_options 'reductoin' .*'reduction'",
        ),
        (
            'resnet18',
            dict(attention_options={'reduction': 8}),
            'attention_options=.*8.*needs attention, which is None',
        ),
    ],
)
def test_what_fits_no_network_is_one_line(name, options, words):
  with pytest.raises(errors.InputError) as error:
    models.shapes_of(models.create(name, **options), 32)
  assert re.fullmatch(f'.*{words}.*', str(error.value))


@pytest.mark.parametrize(
    'name, stages',
    [('resnet18', '123'), ('wrn_16_4', '12'), ('mobilenet_v2', '1235')],
)
def test_bam_stands_before_every_stage_that_strides(name, stages):
  model = models.create(name, attention='bam', num_classes=None)
  params = models.shapes_of(model, 32)['params']
  found = [key for key in params if key.endswith('attention')]
  assert sorted(found) == [f'stage{stage}_attention' for stage in stages]


def test_dropout_drops_in_training_only():
  model = models.create('wrn_16_4', blocks=1, widen=1, dropout=0.5)
  x = np.ones((2, 8, 8, 3), np.float32)
  variables = of_model(model, 8)
  for train in (False, True):
    fields = dict(train=train, mutable=['batch_stats'])
    run = jax.jit(functools.partial(model.apply, **fields))
    outs = [
        run(variables, x, rngs=dict(dropout=jax.random.key(i)))[0]
        for i in range(2)
    ]
    assert np.array_equal(*outs) != train
