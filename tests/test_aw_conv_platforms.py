"""Which form of the AW-convolution runs, read from what is lowered."""

from collections import Counter
import re
import sys
import types

import jax
from jax.experimental import pallas
import naive
import pytest
from random_values import close
from test_aw_conv_agreement import WIDE, check, floats, form, with_gradients
from test_aw_conv_fused import GPU, KERNELS, SINGLE

from awconv_jax.ops.aw_conv import aw_conv, choice, fused

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

CASES = {
    'many': dict(size=(21, 20)),
    'few': dict(size=(20, 20)),
    '1x1': dict(kernel_size=(1, 1)),
    'grouped': dict(groups=2, g=1),
    'depthwise': dict(groups=16, g=1),
}
CASES = {kind: WIDE | case for kind, case in CASES.items()}
# The TPU's kernels want more channels.
OWN = {
    'cpu': ('loop_conv', 'loop_dot', 'map', 'map', 'taps'),
    'cuda': ('fused', 'fused', 'im2col', 'vmap', 'taps'),
    'tpu': ('vmap', 'im2col', 'im2col', 'map', 'taps'),
    'rocm': ('vmap', 'im2col', 'im2col', 'vmap', 'taps'),
}
TRITON = '__gpu$xla.gpu.triton'
OPERATIONS = 'convolution|dot_general|while|concatenate|custom_call @[^(]+'


def lower(function, operands, platform):
  with jax.sharding.use_abstract_mesh(GPU):
    traced = jax.jit(function).trace(*operands)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def operations(text):
  return Counter(re.findall(rf'stablehlo\.({OPERATIONS})', text))


@pytest.mark.parametrize('platform', OWN)
def test_auto_is_the_form_for_the_platform_that_is_lowered_for(platform):
  for (kind, case), name in zip(CASES.items(), OWN[platform], strict=True):
    groups, operands = case['groups'], floats(case)
    auto, own = (
        lower(form(n, groups=groups), operands, platform)
        for n in ('auto', name)
    )
    assert operations(auto) == operations(own) != Counter(), kind
    assert (TRITON in auto) == (name == 'fused'), kind


def test_a_program_for_several_platforms_has_the_form_of_each():
  case = CASES['many']
  operands = floats(case)
  # JAX vouches for no kernels of Triton in what is kept.
  checks = [jax.export.DisabledSafetyCheck.custom_call(TRITON)]
  with jax.sharding.use_abstract_mesh(GPU):
    exported = jax.export.export(
        jax.jit(with_gradients(aw_conv)),
        platforms=('tpu', 'cuda', 'cpu'),
        disabled_checks=checks,
    )(*operands)
  parts = re.split(r'private @(_\w+ward)', exported.mlir_module())
  marks = {}
  for name, body in zip(parts[1::2], parts[2::2], strict=True):
    found = set(re.findall(r'stablehlo\.while|batch_group_count = 2', body))
    found |= set(re.findall(r'feature_group_count = 2', body))
    found |= set(re.findall(rf'{re.escape(TRITON)}.*name = "(\w+)"', body))
    marks.setdefault(name, []).append(found)
  # In the order of the platforms.
  loop, grouped = 'stablehlo.while', 'feature_group_count = 2'
  assert marks['_forward'] == [{grouped}, {'forward'}, {loop}]
  convolutions, *others = marks['_backward']
  assert others == [{*KERNELS[1:]}, {loop}]
  assert grouped in convolutions and loop not in convolutions
  out, *_ = exported.call(*operands)
  close(out, naive.aw_conv(*operands), 1e-4)


@pytest.mark.parametrize('implementation', ['auto', 'fused'])
@pytest.mark.parametrize(
    'case, dtype',
    [
        (dict(channels=24), 'float32'),
        (dict(strides=(2, 1), dilation=(2, 2)), 'float32'),
        (dict(), 'float64'),
    ],
)
def test_what_no_kernel_takes_has_another_form(implementation, case, dtype):
  options = {n: case[n] for n in ('strides', 'dilation') if n in case}
  with jax.enable_x64(dtype == 'float64'):
    operands = [a.astype(dtype) for a in floats(WIDE | case)]
    both = with_gradients(form(implementation, **options))
    for platform in ('cuda', 'tpu'):
      text = lower(both, operands, platform)
      assert 'custom_call' not in text and 'stablehlo.dot_general' in text


def test_a_gpu_of_little_shared_memory_has_no_kernels(monkeypatch):
  for room in (99, 227):
    card = types.SimpleNamespace(shared_memory_per_block_optin=room * 2**10)
    monkeypatch.setattr(jax, 'local_devices', lambda card=card, **_: [card])
    kernels = choice.Kernels('cuda')
    options = choice.Options((1, 1), ((1, 1),) * 2, (1, 1), 1, True, None, None)
    assert kernels.take(*floats(WIDE), options) == (room > 99)


def test_without_pallas_for_triton_other_forms_run(monkeypatch):
  # JAX is going to remove it.
  monkeypatch.delattr(pallas, 'triton')
  monkeypatch.setitem(sys.modules, 'jax.experimental.pallas.triton', None)
  for name in ('kernels', 'tiles'):
    monkeypatch.delitem(
        sys.modules, f'awconv_jax.ops.aw_conv.gpu.{name}', False
    )
  monkeypatch.setattr(fused, '_module_of', fused._module_of.__wrapped__)
  options = choice.Options((1, 1), ((1, 1),) * 2, (1, 1), 1, True, None, None)
  with pytest.warns(UserWarning, match="no kernels for 'cuda' with JAX"):
    assert not choice.Kernels('cuda').take(*floats(WIDE), options)


@pytest.mark.parametrize('kind', ['1x1', 'grouped'])
def test_of_derived_forms_auto_is_one(kind):
  case = CASES[kind]
  check(['auto'], case, SINGLE)
  auto, operands = form('auto', groups=case['groups']), tuple(floats(case))
  # Forward, too.
  jax.eval_shape(lambda *o: jax.jvp(auto, o, o), *operands)
