"""docs/networks.md holds what the tool counts. Slow: traces every network."""

import re

import commands
import pytest

from awconv_jax.tools import complexity

TEXT = (commands.ROOT / 'docs/networks.md').read_text()
ROWS = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in TEXT.splitlines()
    if re.match(r'\| \w+\d\w* \|', line)
]


def check(row):
  cifar = row[0].startswith('wrn')
  plain, aw = complexity.rows(
      [row[0]],
      [row[1]],
      32 if cifar else 224,
      num_classes=100 if cifar else 1000,
  )
  counts = (plain['parameters'], aw['parameters'], aw['added'])
  assert row[2:5] == [f'{count:,}' for count in counts]
  macs = [one[key] for key in ('gmacs', 'gmacs_v1') for one in (plain, aw)]
  own = [f'{m:.3f}' if m is not None else '-' for m in macs]
  assert row[5:] == own[: len(row) - 5]


def test_the_tables_are_there():
  assert len(ROWS) == 39
  check(ROWS[0])


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS, ids=lambda row: ' '.join(row[:2]))
def test_every_row(row):
  check(row)
