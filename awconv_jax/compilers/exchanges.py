"""What the devices of a compiled program exchange, read in its text."""

import math
import re

KINDS = (
    *('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'),
    *('collective-permute', 'collective-broadcast', 'ragged-all-to-all'),
)


def count(text: str, kind: str) -> int:
  """Returns how many a program has; one of a start and an end counts once.

  Those in a loop count once, too.
  """
  return len(re.findall(rf'\s{re.escape(kind)}(?:-start)?\(', text))


def given_bytes(text: str, kind: str) -> int:
  """Returns what the exchanges of a kind give each device."""
  total = 0
  for results in re.findall(rf'= (.*?) {re.escape(kind)}(?:-start)?\(', text):
    for bits, shape in re.findall(r'[a-z]+(\d+)\[([\d,]*)\]', results):
      sizes = [int(size) for size in shape.split(',') if size]
      total += math.prod(sizes) * int(bits) // 8
  return total
