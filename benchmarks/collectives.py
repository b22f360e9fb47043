"""Counts what devices exchange, in the text of a compiled program."""

import re


def count(program: str, kind: str) -> int:
  """Returns how many exchanges of a kind stand in a program.

  One inside a loop counts once. One that is split into a start and an end, so
  that other work goes on meanwhile, counts once, too.

  Args:
    program: `compiled.as_text()`.
    kind: as XLA names it, such as 'all-gather' or 'all-reduce'.
  """
  return len(re.findall(rf'\s{re.escape(kind)}(?:-start)?\(', program))
