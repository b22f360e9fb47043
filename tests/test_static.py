"""What compilers of TPU and CUDA say is read as they mean it."""

import json

import pytest

from awconv_jax import errors
from awconv_jax.compilers import alone, cuda, exchanges, tpu
from benchmarks import __main__ as command
from benchmarks import check, deviceless, first_hour, static

# A grid of 8 steps: a loop of 10, whose kernel is left out in two. In it a
# loop of 4, and a region under a condition. Addresses are hexadecimal.
_BUNDLES = """
     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 /* iteration index, stage = 1 */
 } /* Start region 963 */
   0x2   : > { %334 = sbr.rel (%p1) target = $region36 }
   0x3   : > { %489 = sbr.rel (%p5) target = $region60 }
   0x4   : > { %9 = vst [vmem:[#allocation43_spill] sm:$0xff] /* a */ }
   0x5   : > { %10 = vst [vmem:[#allocation3] sm:$0xff] } /* End region 59 */
   0x6 PF: > { %s4 = smov 0 } /* Start/End empty region 60 */
   0x7 LB: >> { %11 = vmatmul.bf16.gmra.mxu0 %v1 } /* Start region 5 */
   0x8   : >> { %12 = vst [vmem:[#allocation44_spill] sm:$0xff] %v2 }
   0x9   : >> { %p3 = scmp.ge.s32.totalorder %s3, 4 /* loop exit test */ }
   0xa   : > { %24 = sbr.rel (!%p3) target = $region5 }
   0xb PF: > { %s8 = smov 0 } /* Start/End empty region 36 */
   0xc   : > { %p4 = scmp.ge.s32.totalorder %s2, 10 /* loop exit test */ }
   0xd   :  { %25 = sbr.rel (!%p4) target = $region963 }
"""


def test_bundles_count_as_often_as_their_loops_run():
  # Two outside; four of each turn of the grid; of each step three, and four
  # turns of three; two under the condition, once.
  found = tpu.count(_BUNDLES, product_cycles=1)
  assert found == tpu.Kernel(2 + 10 * 4 + 8 * (3 + 4 * 3) + 2, 2, spills=1)
  # The matrix unit may be what takes longest in the loop.
  longer = tpu.count(_BUNDLES, product_cycles=16).cycles
  assert longer == found.cycles + 8 * 4 * (16 - 3)


_PROGRAM = """HloModule jit_f

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = f32[8]{0} fusion(%a), backend_config={"estimated_cycles":"10"}
  ROOT %double.2 = f32[8] custom-call(%a), target="tpu_custom_call"
}

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
}

%until_done (p: f32[8]) -> pred[] {
  ROOT %done = pred[] reduce(%p, %true), to_apply=%and
}

%branch.1 (p: f32[8]) -> f32[8] {
  %fusion.2 = f32[8]{0} fusion(%a), backend_config={"estimated_cycles":"100"}
}

ENTRY %main.4 (x: f32[8]) -> f32[8] {
  %fusion.3 = f32[8]{0} fusion(%a), backend_config={"estimated_cycles":"1000"}
  %while.1 = (s32[], f32[8]) while(%t), condition=%condition.1, body=%body.1
  %while.2 = f32[8] while(%t), body=%body.1, {"known_trip_count":{"n":"3"}}
  %while.3 = f32[8] while(%t), condition=%until_done, body=%body.1
  %call.1 = f32[8]{0} call(%x), to_apply=%branch.1
  %double.1 = f32[8] custom-call(%call.1), target="tpu_custom_call"
  %other.1 = f32[4] custom-call(%call.1), target="tpu_custom_call"
  ROOT %other.2 = f32[4] custom-call(%call.1), target="tpu_custom_call"
}
"""


def test_cycles_of_a_program_are_those_of_its_parts():
  kernels = {
      'double.1': tpu.Kernel(7, 1, spills=2),
      'double.2': tpu.Kernel(20, 0, spills=0),
      'other.2': tpu.Kernel(3, 0, spills=1),
      'other.1': None,  # The same.
  }
  cycles, found = tpu.estimate(_PROGRAM, kernels.__getitem__)
  assert cycles == 1000 + (5 + 3 + 1) * 10 + 100
  double, other = (5 + 3 + 1) * 20 + 7, 2 * 3
  assert found['double'] == tpu.Kernel(double, 1, spills=2)
  assert found['other'] == tpu.Kernel(other, 0, spills=2)


def test_a_kernel_is_looked_for_by_its_whole_name(tmp_path):
  for name in ('1-double.1-02', '1-redouble.1-01', '1-double.11-02'):
    text = _BUNDLES if name == '1-double.1-02' else ''
    (tmp_path / f'{name}-final_bundles.txt').write_text(text)
  found = tpu.read_kernel(str(tmp_path), 'double.1', 16)
  assert found == tpu.count(_BUNDLES, 16)
  assert tpu.read_kernel(str(tmp_path), 'double', 16) is None


def test_what_cuda_starts(tmp_path):
  (tmp_path / 'module_0001.f.thunk_sequence.txt').write_text(
      '001: kCustomKernel [source | sink] forward grid: [8, 1, 2] '
      'threads: [128, 1, 1]  shared_memory: 97280 bytes\n'
  )
  want = dict(name='forward', grid='[8, 1, 2]', threads=128, shared_kib=95)
  want |= dict(registers=0, spill_bytes=0)
  assert list(cuda.read_kernels(tmp_path)) == [want]


