"""Weights in and out: torch's names and numbers, and files that lie."""

import functools
import os
import struct
from unittest import mock

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
from awconv_jax.weights import names, state_dict, torch_file

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


@pytest.mark.parametrize('block, reduction', [('basic', 0), ('bottleneck', 4)])
def test_every_block_computes_what_its_torch_weights_say(
    block, reduction, tmp_path
):
  state = draw(torch_shapes(block, reduction=reduction), np.float64)
  path = torch_zip.save(tmp_path / 'weights.pth', state)
  x = np.random.default_rng(1).normal(size=(2, 39, 34, 3))
  with jax.enable_x64(True):
    dtypes = dict(dtype='float64', param_dtype='float64')
    model = create(block, reduction=reduction, **dtypes)
    # Flax makes statistics in float32, whatever the dtype.
    wide = lambda a: a.update(dtype=np.float64)  # noqa: E731
    variables = weights.load(path, jax.tree.map(wide, models.shapes_of(model)))
    options = dict(train=False, capture_intermediates=True)
    apply = jax.jit(functools.partial(model.apply, **options))
    logits, seen = apply(variables, x)
  seen = seen['intermediates']
  expected = naive_resnet.Resnet(state)(x)
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
