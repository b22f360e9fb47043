"""The table of parameters and MACs, against MACs written out by hand."""

import commands
import pytest

from awconv_jax import models
from awconv_jax.tools import complexity as tool

SIZES = {
    'resnet18': ('basic', (2, 2, 2, 2)),
    'resnet50': ('bottleneck', (3, 4, 6, 3)),
}


def aw_macs(channels, outputs, side):
  """Those that one 3x3 AW-convolution adds; e = r = 16."""
  pooling = 3 * side * side * channels + 9 * side * channels
  hidden = max(channels // 16, 4)
  branch = 9 * hidden * (channels + channels // 16 * outputs)
  return pooling + branch + 9 * channels * outputs


ATTENTION = {
    # By the channels and the side of what is gated.
    None: lambda c, side: 0,
    'se': lambda c, side: 2 * c * (c // 16),
    'cbam': lambda c, side: 2 * 2 * c * (c // 16) + 98 * side**2,
    'eca': lambda c, side: c * {256: 5, 512: 5, 1024: 5, 2048: 7}[c],
}


def bam_macs(c, side):
  hidden = c // 16
  spatial = c * hidden + 2 * 9 * hidden**2 + hidden
  return 2 * c * hidden + spatial * side**2


def by_hand(name, attention=None, aw_conv=False, version='v1.5'):
  block, stages = SIZES[name]
  total, side, channels = 112**2 * 49 * 3 * 64, 56, 64
  for stage, blocks in enumerate(stages):
    width = 64 * 2**stage
    for index in range(blocks):
      before = side
      stride = 2 if stage and not index else 1
      side //= stride
      if block == 'basic':
        out = width
        total += side**2 * 9 * (channels * width + width * width)
        if aw_conv:
          total += aw_macs(channels, width, before)
          total += aw_macs(width, width, side)
      else:
        out = 4 * width
        inside = before if version == 'v1.5' else side
        total += inside**2 * channels * width
        total += side**2 * (9 * width * width + width * out)
        if aw_conv:
          total += aw_macs(width, width, inside)
      if channels != out:
        total += side**2 * channels * out
      channels = out
      if attention != 'bam':
        total += ATTENTION[attention](out, side)
    if attention == 'bam' and stage < 3:
      total += bam_macs(channels, side)
  return total + channels * 1000


@pytest.mark.parametrize(
    'name, options',
    [
        ('resnet18', dict(aw_conv=True)),
        ('resnet50', dict(aw_conv=True, version='v1')),
        ('resnet50', dict(attention='cbam', aw_conv=True)),
        ('resnet50', dict(attention='eca')),
        ('resnet50', dict(attention='se', version='v1')),
        ('resnet50', dict(attention='bam')),
    ],
)
def test_macs_are_those_written_out(name, options):
  *rows, total = tool.count(models.create(name, **options), 224)
  assert total['multiply_adds'] == by_hand(name, **options)
  # In the order of the computation.
  first = [row['module'] for row in rows[:2]]
  assert first == ['stem_conv', 'stage1_block1']
  for key in ('parameters', 'multiply_adds'):
    assert sum(row[key] for row in rows) == total[key]


def test_what_is_written_out_is_what_is_published():
  # As printed in the papers (v1) and by what all code runs (v1.5).
  for attention, *published in (
      (None, '3.858', '4.089'),
      ('se', '3.860', '4.092'),
      ('cbam', '3.864', '4.096'),
      ('bam', '3.940', '4.171'),
  ):
    for version, gmacs in zip(('v1', 'v1.5'), published, strict=True):
      macs = by_hand('resnet50', attention, version=version)
      assert f'{macs / 1e9:.3f}' == gmacs
  assert f'{by_hand("resnet18") / 1e9:.3f}' == '1.814'


def test_the_command_compares_networks_or_lists_modules():
  code, out, err = commands.tool(
      *('complexity', '--models=resnet18', '--stem=cifar', '--side=32')
  )
  assert (code, err) == (0, '')
  # 1000 classes, not 100; there is no stride to choose, so no column of it.
  plain = f'{11_220_132 + 900 * 513:,}'
  assert f'|    | {plain} | 0         | 0.5' in out and 'gmacs_v1' not in out
  assert '| AW | 13,853,392 | 2,171,560 | 0.5' in out
  code, out, _ = commands.tool(
      *('complexity', '--config=configs/digits.py', '--channels=1')
  )
  assert code == 0 and 'stage4_block2' in out and '\n| total ' in out
