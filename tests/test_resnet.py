"""ResNet: exact counts, geometry, places of AW-convolutions, and padding."""

import functools

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest

from awconv_jax import errors, models
from awconv_jax.models.resnet import DEPTHS

# Compiles several times faster than the default generator.
KEY = jax.random.key(0, impl='rbg')


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


def shapes_of(model, size=32, batch=1):
  """Returns the variables' shapes; computes nothing."""
  x = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  return jax.eval_shape(functools.partial(model.init, train=True), KEY, x)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def parameters(depth, **options):
  return count(shapes_of(create(depth, **options))['params'])


def images(n, h, w, seed=0):
  x = np.random.default_rng(seed).normal(size=(n, h, w, 3))
  return x.astype(np.float32)


def random_variables(model, seed=0):
  """Random values for all variables; wide for kernels, around 1 for scales."""
  rng = np.random.default_rng(seed)

  def value(path, leaf):
    values = rng.normal(size=leaf.shape)
    name = path[-1].key
    if name in ('scale', 'var'):
      values = 1 + 0.2 * np.tanh(values)
    elif name == 'kernel':
      values *= 1 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
    else:
      values *= 0.2
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(value, shapes_of(model))


def apply(model, variables, x, mutable=False, train=False, **arrays):
  call = functools.partial(model.apply, train=train, mutable=mutable)
  return jax.jit(call)(variables, x, **arrays)


def close(a, b, tolerance=1e-4):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def added_by_aw_conv(c, d, reduction=16, min_hidden=4, expansion=16):
  """Parameters of one attention branch, of a kernel without groups."""
  h = max(c // reduction, min_hidden)
  e = max(e for e in range(1, expansion + 1) if c % e == 0)
  maps = c // e * d
  pointwise = c * h + h * maps
  norms = 2 * h + 2 * maps  # scale and bias
  return pointwise + norms


def replaced_convolutions(depth, where):
  """(C, D) of every convolution that becomes an AW-convolution."""
  fields, result = DEPTHS[depth], []
  before = 64
  for stage, blocks in enumerate(fields['stage_sizes']):
    width = 64 * 2**stage
    for _ in range(blocks):
      if fields['block'] == 'basic':
        result.append((before, width))
        if where == '3x3':
          result.append((width, width))
        before = width
      else:
        if where == 'all':
          result.append((before, width))
        result.append((width, width))
        if where == 'all':
          result.append((width, 4 * width))
        before = 4 * width
  return result


@pytest.mark.parametrize(
    'depth, where, attention',
    [(depth, '3x3', a) for depth in DEPTHS for a in (None, 'se')]
    + [(18, 'first_3x3', None), (34, 'first_3x3', None), (50, 'all', None)],
)
def test_aw_parameters_are_the_plain_ones_and_the_branches(
    depth, where, attention
):
  plain = parameters(depth, attention=attention)
  own = parameters(depth, attention=attention, aw_conv=True, aw_where=where)
  added = [
      added_by_aw_conv(c, d) for c, d in replaced_convolutions(depth, where)
  ]
  assert own == plain + sum(added)


def test_aw_resnet50_adds_what_was_counted_by_hand():
  # 3x3 convolutions of 64, 128, 256 and 512 channels, 3, 4, 6 and 3 times:
  # 1,800, 11,280, 77,856 and 573,504 parameters a branch.
  added = 3 * 1_800 + 4 * 11_280 + 6 * 77_856 + 3 * 573_504
  own = parameters(50, aw_conv=True)
  assert own == 25_557_032 + added


def test_aw_options_reach_the_layers():
  options = dict(reduction=8, min_hidden=2, expansion=4)
  plain = parameters(18)
  own = count(shapes_of(create(aw_conv=True, aw_options=options))['params'])
  added = [
      added_by_aw_conv(c, d, *options.values())
      for c, d in replaced_convolutions(18, '3x3')
  ]
  assert own == plain + sum(added)


def attention_paths(**options):
  params = shapes_of(create(**options))['params']
  return {
      f'{block}/{slot}'
      for block, slots in params.items()
      for slot, variables in slots.items()
      if 'conv' in slot and 'attention' in variables
  }


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
            (4,),
            '4_1/1 4_1/2 4_1/3 4_2/1 4_2/2 4_2/3 4_3/1 4_3/2 4_3/3',
        ),
    ],
)
def test_only_the_named_convolutions_become_aw(depth, where, stages, expected):
  paths = attention_paths(
      depth=depth, aw_conv=True, aw_where=where, aw_stages=stages
  )
  named = {
      'stage{}_block{}/conv{}'.format(*own.replace('/', '_').split('_'))
      for own in expected.split()
  }
  assert paths == named
  assert not attention_paths(depth=depth, aw_where=where, aw_stages=stages)


