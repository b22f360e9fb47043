"""Weights in and out: torch's names and numbers, and files that lie."""

import functools
import json
import os
import pathlib
import re
import struct
from unittest import mock
import zipfile

from flax import traverse_util
import jax
import jax.numpy as jnp
import naive_resnet
import numpy as np
import pytest
from random_values import of_model
import torch_zip
from watched_run import assert_same_bits

from awconv_jax import models, weights
from awconv_jax.errors import InputError
from awconv_jax.weights import names, origin, state_dict, torch_file

SIZES = (2, 1, 1, 1)

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def norm_shapes(name, channels):
  names = ('weight', 'bias', 'running_mean', 'running_var')
  shapes = {f'{name}.{leaf}': (channels,) for leaf in names}
  return shapes | {f'{name}.num_batches_tracked': ()}


def torch_shapes(block, sizes=SIZES, width=8, classes=7, reduction=0):
  """Names and shapes of a state dict as torchvision and timm have them."""
  shapes = {'conv1.weight': (width, 3, 7, 7), **norm_shapes('bn1', width)}
  before = width
  for stage, blocks in enumerate(sizes):
    inner = width * 2**stage
    out = inner * (1 if block == 'basic' else 4)
    for i in range(blocks):
      convs = [(before, inner, 3), (inner, inner, 3)]
      if block == 'bottleneck':
        convs = [(before, inner, 1), convs[1], (inner, out, 1)]
      name = f'layer{stage + 1}.{i}'
      for j, (c, d, k) in enumerate(convs, 1):
        shapes[f'{name}.conv{j}.weight'] = (d, c, k, k)
        shapes |= norm_shapes(f'{name}.bn{j}', d)
      if reduction:
        hidden = out // reduction
        for j, (c, d) in enumerate(((out, hidden), (hidden, out)), 1):
          shapes[f'{name}.se.fc{j}.weight'] = (d, c, 1, 1)
          shapes[f'{name}.se.fc{j}.bias'] = (d,)
      if before != out or (stage and not i):
        shapes[f'{name}.downsample.0.weight'] = (out, before, 1, 1)
        shapes |= norm_shapes(f'{name}.downsample.1', out)
      before = out
  return shapes | {'fc.weight': (classes, before), 'fc.bias': (classes,)}


def draw(shapes, dtype=np.float32, seed=0):
  """Random arrays; variances above 0, counters of batches 17."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for name, shape in shapes.items():
    values = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    if name.endswith('running_var'):
      values = 1 + 0.2 * np.tanh(values)
    arrays[name] = values.astype(dtype) if shape else np.array(17)
  return arrays


def create(block, sizes=SIZES, reduction=0, **options):
  options = dict(width=8, num_classes=7, stage_sizes=sizes) | options
  if reduction:
    options['attention'] = 'se'
    options['attention_options'] = dict(reduction=reduction)
  name = 'resnet18' if block == 'basic' else 'resnet50'
  return models.create(name, **options)


LEGACY = dict(stem='imagenet_ceil', version='v1')


def legacy(state):
  """Returns a state dict under the names of timm's legacy_seresnet50."""
  return {
      re.sub(r'^(conv|bn)1', r'layer0.\g<0>', name)
      .replace('.se.', '.se_module.')
      .replace('fc.', 'last_linear.'): array
      for name, array in state.items()
  }


