"""Rows of data as a table of text, which Markdown understands, too."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from awconv_jax.errors import one_line


def thousands(value: Any) -> str:
  """Returns an integer with commas between thousands, else str(value)."""
  return f'{value:,}' if isinstance(value, int) else str(value)


def measured(value: Any) -> str:
  """Returns a metric with 4 decimals, COCO's -1 as 'n/a'; else `thousands`."""
  if isinstance(value, float):  # Of these, COCO's alone may be -1.
    return 'n/a' if value == -1 else f'{value:.4f}'
  return thousands(value)


def mib(size: float | None) -> str:
  """Returns bytes in MiB; '?' for None."""
  return '?' if size is None else f'{size / 2**20:,.1f}'


def duration(seconds: float | None) -> str:
  """Returns seconds in the unit that fits; '-' for None."""
  if seconds is None:
    return '-'
  for unit, name in ((3600, 'h'), (60, 'min'), (1, 's')):
    if seconds >= unit:
      return f'{seconds / unit:.3g} {name}'
  return f'{seconds * 1e3:.3g} ms'


def make(
    rows: Sequence[Mapping[str, Any]],
    value_format: Callable[[Any], str] = thousands,
) -> str:
  """Returns rows as text, a column for each key.

  Args:
    rows: at least one, all of the same keys. What is None in all of them gets
      no column.
    value_format: returns the text of a value.
  """
  names = [n for n in rows[0] if any(row[n] is not None for row in rows)]
  lines = [names] + [
      [one_line(value_format(row[n])) for n in names] for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ['-' * width for width in widths])
  padded = (map(str.ljust, line, widths) for line in lines)
  return '\n'.join(f'| {" | ".join(cells)} |' for cells in padded)