def test_aw_changes_nothing_else_in_the_parameter_tree():
  plain = shapes_of(create(50, attention='se'))['params']
  own = shapes_of(create(50, attention='se', aw_conv=True))['params']
  for block in own.values():
    for slot, variables in block.items():
      if 'conv' in slot and 'attention' in variables:
        del variables['attention']
  assert own == plain


def feature_shapes(model, size):
  x = jax.ShapeDtypeStruct((2, size, size + 2, 3), jnp.float32)
  init = functools.partial(model.init_with_output, train=False)
  features, variables = jax.eval_shape(init, KEY, x)
  assert 'head' not in variables['params']
  assert list(features) == ['c2', 'c3', 'c4', 'c5']
  return [own.shape for own in features.values()]


def expected_shapes(size, first_stride, width):
  strides = [first_stride * 2**i for i in range(4)]
  return [
      (2, -(-size // s), -(-(size + 2) // s), width * s // first_stride)
      for s in strides
  ]


@pytest.mark.parametrize(
    'depth, stem, size',
    [(18, 'imagenet', 224), (50, 'imagenet', 224), (50, 'cifar', 32)],
)
def test_features_of_the_usual_sizes(depth, stem, size):
  shapes = feature_shapes(create(depth, num_classes=None, stem=stem), size)
  first = {'imagenet': 4, 'cifar': 1}[stem]
  width = {18: 64, 50: 256}[depth]
  assert shapes == expected_shapes(size, first, width)
  if depth == 50 and size == 224:
    assert shapes[-1] == (2, 7, 8, 2048)


@pytest.mark.parametrize('size', [33, 225, 1])
@pytest.mark.parametrize('base', [BASIC, BOTTLENECK])
@pytest.mark.parametrize('stem, first', [('imagenet', 4), ('cifar', 1)])
def test_features_of_odd_sizes(base, stem, first, size):
  options = dict(stage_sizes=(1, 1, 1, 1), stem=stem, num_classes=None)
  model = create(**(base | options), aw_conv=True)
  width = 4 if base is BASIC else 16
  assert feature_shapes(model, size) == expected_shapes(size, first, width)


def relu(x):
  return np.maximum(x, 0)


def naive_conv(x, params, stride=1):
  """Symmetric padding by hand: half the kernel on every side."""
  kernel = params['kernel']
  half = kernel.shape[0] // 2
  pads = ((half, half), (half, half))
  return naive.conv(x, kernel, (stride, stride), pads)


def naive_norm(x, variables, *path):
  params, stats = (
      functools.reduce(dict.__getitem__, path, variables[kind])
      for kind in ('params', 'batch_stats')
  )
  return naive.normalize(x, params, 'batch', stats)


def naive_max_pool(x):
  """3x3 of stride 2, one position of minus infinity on every side."""
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  out = np.zeros((len(x), -(-x.shape[1] // 2), -(-x.shape[2] // 2), x.shape[3]))
  for i in range(out.shape[1]):
    for j in range(out.shape[2]):
      window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
      out[:, i, j] = window.max((1, 2))
  return out


def naive_resnet(variables, x, strides, *, imagenet, se=False):
  """Logits of a plain network with one block a stage, by strides of convs."""
  params = variables['params']
  x = naive_conv(x, params['stem_conv'], 2 if imagenet else 1)
  x = relu(naive_norm(x, variables, 'stem_norm'))
  if imagenet:
    x = naive_max_pool(x)
  for stage, own in enumerate(strides, start=1):
    name = f'stage{stage}_block1'
    block, y = params[name], x
    for i, stride in enumerate(own, start=1):
      y = naive_conv(y, block[f'conv{i}'], stride)
      y = naive_norm(y, variables, name, f'norm{i}')
      y = relu(y) if i < len(own) else y
    if se:
      y = naive.squeeze_excite(y, block['attention'])
    if 'downsample_conv' in block:
      x = naive_conv(x, block['downsample_conv'], max(own))
      x = naive_norm(x, variables, name, 'downsample_norm')
    x = relu(x + y)
  return naive.dense(x.mean((1, 2)), params['head'])


@pytest.mark.parametrize(
    'base, options, strides',
    [
        (BASIC, dict(stem='imagenet'), [(1, 1), (2, 1)]),
        (BASIC, dict(attention='se'), [(1, 1), (2, 1)]),
        (BOTTLENECK, dict(version='v1.5'), [(1, 1, 1), (1, 2, 1)]),
        (BOTTLENECK, dict(version='v1'), [(1, 1, 1), (2, 1, 1)]),
    ],
)
def test_network_equals_numpy_with_symmetric_padding(base, options, strides):
  # Even sizes, where 'SAME' would pad a stride of 2 on one side only.
  model = tiny(base, **options)
  imagenet = options.get('stem') == 'imagenet'
  x = images(2, *((20, 12) if imagenet else (6, 4)))
  variables = random_variables(model)
  expected = naive_resnet(
      variables, x, strides, imagenet=imagenet, se='attention' in options
  )
  out = apply(model, variables, x)
  assert out.shape == (2, 3) and out.dtype == jnp.float32
  close(out, expected)


@pytest.mark.parametrize('base', [BASIC, BOTTLENECK])
def test_zero_init_residual_starts_blocks_as_the_identity(base):
  options = dict(stage_sizes=(2,), aw_stages=(1,), num_classes=None)
  for zero in (True, False):
    model = create(**(base | options), zero_init_residual=zero, aw_conv=True)
    variables = jax.jit(functools.partial(model.init, train=True))(
        KEY, images(1, 4, 4)
    )
    last = 'norm2' if base is BASIC else 'norm3'
    for block in ('stage1_block1', 'stage1_block2'):
      scale = variables['params'][block][last]['scale']
      np.testing.assert_array_equal(scale, 0 if zero else 1)
    if zero:
      # Then the second block's own convolutions cannot be seen.
      x = images(2, 4, 4)
      out = apply(model, variables, x)['c2']
      block = variables['params']['stage1_block2']
      for slot in [slot for slot in block if slot.startswith('conv')]:
        block[slot]['kernel'] = block[slot]['kernel'] * -3 + 1
      np.testing.assert_array_equal(apply(model, variables, x)['c2'], out)


def test_identity_start_network_is_the_plain_network():
  options = dict(gate='tanh', identity_start=True)
  plain = tiny(BOTTLENECK)
  model = tiny(BOTTLENECK, aw_conv=True, aw_options=options)
  x = images(2, 6, 5)
  loaded = random_variables(plain)
  own = jax.jit(functools.partial(model.init, train=True))(KEY, x)
  for block, slots in loaded['params'].items():
    for slot, values in slots.items():
      if isinstance(values, dict):
        own['params'][block][slot].update(values)
      else:
        own['params'][block][slot] = values
  for block, slots in loaded['batch_stats'].items():
    own['batch_stats'][block].update(slots)
  close(apply(model, own, x), apply(plain, loaded, x))


@pytest.mark.parametrize(
    'base, options',
    [(BASIC, SE_OF_2), (BOTTLENECK, dict(stage_sizes=(1,), stem='imagenet'))],
)
def test_every_parameter_gets_a_gradient(base, options):
  options = base | options | dict(zero_init_residual=False, aw_conv=True)
  stages = range(1, len(options['stage_sizes']) + 1)
  model = create(**options, aw_stages=tuple(stages))
  x = images(3, 20, 12)
  variables = random_variables(model)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def step(params):
    logits, moved = model.apply(
        variables | {'params': params}, x, train=True, mutable=['batch_stats']
    )
    return -jnp.mean(jax.nn.log_softmax(logits)[:, 1]), moved

  (loss, moved), gradients = step(variables['params'])
  assert np.isfinite(loss)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), path
  changed = jax.tree.map(
      lambda a, b: np.any(a != b),
      variables['batch_stats'],
      moved['batch_stats'],
  )
  assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize('dtype', ['bfloat16', jnp.bfloat16])
def test_bfloat16_has_wide_parameters_statistics_and_logits(dtype):
  options = dict(aw_conv=True, attention='se')
  model = tiny(BOTTLENECK, dtype=dtype, **options)
  for leaf in jax.tree.leaves(shapes_of(model)):
    assert leaf.dtype == jnp.float32
  features = tiny(BOTTLENECK, dtype=dtype, **(options | dict(num_classes=None)))
  x = images(2, 6, 5)
  variables = random_variables(model)
  own = jax.eval_shape(
      functools.partial(features.apply, train=False), variables, x
  )
  assert {leaf.dtype for leaf in own.values()} == {jnp.dtype('bfloat16')}
  if dtype == 'bfloat16':
    out = apply(model, variables, x)
    assert out.dtype == jnp.float32
    close(out, apply(tiny(BOTTLENECK, **options), variables, x), 5e-2)


def sown(model, variables, x, **arrays):
  """Returns the outputs and the attention maps of every AW-convolution."""
  return apply(model, variables, x, ['intermediates'], **arrays)


def pad(x, h, w, value=0.0):
  pads = ((0, 0), (0, h - x.shape[1]), (0, w - x.shape[2]), (0, 0))
  return np.pad(x, pads, constant_values=value)


PADDED = (
    (BASIC, {}),
    (BOTTLENECK, dict(version='v1')),
    (BASIC, SE_OF_2 | dict(aw_conv=True)),
    (BOTTLENECK, SE_OF_2 | dict(aw_conv=True, aw_where='all')),
)


@pytest.mark.parametrize(
    'base, options, stem, features',
    [
        *((*own, 'imagenet', True) for own in (*PADDED[:2], PADDED[3])),
        *((*own, 'cifar', True) for own in PADDED[2:]),
        *((*own, 'cifar', False) for own in PADDED[2:]),
    ],
)
def test_a_padded_image_gives_what_the_image_alone_does(
    base, options, stem, features
):
  options = options | dict(stage_sizes=(2, 1), stem=stem)
  if features:
    options['num_classes'] = None
  model = tiny(base, **options)
  variables = random_variables(model)  # Also the biases of the norms.
  imagenet = stem == 'imagenet'
  sizes = [(20, 13), (17, 28)] if imagenet else [(5, 8), (9, 2)]
  large = (37, 29) if imagenet else (12, 9)
  parts = [images(1, *size, seed=i) for i, size in enumerate(sizes)]
  # Zeros, and whatever else.
  padded = [pad(parts[0], *large), pad(parts[1], *large, 50.0)]
  own = sown(model, variables, np.concatenate(padded), valid_size=sizes)

  def same(own, expected, n):
    own, expected = np.asarray(own[n]), np.asarray(expected[0])
    if features and own.ndim == 3:
      own = own[: expected.shape[0], : expected.shape[1]]
    assert own.shape == expected.shape
    assert np.abs(own - expected).max() <= 1e-5 * np.abs(expected).max()

  for n, part in enumerate(parts):
    expected = sown(model, variables, part)
    # The attention maps are among them.
    jax.tree.map(functools.partial(same, n=n), own, expected)


def test_valid_size_of_another_shape_is_refused():
  model = tiny(BASIC)
  init = functools.partial(model.init, train=False, valid_size=np.ones((1, 2)))
  with pytest.raises(ValueError, match=r'\(1, 2\) .* \(3, 8, 9, 3\)'):
    jax.eval_shape(init, KEY, images(3, 8, 9))


def test_the_norms_options_reach_the_attention_branches():
  x = images(2, 6, 5)

  def create(**options):
    model = tiny(BASIC, aw_conv=True, **options)
    return model, random_variables(model)

  def moved(**options):
    model, variables = create(**options)
    _, moved = apply(model, variables, x, ['batch_stats'], train=True)
    changed = jax.tree.map(
        lambda a, b: bool(np.any(a != b)),
        variables['batch_stats'],
        moved['batch_stats'],
    )['stage1_block1']
    return [set(jax.tree.leaves(changed[slot])) for slot in ('norm1', 'conv1')]

  # A momentum of 1 leaves the statistics where they are.
  assert moved(norm_momentum=1.0) == [{False}, {False}]
  own = moved(norm_momentum=1.0, aw_options=dict(norm_momentum=0.5))
  assert own == [{False}, {True}]
  both, given, other = (
      apply(*create(norm_epsilon=2.0, aw_options=options), x)
      for options in ({}, dict(norm_epsilon=2.0), dict(norm_epsilon=1e-5))
  )
  np.testing.assert_array_equal(both, given)
  assert not np.allclose(both, other, rtol=1e-3)


AW_OPTIONS = dict(
    reduction=16,
    min_hidden=4,
    expansion=16,
    expansion_axis='in',
    gate='sigmoid',
    norm='batch',
    residual=True,
    pool_size=None,
    identity_start=False,
    implementation='auto',
)


def test_a_whole_config_switches_aw_convolutions_by_one_field():
  whole = dict(
      aw_where='first_3x3',
      aw_stages=[1, 2],
      aw_options=AW_OPTIONS,
      attention=None,
      attention_options={},
  )
  plain = shapes_of(create(**whole, aw_conv=False))
  assert plain == shapes_of(create())
  own = shapes_of(create(**whole, aw_conv=True))
  assert own == shapes_of(
      create(
          aw_conv=True,
          aw_where='first_3x3',
          aw_stages=(1, 2),
          aw_options=None,
          attention_options=None,
      )
  )
  assert own != plain


@pytest.mark.parametrize('attention', [None, 'se'])
def test_no_options_and_empty_ones_are_alike(attention):
  expected = shapes_of(create(attention=attention))
  for none in (None, {}):
    model = create(attention=attention, aw_options=none, attention_options=none)
    assert shapes_of(model) == expected


@pytest.mark.parametrize(
    'name, options, words',
    [
        ('resnet51', {}, ["model 'resnet51'", 'resnet50', 'resnet152']),
        ('resnet18', dict(depth=3), ["'depth'", 'width', 'stage_sizes']),
        ('resnet18', dict(attention='sse'), ["'sse'", 'None', 'se']),
        ('resnet18', dict(stem='small'), ["'small'", 'cifar', 'imagenet']),
        ('resnet18', dict(version='v2'), ["'v2'", 'v1', 'v1.5']),
        ('resnet18', dict(block='wide'), ["'wide'", 'basic', 'bottleneck']),
        ('resnet18', dict(aw_where='all'), ["'all'", '3x3', 'first_3x3']),
        ('resnet50', dict(aw_where='first_3x3'), ["'first_3x3'", '3x3', 'all']),
        ('resnet50', dict(aw_stages=(2, 5)), ['(2, 5)', '1 to 4']),
        ('resnet50', dict(aw_stages=(0,)), ['(0,)', '1 to 4']),
        ('resnet50', dict(width=0), ['width=0']),
        ('resnet50', dict(num_classes=0), ['num_classes=0']),
        (
            'resnet50',
            dict(aw_options=dict(reductions=3)),
            ["'reductions'", 'reduction', 'expansion', 'gate'],
        ),
        (
            'resnet50',
            dict(aw_options=dict(features=3)),
            ["'features'", 'reduction', 'expansion', 'gate'],
        ),
        (
            'resnet50',
            dict(attention='se', attention_options=dict(ratio=3)),
            ["'ratio'", 'reduction'],
        ),
        (
            'resnet50',
            dict(attention_options=dict(reduction=8)),
            ["model.attention_options={'reduction': 8}", 'model.attention'],
        ),
        (
            'resnet50',
            dict(attention='se', attention_options=3),
            ['model.attention_options=3'],
        ),
        ('resnet50', dict(aw_options=3), ['model.aw_options=3']),
        (
            'resnet50',
            dict(aw_options=dict(dtype='int8')),
            ["model.aw_options.dtype='int8'", 'floating'],
        ),
        ('resnet50', dict(dtype='int8'), ["model.dtype='int8'", 'floating']),
        ('resnet50', dict(dtype='float17'), ["model.dtype='float17'"]),
        ('resnet50', dict(dtype=None), ['model.dtype=None']),
        (
            'resnet50',
            dict(param_dtype=jnp.int32),
            ['model.param_dtype=', 'int32'],
        ),
        ('resnet50', dict(num_classes='10'), ["model.num_classes='10'"]),
        ('resnet50', dict(num_classes=1.5), ['model.num_classes=1.5']),
        ('resnet50', dict(aw_stages=3), ['model.aw_stages=3', '1 to 4']),
        ('resnet50', dict(aw_stages='12'), ["model.aw_stages='12'", '1 to 4']),
        ('resnet50', dict(width='x'), ["model.width='x'"]),
        ('resnet50', dict(stage_sizes=3), ['model.stage_sizes=3']),
        ('resnet50', dict(stage_sizes=(3, 0)), ['model.stage_sizes[1]=0']),
        ('resnet50', dict(norm_momentum='x'), ["model.norm_momentum='x'"]),
    ],
)
def test_wrong_options_are_one_line_with_the_known_ones(name, options, words):
  with pytest.raises(errors.InputError) as error:
    models.create(name, **options)
  message = str(error.value)
  assert '\n' not in message
  for word in words:
    assert word in message