@pytest.mark.parametrize(
    'block, reduction, options',
    [('basic', 0, {}), ('bottleneck', 4, {}), ('bottleneck', 4, LEGACY)],
)
def test_every_block_computes_what_its_torch_weights_say(
    block, reduction, options, tmp_path
):
  state = draw(torch_shapes(block, reduction=reduction), np.float64)
  saved = legacy(state) if options else state
  path = torch_zip.save(tmp_path / 'weights.pth', saved)
  x = np.random.default_rng(1).normal(size=(2, 39, 34, 3))
  with jax.enable_x64(True):
    dtypes = dict(dtype='float64', param_dtype='float64')
    model = create(block, reduction=reduction, **options, **dtypes)
    # Flax makes statistics in float32, whatever the dtype.
    wide = lambda a: a.update(dtype=np.float64)  # noqa: E731
    shapes = jax.tree.map(wide, models.shapes_of(model))
    variables = weights.load(path, shapes, network=model)
    seeing = dict(train=False, capture_intermediates=True)
    apply = jax.jit(functools.partial(model.apply, **seeing))
    logits, seen = apply(variables, x)
  seen = seen['intermediates']
  places = dict(strided=1, ceil=True) if options else {}
  expected = naive_resnet.Resnet(state, **places)(x)
  # Logits are float32, whatever the computation.
  np.testing.assert_allclose(logits, expected.pop('fc'), rtol=1e-5, atol=1e-5)
  ours = {'bn1': 'stem_norm'}
  for stage, count in enumerate(SIZES, 1):
    for i in range(count):
      ours[f'layer{stage}.{i}'] = f'stage{stage}_block{i + 1}'
  assert ours.keys() == expected.keys()
  for name, want in expected.items():
    (got,) = seen[ours[name]]['__call__']
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12, err_msg=name)


def test_names_and_shapes_are_the_published():
  published = 'bottleneck', (3, 4, 6, 3), 64, 1000, 16  # Of SE-ResNet-50.
  model = models.create('resnet50', attention='se')
  entries = names.table(models.shapes_of(model))
  found = {name: entry.shape for name, entry in entries.items()}
  found |= dict.fromkeys(names.counters(entries), ())
  assert found == torch_shapes(*published) and len(found) == 320 + 16 * 4


def mobile_names(style):
  """Names of the modules of MobileNetV2 in torchvision or timm, by ours."""
  table = {
      'torchvision': (
          'features.0.',
          '0 1',
          'features.18.',
          '0 1',
          'classifier.1',
      ),
      'timm': ('', 'conv_stem bn1', '', 'conv_head bn2', 'classifier'),
      'before': ('', 'conv1 bn1', '', 'last_conv last_norm', 'fc'),
  }[style]
  first, last = (table[i + 1].split() for i in (0, 2))
  found = {'stem_conv': table[0] + first[0], 'stem_norm': table[0] + first[1]}
  found |= {'last_conv': table[2] + last[0], 'last_norm': table[2] + last[1]}
  found['head'] = table[4]
  index = 0
  for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1), start=1):
    for block in range(blocks):
      index += 1
      at, slots = f'features.{index}.conv.', '0.0 0.1 1.0 1.1 2 3'
      if style == 'timm':
        at, slots = f'blocks.{stage - 1}.{block}.', 'conv_pw bn1 conv_dw bn2 '
        slots += 'conv_pwl bn3'
      elif style == 'before':
        at, slots = f'layer{stage}.{block}.', 'conv1 bn1 conv2 bn2 conv3 bn3'
      if index == 1:  # Widens nothing, and so has two convolutions.
        slots = {
            'torchvision': '- - 0.0 0.1 1 2',
            'timm': '- - conv_dw bn1 conv_pw bn2',
        }.get(style, slots)
      ours = 'conv1 norm1 conv2 norm2 conv3 norm3'.split()
      for slot, name in zip(ours, slots.split(), strict=True):
        found[f'stage{stage}_block{block + 1}/{slot}'] = at + name
  return found


@pytest.mark.parametrize('style', ['torchvision', 'timm', 'before'])
def test_a_mobile_net_loads_from_all_the_names_it_has_had(style, tmp_path):
  model = models.create('mobilenet_v2', width_factor=0.25, num_classes=7)
  variables, state = of_model(model), {}
  modules, ends = mobile_names(style), dict(kernel='weight', scale='weight')
  ends |= dict(mean='running_mean', var='running_var')
  for path, array in traverse_util.flatten_dict(variables).items():
    name = f'{modules["/".join(path[1:-1])]}.{ends.get(path[-1], path[-1])}'
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, (0,))
    state[name] = np.ascontiguousarray(array.transpose(axes))
    if path[-1] == 'mean':
      state[name.replace('running_mean', 'num_batches_tracked')] = np.array(1)
  assert len(state) == 314
  path = torch_zip.save(tmp_path / 'mobile.pth', state)
  assert_same_bits(weights.load(path, variables), variables)