@pytest.mark.parametrize(
    'results, kind, size',
    [
        ('(f32[3,4]{1,0}, bf16[], pred[2])', 'all-reduce-start', 48 + 2 + 2),
        ('(f8e4m3fn[8], s4[3], c64[2], token[])', 'all-to-all', 8 + 2 + 16),
        ('(f32[128]{0}, f32[1024]{0:T(8,128)})', 'all-gather-start', 4096),
        ('((s8[1], u8[2]), (s8[8], u8[16]))', 'all-gather-start', 24),
        (
            '(f32[4]{0:S(1)}, f32[4], /*index=2*/u32[]{:S(2)}, u32[])',
            'collective-permute-start',
            16,
        ),
    ],
)
def test_exchanged_bytes(results, kind, size):
  text = f'  %r = {results} {kind}(%p), x\n  %s = f32[4] add(%r, %r)'
  found = {k: v for k, v in exchanges.sizes(text).items() if v}
  assert found == {kind.removesuffix('-start'): [size]}


def test_exchanges_of_tpus_are_named_and_counted_once():
  gather = '  %g{} = f32[8,4]{{1,0{}}} all-gather(%p), channel_id={}, x'
  reduce = '  %a = f32[8,4]{1,0} all-reduce(%p), channel_id=1, x'
  scatter = '%all-reduce-scatter.{} (p: f32[8,4]) -> f32[1,4] {{'
  text = [
      *('%first (p: f32[1,4]) -> f32[8,4] {', gather.format(1, '', 7), '}'),
      *('%next (p: f32[1,4]) -> f32[8,4] {', gather.format(2, ':S(1)', 7), '}'),
      *(scatter.format(1), reduce, '}', scatter.format(2), reduce, '}'),
      *('ENTRY %main (p: f32[8,4]) -> f32[8,4] {', gather.format(3, '', 9)),
      *(reduce, '  %f = f32[1,4] fusion(%p), calls=%all-reduce-scatter.1', '}'),
  ]
  found = {k: v for k, v in exchanges.sizes('\n'.join(text)).items() if v}
  assert found == {
      'all-gather': [128, 128],
      'reduce-scatter': [16, 16],
      'all-reduce': [128],
  }


def test_what_is_not_installed_or_crashes_is_one_line(
    monkeypatch, capsys, tmp_path
):
  monkeypatch.setattr(alone.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.InputError, match=r'awconv_jax\[tpu\]'):
    next(static.run(chips=['v5e']))
  monkeypatch.setattr(alone, 'check_installed', lambda chip: None)
  crash = 'import os; os.abort()'
  (tmp_path / 'crash.py').write_text(crash)
  monkeypatch.chdir(tmp_path)  # Which `-m` looks into first.
  monkeypatch.setattr(deviceless, '__name__', 'crash')
  asked = dict(implementations=['map'], channels=[64], directions=['both'])
  assert not list(static.run(chips=['v5e'], **asked))
  said = capsys.readouterr().out
  assert said.count('left out: ') == said.count('ended by -6') == 2


@pytest.mark.slow
def test_the_first_hour(tmp_path, capfd, quick_compiles):
  for parts in first_hour.PARTS.values():
    for arguments in parts.values():
      command._parse(arguments)
  line = ['gpu', 'check', '--tiny', f'--output={tmp_path}/x']
  assert first_hour.main(line) == 0
  rows = json.loads((tmp_path / 'x_check.json').read_text())
  assert len(rows) == 4
  for row in rows:
    assert row['right'] and row['repeatable']
    assert row['largest'] == max(row[name] for name in check.RESULTS) < 1e-5
  assert first_hour.main(line) == 0
  assert 'check: done before' in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('device', first_hour.PARTS)
def test_all_of_the_first_hour(device, tmp_path, quick_compiles):
  assert first_hour.main([device, '--tiny', f'--output={tmp_path}/x']) == 0
  done = {file.name[2:-5] for file in tmp_path.glob('*.done')}
  assert done == first_hour.PARTS[device].keys()


def compiled(chip, **asked):
  """Returns what the compiler of a chip says, if it is installed."""
  try:
    alone.check_installed(chip)
  except errors.InputError as error:
    pytest.skip(str(error))
  rows = list(static.run(chips=[chip], **asked))
  assert len(rows) == 2, 'left out; see the output'
  return rows[1]


# Of forward and backward to the plain convolution, N = 64, bfloat16.
LIMITS = {
    'v5e': {64: 0.67, 128: 1.22, 256: 1.26, 512: 2.07},
    'v6e': {64: 0.90, 128: 1.28, 256: 1.70, 512: 4.30},
}


@pytest.mark.accelerators
@pytest.mark.parametrize('chip', LIMITS)
@pytest.mark.parametrize('channels', LIMITS['v5e'])
def test_the_fused_form_on_tpu(chip, channels):
  asked = dict(implementations=['fused'], directions=['both'])
  row = compiled(chip, channels=[channels], **asked)
  assert row['ratio'] <= LIMITS[chip][channels]
  assert row['kernel_kilocycles'] > row['kilocycles'] / 2


@pytest.mark.accelerators
@pytest.mark.parametrize('chip', ['h100', 'a100'])
@pytest.mark.parametrize('channels', [64, 128, 256, 512])
def test_the_fused_form_on_gpu(chip, channels):
  asked = dict(implementations=['fused'], directions=['both'], batches=[8])
  row = compiled(chip, channels=[channels], **asked)
  assert row['kernels'] and row['registers']
  assert row['spill_bytes'] == 0


@pytest.mark.accelerators
@pytest.mark.parametrize('chip', ['v5e', 'h100'])
def test_eight_devices_gather_nothing(chip):
  asked = dict(models=['resnet18'], implementations=['fused'], batches=[16])
  row = compiled(chip, devices=8, **asked)
  assert row['all_gathers'] == 0 < row['all_reduces']
