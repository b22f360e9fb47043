"""Rows of data as a table of text, which Markdown understands, too."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any


def thousands(value: Any) -> str:
  """Returns an integer with commas between thousands, else str(value)."""
  return f'{value:,}' if isinstance(value, int) else str(value)


def make(rows: Sequence[Any], value_format: Callable[[Any], str]) -> str:
  """Returns dataclasses of one kind as text, a column for each field.

  Args:
    rows: at least one. A field that is None in all of them gets no column.
    value_format: returns the text of a value.
  """
  values = [
      {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
      for row in rows
  ]
  names = [n for n in values[0] if any(v[n] is not None for v in values)]
  lines = [names, *([value_format(v[n]) for n in names] for v in values)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ['-' * width for width in widths])
  return '\n'.join(
      '|'.join(
          ['', *(f' {t:<{w}} ' for t, w in zip(line, widths, strict=True)), '']
      )
      for line in lines
  )