def test_there_and_back_keeps_every_bit(tmp_path):
  state = draw(torch_shapes('bottleneck', reduction=4))
  state['fc.bias'][:2] = [-0.0, 1e-45]
  model = create('bottleneck', reduction=4)
  path = torch_zip.save(tmp_path / 'weights.pth', state)
  variables = weights.load(path, models.shapes_of(model))
  weights.save(tmp_path / 'ours.safetensors', variables)
  # Nothing here counts batches: as torch makes them in a new model.
  zeros = {k: np.zeros_like(v) for k, v in state.items() if not v.shape}
  assert_same_bits(weights.read(tmp_path / 'ours.safetensors'), state | zeros)
  again = weights.load(tmp_path / 'ours.safetensors', variables)
  assert_same_bits(again, variables)


def test_aw_networks_extend_the_names_and_come_back(tmp_path):
  variables = of_model(create('basic', aw_conv=True, aw_stages=(1,)))
  path = tmp_path / 'aw.safetensors'
  weights.save(path, variables)
  found = weights.read(path)
  expected = torch_shapes('basic')
  for conv in ('0.conv1', '0.conv2', '1.conv1', '1.conv2'):
    at = f'layer1.{conv}.attention'
    expected[f'{at}.pointwise1.weight'] = (4, 8)
    # 8 of 8 input channels share a value.
    expected[f'{at}.pointwise2.weight'] = (8, 4)
    expected |= norm_shapes(f'{at}.norm1', 4) | norm_shapes(f'{at}.norm2', 8)
  assert {name: array.shape for name, array in found.items()} == expected
  assert_same_bits(weights.load(path, variables), variables)


@pytest.mark.parametrize('lost', ['norm1.running_mean', 'pointwise2.weight'])
def test_a_branch_is_absent_as_a_whole_or_not_at_all(lost):
  variables = of_model(create('basic', aw_conv=True))
  state = state_dict.to_state_dict(variables)
  first, second = (f'layer1.0.conv{i}.attention' for i in (1, 2))
  without = {k: a for k, a in state.items() if not k.startswith(first)}
  load = functools.partial(
      state_dict.from_state_dict,
      variables=variables,
      allow_missing=weights.in_aw_branch,
  )
  jax.tree.map(np.testing.assert_array_equal, load(without), variables)
  del without[f'{second}.{lost}']
  with pytest.raises(InputError) as error:
    load(without)
  assert str(error.value).endswith(f': missing: {second}.{lost}')


@pytest.mark.parametrize(
    'path, expected',
    [
        ('params/stage1_block1/conv2/attention/norm1/scale', True),
        ('params/conv/self_attention/norm1/scale', False),
        ('params/Conv_0/attention/pointwise2/kernel', True),
        ('params/stage1_block1/conv2/refinement/reduce/kernel', True),
        ('params/stage1_block1/attention/reduce/kernel', False),
        ('params/stage1_block1/conv2/attention/qkv/kernel', False),
    ],
)
def test_the_branch_of_an_aw_convolution_is_told_apart(path, expected):
  assert bool(weights.in_aw_branch(path)) is expected


@pytest.mark.parametrize('shape', [(6,), (5, 6), (3, 5, 6)])
def test_layers_without_an_entry_follow_the_rule(shape):
  kernel = np.random.default_rng(0).normal(size=shape)
  tree = {'params': {'stage1_attention': {'mix': {'kernel': kernel}}}}
  arrays = state_dict.to_state_dict(tree)
  # [window, C, D] here, [D, C, window] there.
  want = {'stage1_attention.mix.weight': np.ascontiguousarray(kernel.T)}
  assert_same_bits(arrays, want)
  assert_same_bits(state_dict.from_state_dict(arrays, tree), tree)


