"""The table of parameters and MACs, against MACs written out by hand."""

import functools

import commands
import pytest

from awconv_jax import models
from awconv_jax.tools import complexity as tool

SIZES = {
    'resnet18': ('basic', (2, 2, 2, 2)),
    'resnet50': ('bottleneck', (3, 4, 6, 3)),
}


@functools.cache
def macs(name, **options):
  return tool.count(models.create(name, **options), 224)[1].multiply_adds


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
        ('resnet50', dict(attention='se')),
        ('resnet50', dict(attention='cbam', aw_conv=True)),
        ('resnet50', dict(attention='bam')),
        ('resnet50', dict(attention='eca')),
    ],
)
def test_macs_are_those_written_out(name, options):
  assert macs(name, **options) == by_hand(name, **options)


# As printed in the papers (v1) and by what all code runs (v1.5).
PUBLISHED = {
    ('resnet50', None): ('3.858', '4.089'),
    ('resnet50', 'se'): ('3.860', '4.092'),
    ('resnet50', 'cbam'): ('3.864', '4.096'),
    ('resnet50', 'bam'): ('3.940', '4.171'),
}


@pytest.mark.parametrize('name, attention', PUBLISHED)
def test_published_gmacs_in_both_conventions(name, attention):
  own = [
      f'{macs(name, attention=attention, version=version) / 1e9:.3f}'
      for version in ('v1', 'v1.5')
  ]
  assert tuple(own) == PUBLISHED[name, attention]


def test_rows_hold_what_aw_adds():
  plain, aw = tool.rows(['resnet18'], ['none'], 32, num_classes=10)
  assert (plain.aw, plain.added) == (False, 0) and aw.aw
  assert aw.added == aw.parameters - plain.parameters == 2_171_560
  assert aw.gmacs > plain.gmacs and plain.gmacs_v1 is None


def test_the_command():
  run = functools.partial(commands.run, '-m', 'awconv_jax.tools.complexity')
  code, out, err = run('--models=resnet18', '--stem=cifar', '--side=32')
  assert code == 0, err
  assert '| AW ' in out
  assert f'{11_220_132 + 900 * 513:,}' in out  # 1000 classes, not 100.
  code, out, err = run('--config=configs/digits.py', '--channels=1')
  assert code == 0, err
  assert 'stage4_block2' in out and 'total' in out
