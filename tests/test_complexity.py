"""MACs of operations and networks, written out, and the tables of the docs."""

import functools
import math
import re

import commands
import jax
import jax.numpy as jnp
import pytest

from awconv_jax import macs, models
from awconv_jax.ops import aw_conv as op
from awconv_jax.tools import complexity as tool

SIZES = {'resnet18': (2, 2, 2, 2), 'resnet50': (3, 4, 6, 3)}
# Of docs/networks.md.
ROWS = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in (commands.ROOT / 'docs/networks.md').read_text().splitlines()
    if re.match(r'\| \w+\d\w* \|', line)
]


def total(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return sum(macs.count(function, *arguments).values())


def test_a_convolution_a_product_in_a_scan_and_no_while_loop():
  conv = functools.partial(
      jax.lax.conv_general_dilated,
      window_strides=(2, 2),
      padding='SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=2,
  )
  count = total(conv, (2, 8, 6, 4), (3, 3, 2, 10))
  assert count == (2 * 4 * 3 * 10) * (3 * 3 * 2)

  def scan(x, w):
    return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=7)[0]

  assert total(scan, (3, 5), (5, 5)) == 7 * 3 * 5 * 5

  def loop(x):
    return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ c, x)

  with pytest.raises(NotImplementedError, match='while'):
    total(loop, (3, 3))


@pytest.mark.parametrize('implementation', sorted(op.IMPLEMENTATIONS))
@pytest.mark.parametrize(
    'groups, features, maps', [(1, 5, 2), (8, 8, 1), (8, 16, 1)]
)
def test_an_aw_convolution_is_its_convolution_and_its_modulation(
    implementation, groups, features, maps
):
  options = dict(groups=groups, implementation=implementation)
  shape = 3, 3, 8 // groups, features
  count = total(
      functools.partial(op.aw_conv, **options),
      *((4, 6, 6, 8), shape, (4, 3, 3, maps, features)),
  )
  assert count == 4 * (6 * 6 + 1) * math.prod(shape)


def test_a_fused_aw_convolution_counts_once_of_all_platforms():
  def both(x, kernel, attention):
    run = functools.partial(op.aw_conv, implementation='fused')
    out, pullback = jax.vjp(run, x, kernel, attention)
    return pullback(out)

  count = total(both, (4, 6, 6, 16), (3, 3, 16, 32), (4, 3, 3, 2, 32))
  # Three products. The kernel times the maps for each of the two images; the
  # gradient of the sample's kernel times the maps, and times the kernel.
  assert count == 4 * (3 * 6 * 6 + 4) * (3 * 3 * 16 * 32)


def test_a_condition_around_fused_ones_counts_all_of_its_branches():
  def either(x, kernel, attention):
    fused = functools.partial(
        op.aw_conv, kernel=kernel, attention=attention, implementation='fused'
    )
    return jax.lax.cond(x[0, 0, 0, 0] > 0, fused, lambda x: 2 * fused(x), x)

  count = total(either, (4, 6, 6, 16), (3, 3, 16, 16), (4, 3, 3, 2, 16))
  assert count == 2 * 4 * (6 * 6 + 1) * (3 * 3 * 16 * 16)


def aw_macs(channels, outputs, side):
  """Those that one 3x3 AW-convolution adds; e = r = 16."""
  pooling = 3 * side * side * channels + 9 * side * channels
  hidden = max(channels // 16, 4)
  branch = 9 * hidden * (channels + channels // 16 * outputs)
  return pooling + branch + 9 * channels * outputs


def bam_macs(c, side):
  hidden = c // 16
  spatial = c * hidden + 2 * 9 * hidden**2 + hidden
  return 2 * c * hidden + spatial * side**2


ATTENTION = {
    # By the channels and the side of what is gated.
    None: lambda c, side: 0,
    'se': lambda c, side: 2 * c * (c // 16),
    'cbam': lambda c, side: 2 * 2 * c * (c // 16) + 98 * side**2,
    'eca': lambda c, side: c * {256: 5, 512: 5, 1024: 5, 2048: 7}[c],
    'coord': lambda c, side: 4 * side * c * max(c // 32, 8),
    'bam': bam_macs,
}


def by_hand(name, attention=None, aw_conv=False, version='v1.5'):
  total, side, channels = 112**2 * 49 * 3 * 64, 56, 64
  for stage, blocks in enumerate(SIZES[name]):
    width = 64 * 2**stage
    for index in range(blocks):
      before = side
      side //= 2 if stage and not index else 1
      if name == 'resnet18':
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
      # BAM stands between two stages, the others in every block.
      if attention != 'bam' or (index == blocks - 1 and stage < 3):
        total += ATTENTION[attention](out, side)
  return total + channels * 1000


@pytest.mark.parametrize(
    'name, options',
    [
        ('resnet18', dict(aw_conv=True)),
        ('resnet50', dict(aw_conv=True, version='v1')),
        ('resnet50', dict(attention='cbam', aw_conv=True)),
        *(
            pytest.param('resnet50', options, marks=pytest.mark.slow)
            for options in (
                dict(attention='eca'),
                dict(attention='coord'),
                dict(attention='se', version='v1'),
            )
        ),
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
      count = by_hand('resnet50', attention, version=version)
      assert f'{count / 1e9:.3f}' == gmacs
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


@pytest.mark.parametrize(
    'row',
    ROWS[:1] + [pytest.param(r, marks=pytest.mark.slow) for r in ROWS[1:]],
    ids=lambda row: ' '.join(row[:2]),
)
def test_the_tables_of_the_docs(row):
  assert len(ROWS) == 47
  cifar = row[0].startswith('wrn')
  size = dict(side=32, num_classes=100) if cifar else dict(side=224)
  plain, aw = tool.rows([row[0]], [row[1]], **size)
  counts = (plain['parameters'], aw['parameters'], aw['added'])
  assert row[2:5] == [f'{count:,}' for count in counts]
  gmacs = [one[key] for key in ('gmacs', 'gmacs_v1') for one in (plain, aw)]
  texts = [f'{m:.3f}' if m is not None else '-' for m in gmacs]
  assert row[5:] == texts[: len(row) - 5]


@pytest.mark.slow
def test_the_table_of_what_stands_in_the_place_of_aw_convolutions():
  text = (commands.ROOT / 'docs/networks.md').read_text()
  lines = re.findall(r'^\| (?:condconv|dynamic|odconv|sk) \| .*', text, re.M)
  assert len(lines) == 11
  for line in lines:
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    attention, name, options, parameters, _, gmacs, v1, *_ = cells
    options = eval(f'dict({options})')
    if 'experts' in options:
      options['attention_options'] = dict(experts=options.pop('experts'))
    (row,) = tool.rows([name], [attention], 224, **options)
    assert parameters == f'{row["parameters"]:,}', line
    assert gmacs == f'{row["gmacs"]:.3f}', line
    assert v1 == (f'{row["gmacs_v1"]:.3f}' if row['gmacs_v1'] else '-'), line