@pytest.mark.parametrize(
    'kernels, expected',
    [
        (dict(conv=(3, 1, 1)), {'se.conv'}),
        (
            dict(reduce=(8, 2), expand=(2, 8), spatial=(7, 7, 2, 1)),
            {'attention.reduce', 'attention.expand', 'attention.spatial'},
        ),
    ],
)
def test_attention_that_timm_has_is_told_from_what_it_has_not(
    kernels, expected
):
  kernels = {k: {'kernel': np.zeros(shape)} for k, shape in kernels.items()}
  tree = {'params': {'stage2_block1': {'attention': kernels}}}
  assert {*names.table(tree)} == {f'layer2.0.{k}.weight' for k in expected}


def test_two_arrays_of_one_name_are_an_error():
  leaf = np.zeros(3)
  tree = {'params': {'norm1': {'scale': leaf}, 'bn1': {'scale': leaf}}}
  with pytest.raises(ValueError, match='bn1.weight'):
    names.table(tree)


def test_of_many_faults_the_first_are_listed():
  state = {f'extra{i}': np.zeros(1) for i in range(1000)}
  with pytest.raises(InputError, match='1000 unknown') as error:
    state_dict.from_state_dict(state, models.shapes_of(create('basic')))
  assert 'extra0, extra1, extra10' in str(error.value)
  assert ', and 990 more' in str(error.value) and len(str(error.value)) < 1000


def test_all_faults_are_listed():
  state = draw(torch_shapes('basic'))
  state['layer1.0.convolution.weight'] = state.pop('layer1.0.conv1.weight')
  state['extra.num_batches_tracked'] = np.array(1)
  del state['fc.bias'], state['layer2.0.bn1.running_var']
  state['conv1.weight'] = state['conv1.weight'][:, :1]
  state['bn1.weight'] = state['bn1.weight'].astype(np.int64)
  with pytest.raises(InputError) as error:
    state_dict.from_state_dict(state, models.shapes_of(create('basic')))
  assert str(error.value) == (
      'the state dict does not fit the network (2 unknown, 3 missing, 2 of '
      'another kind); choose the network and the options that it was made '
      'with: unknown: extra.num_batches_tracked, layer1.0.convolution.weight; '
      'missing: fc.bias, layer1.0.conv1.weight, layer2.0.bn1.running_var; of '
      'another kind: bn1.weight has int64[8], want float[8], conv1.weight has '
      'float32[8, 1, 7, 7], want float[8, 3, 7, 7]'
  )


def test_arrays_are_cast_to_the_dtypes_of_the_network():
  state = draw(torch_shapes('basic'), np.float64)
  shapes = models.shapes_of(create('basic', param_dtype='bfloat16'))
  loaded = state_dict.from_state_dict(state, shapes)
  own, want = (jax.tree.map(lambda a: a.dtype, t) for t in (loaded, shapes))
  assert own == want


@pytest.mark.parametrize('save', [torch_zip.save, torch_zip.save_legacy])
@pytest.mark.parametrize('dtype', torch_zip.KINDS)
def test_dtypes_and_strides_of_torch_files(dtype, save, tmp_path):
  values = np.arange(24).reshape(2, 3, 4)
  array = (values % 2 if dtype == 'bool' else values).astype(jnp.dtype(dtype))
  storage = torch_zip.Storage(array.reshape(-1))
  tree = {
      'whole': array,
      'transposed': array.transpose(2, 0, 1),
      'part': torch_zip.View(storage, 13, (2, 2), (4, 1)),
      'expanded': torch_zip.View(storage, 5, (3, 2), (0, 1)),
      'scalar': torch_zip.View(storage, 7, (), ()),
      'empty': array[:, :0],
  }
  found = weights.read(save(tmp_path / 'tensors.pt', tree))
  flat = array.reshape(-1)
  expected = tree | {
      'part': flat[[[13, 14], [17, 18]]],
      'expanded': flat[[[5, 6]] * 3],
      'scalar': flat[7].reshape(()),
  }
  assert_same_bits(found, expected)


@pytest.mark.parametrize(
    'wrap, expected',
    [
        (lambda s: s, []),
        (
            lambda s: {'epoch': 3, 'state_dict': s, 'best': None},
            ["took the weights under 'state_dict', without epoch, best"],
        ),
        (
            lambda s: {f'module._orig_mod.{k}': s[k] for k in s},
            [f"took '{k}.' off every name" for k in ('module', '_orig_mod')],
        ),
    ],
)
def test_wrappings_are_taken_off_and_said(wrap, expected, tmp_path):
  state = {'fc.weight': np.ones((2, 3)), 'fc.bias': np.zeros(2)}
  path = torch_zip.save(tmp_path / 'model.pth.tar', wrap(state))
  lines = []
  assert_same_bits(weights.read(path, report=lines.append), state)
  assert lines == expected


def refusal(path):
  """Returns the message of an error, which is one line with a remedy."""
  with pytest.raises(InputError, match='; fetch it again') as error:
    weights.read(path)
  message = str(error.value)
  assert '\n' not in message and message.startswith(f'{path} cannot be read: ')
  return message


def pickle_of(program, name, compression=zipfile.ZIP_STORED):
  """Writes a file of torch whose pickle is a program, and a megabyte of 0."""
  with zipfile.ZipFile(name, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', b'\x80\x02' + program + b'.')
    archive.writestr('archive/data/0', bytes(1 << 20))
  return name


# A tuple of two of the tuple before it, and so on: 2 ** 60 to be hashed.
NESTED = b'()' + b'q\x00h\x00h\x00\x86' * 60 + b't'
STORAGE = b'(Nctorch\nFloatStorage\n' + NESTED + b'NK\x01tQ'


@pytest.mark.parametrize(
    'program, words',
    [
        (b'}' + NESTED + b'K\x01s', 'a dict by other keys than names'),
        (b'}\x8a\x08' + b'\xff' * 7 + b'\x1fNs', 'other keys than names'),
        (STORAGE, 'a storage without a name'),
        (b'(K\x01\x91', 'sets or the like'),
        (b'}' * 2000, 'or has more than 1,000 bytes'),
    ],
)
def test_no_pickle_takes_long(program, words, tmp_path, monkeypatch):
  monkeypatch.setattr(torch_file, 'MAX_PICKLE', 1000)
  assert words in refusal(pickle_of(program, tmp_path / 'bad.pth'))


def test_no_file_takes_more_memory_than_its_size(tmp_path):
  path, packed = tmp_path / 'bad.pth', zipfile.ZIP_DEFLATED
  pickle_of(b'}', path, packed)
  assert 'unpacks to more than it is' in refusal(path)
  storage = torch_zip.Storage(np.ones(4, np.float32))
  view = torch_zip.View(storage, 0, (4,), (1,))
  torch_zip.save_legacy(path, {'a': view})
  raw = path.read_bytes()
  for count in (2**33, -1):
    path.write_bytes(raw[:-24] + struct.pack('<q', count) + raw[-16:])
    assert 'storages are more than it has' in refusal(path)
  failing = mock.Mock(side_effect=MemoryError)
  with mock.patch.dict(weights.READERS, {'.pth': failing}):
    with pytest.raises(InputError, match='more than the memory can hold'):
      weights.read(path)


ELSEWHERE = 'of a network that is not here, by '
CALLED = dict(architecture='resnet50')


@pytest.mark.parametrize(
    'name, beside, args, words',
    [
        ('resnetblur50-84f4748f.pth', {}, {}, ELSEWHERE),
        ('resnet50_lpf4-994b528f.pth', {}, {}, ELSEWHERE),
        ('blur_resnet50.pth', {}, {}, ELSEWHERE),
        ('resnet50d_ra2-464e36ba.pth', {}, {}, ELSEWHERE),
        ('resnet50_leaky.pth', {}, {}, ELSEWHERE),
        ('timm--seresnextaa101d/a/model.safetensors', {}, {}, ELSEWHERE),
        ('m.pth', dict(architecture='resnetaa50'), {}, ELSEWHERE),
        ('m.pth', CALLED | dict(global_pool='max'), {}, ELSEWHERE),
        *[
            ('m.pth', CALLED | dict(model_args=options), {}, ELSEWHERE)
            for options in (dict(act_layer='silu'), dict(output_stride=16))
        ],
        ('best.pth.tar', {}, dict(model='resnetblur18'), ELSEWHERE),
        *[
            ('best.pth.tar', {}, dict(model_kwargs=options), ELSEWHERE)
            for options in (dict(aa_layer='blurpool'), dict(avg_down=True))
        ],
        ('resnet50_caffe-788b5fa3.pth', {}, {}, "for version='v1'.*'v1.5'"),
        ('net.pth', dict(architecture='resnet50.a1_in1k'), CALLED, None),
        ('net.pth', CALLED | dict(model_args=dict(act_layer='relu')), {}, None),
        ('resnet50-11ad3fa6.pth', {}, dict(model_kwargs={}), None),
        ('gluon_resnet50_v1b-0ebe02e2.pth', {}, {}, None),
        ('resnet50_aa-aa1d2c3d.pth', {}, {}, None),
        ('models--timm--resnet50.d_in1k/a/model.safetensors', {}, {}, None),
        ('blur/aa/imagenet_leaky/resnet50.pth', {}, {}, None),
        ('leaky/antialias/caffe/model.pth', {}, {}, None),
    ],
)
def test_names_that_tell_of_another_network_refuse_its_weights(
    name, beside, args, words, tmp_path
):
  path, model = tmp_path / name, create('bottleneck', (1,))
  path.parent.mkdir(exist_ok=True, parents=True)
  (path.parent / 'config.json').write_text(json.dumps(beside))
  state = state_dict.to_state_dict(of_model(model))
  if path.suffix == '.safetensors':
    weights.save(path, of_model(model))
  else:
    # As timm writes its flags.
    call = torch_zip.Call(torch_zip.Global('argparse', 'Namespace'), ())
    call = torch_zip.SetItems(call, {'of': 'a class'})
    args = torch_zip.Build(call, args)
    torch_zip.save(path, {'state_dict': state, 'args': args})
  load = functools.partial(
      weights.load, path, models.shapes_of(model), network=model
  )
  if words is None:
    assert_same_bits(state_dict.to_state_dict(load()), state)
    return
  with pytest.raises(InputError, match=words):
    load()


def test_what_no_array_tells_of_is_written_and_compared(tmp_path):
  path = tmp_path / 'a.safetensors'
  options = dict(aw_conv=True, aw_stages=(1,))
  model = create('bottleneck', (1,), version='v1', norm_epsilon=0.1, **options)
  variables = of_model(model)
  weights.save(path, variables, model)
  load = functools.partial(weights.load, path, variables)
  assert_same_bits(load(network=model), variables)
  for field, value in (
      ('version', 'v1.5'),
      ('norm_epsilon', 1e-5),
      ('stem', 'imagenet_ceil'),
  ):
    with pytest.raises(InputError, match=f'is for {field}=.*{value!r}$'):
      load(network=model.clone(**{field: value}))
  old = legacy(draw(torch_shapes('bottleneck', (1,))))
  torch_zip.save(tmp_path / 'old.pth', old)
  with pytest.raises(InputError, match="is for stem='imagenet_ceil'"):
    weights.read(tmp_path / 'old.pth', network=create('bottleneck', (1,)))


def test_what_a_hint_holds_is_not_written_out():
  nested = ()
  for _ in range(60):
    nested = nested, nested
  said = [dict(model_args=dict(act_layer=nested))]
  with pytest.raises(InputError, match="by 'act_layer='"):
    origin.check(pathlib.Path('a.pth'), said, {}, {}, None)


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e39])
def test_values_that_are_no_numbers_are_named(value):
  state = draw(torch_shapes('basic'), np.float64)
  state['fc.bias'][2] = value  # The last is too large for float32.
  state['bn1.running_var'][:2] = -1
  words = r'bn1.running_var \(2 of 8\), fc.bias \(1 of 7\); take'
  with pytest.raises(InputError, match=words):
    state_dict.from_state_dict(state, models.shapes_of(create('basic')))


def test_averages_are_taken_where_they_are_asked_for(tmp_path):
  state, ema = {'fc.bias': np.zeros(2)}, {'fc.bias': np.ones(2)}
  tree = {'state_dict': state, 'epoch': 1, 'state_dict_ema': ema}
  path, lines = torch_zip.save(tmp_path / 'a.pth.tar', tree), []
  assert_same_bits(weights.read(path, report=lines.append), state)
  assert_same_bits(weights.read(path, entry='state_dict_ema'), ema)
  assert 'without epoch, state_dict_ema' in lines[0]
  with pytest.raises(InputError, match="no dict 'ema', but state_dict, epoch"):
    weights.read(path, entry='ema')
  hostile = {'module.' * 5000 + 'a\nerror: b': np.ones(2)}
  path = torch_zip.save(tmp_path / 'c.pth', {'model': hostile, 'x\ny': 1})
  (name,) = weights.read(path, report=lines.append)
  assert name.endswith(r'a\nerror: b') and not any('\n' in x for x in lines)
  # Of torch.optim.swa_utils.
  averaged = {'module.model.fc.bias': np.ones(2), 'n_averaged': np.array(3)}
  path = torch_zip.save(tmp_path / 'b.pth', {'model': averaged})
  assert_same_bits(weights.read(path), ema)


@pytest.mark.parametrize('save', [torch_zip.save, torch_zip.save_legacy])
def test_code_in_a_file_is_not_run(save, tmp_path):
  mark = tmp_path / 'ran'
  system = torch_zip.Global('os', 'system')
  call = torch_zip.Call(system, (f'touch {mark}',))
  path = save(tmp_path / 'bad.pth', {'a': np.ones(2), 'b': call})
  assert 'os.system, which is not run' in refusal(path)
  assert not mark.exists()


OWN = {'__defaults__': (1, 2), '__call__': 3}


@pytest.mark.parametrize('state', [OWN, (None, OWN)])
@pytest.mark.parametrize('name', torch_file.CALLS)
def test_a_file_can_set_nothing(name, state, tmp_path):
  build = torch_zip.Build(torch_zip.Global(*name.rsplit('.', 1)), state)
  path = torch_zip.save(tmp_path / 'bad.pth', {'a': np.ones(2), 'b': build})
  assert f'{name}, which is not run' in refusal(path)
  assert getattr(torch_file.CALLS[name], '__defaults__', None) != (1, 2)


@pytest.mark.parametrize('state', [{'items': 1}, (None, {'items': 1})])
def test_what_a_dict_keeps_beside_its_items_is_dropped(state, tmp_path):
  """As every state_dict() of torch does, with `_metadata`."""
  ordered = torch_zip.Call(torch_zip.ORDERED_DICT, ())
  items = {'a': np.ones(2)}
  build = torch_zip.Build(torch_zip.SetItems(ordered, items), state)
  path = torch_zip.save(tmp_path / 'a.pth', build)
  assert_same_bits(weights.read(path), items)


@pytest.mark.parametrize(
    'tree, words, big',
    [
        ({'net': {}, 'epoch': 3}, 'not tensors: net, epoch', []),
        ({}, 'not tensors: (it is empty)', []),
        (np.ones(3), 'it holds no dict', []),
        ({'a': np.ones(2)}, 'big-endian', [b'big']),
        ({'a': np.ones(2)}, 'big-endian', [False]),
    ],
)
def test_files_of_more_than_tensors_are_refused(tree, words, big, tmp_path):
  save = torch_zip.save_legacy if big == [False] else torch_zip.save
  assert words in refusal(save(tmp_path / 'other.pth', tree, *big))


@pytest.mark.parametrize(
    'offset, size, stride',
    [(2, (3,), (1,)), (-1, (1,), (1,)), (0, (2, 2), (3, 1)), (0, (2,), (-1,))],
)
def test_tensors_beyond_their_storage_are_refused(
    offset, size, stride, tmp_path
):
  storage = torch_zip.Storage(np.arange(4.0))
  view = torch_zip.View(storage, offset, size, stride)
  refusal(torch_zip.save(tmp_path / 'bad.pth', {'a': view}))


def test_other_formats_are_refused_with_the_remedy(tmp_path):
  (tmp_path / 'weights.npz').touch()
  for name, words in (
      ('absent.pth', 'absent.pth is neither a file nor a run'),
      ('', f'{tmp_path} is a directory; make a file of a run by awconv_jax.to'),
      ('weights.npz', "'.npz'; known: .bin, .pt"),
  ):
    with pytest.raises(InputError, match=words):
      weights.read(tmp_path / name)
  with pytest.raises(InputError, match="'.pth'; known: .safetensors"):
    weights.save(tmp_path / 'ours.pth', {'params': {}})
  for folder in ('absent', 'weights.npz'):
    with pytest.raises(InputError, match=f'cannot write .*{folder}'):
      weights.save(tmp_path / folder / 'a.safetensors', {'params': {}})
  header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
  narrow = tmp_path / 'narrow.safetensors'
  narrow.write_bytes(struct.pack('<Q', len(header)) + header + b'\0')
  assert 'float8' in refusal(narrow)


@pytest.mark.parametrize(
    'write, suffix',
    [
        (torch_zip.save, '.pth'),
        (torch_zip.save_legacy, '.pth'),
        (lambda path, tree: weights.save(path, {'a': tree}), '.safetensors'),
    ],
)
def test_damaged_files_are_refused(write, suffix, tmp_path):
  whole, cut = (tmp_path / f'{name}{suffix}' for name in ('whole', 'cut'))
  arrays = {'a': np.arange(50.0), 'b': np.ones((3, 4), np.float32)}
  write(whole, arrays)
  assert_same_bits(weights.read(whole), arrays)
  raw = whole.read_bytes()
  for size in sorted({*range(0, len(raw), 97), 1, 7, 9, len(raw) - 1}):
    cut.write_bytes(raw[:size])
    refusal(cut)
  if write is torch_zip.save:  # The others have no checksums.
    at = raw.index(arrays['a'].tobytes())
    cut.write_bytes(raw[: at + 8] + b'\x01' + raw[at + 9 :])
    refusal(cut)


def test_a_failed_save_leaves_the_file_before_it(tmp_path, monkeypatch):
  path = tmp_path / 'a.safetensors'
  path.write_bytes(b'before')

  fail = mock.Mock(side_effect=OSError(28, os.strerror(28)))
  monkeypatch.setattr('pathlib.Path.replace', fail)
  with pytest.raises(InputError, match='No space left'):
    weights.save(path, {'params': {'head': {'bias': np.ones(3)}}})
  assert [p.read_bytes() for p in tmp_path.iterdir()] == [b'before']


def test_torch_itself_reads_and_writes_these_files(tmp_path):
  torch = pytest.importorskip('torch')
  from safetensors import torch as safetensors_torch

  def arrays(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}

  state = draw(torch_shapes('basic'))
  path = torch_zip.save(tmp_path / 'ours.pth', state)
  assert_same_bits(arrays(torch.load(path, weights_only=True)), state)

  norm = torch.nn.BatchNorm2d(4).half()
  module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), norm)
  module[0].weight.data = module[0].weight.data.transpose(2, 3)
  theirs = tmp_path / 'theirs.pth'
  for new in (True, False):
    torch.save(module.state_dict(), theirs, _use_new_zipfile_serialization=new)
    assert_same_bits(weights.read(theirs), arrays(module.state_dict()))

  variables = weights.load(path, models.shapes_of(create('basic')))
  path = tmp_path / 'ours.safetensors'
  weights.save(path, variables)
  ours = arrays(safetensors_torch.load_file(path))
  assert_same_bits(ours, weights.read(path))
