"""What the devices of a compiled program exchange, read in its text."""

import math
import re

KINDS = (
    *('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'),
    *('collective-permute', 'collective-broadcast', 'ragged-all-to-all'),
)
_EXCHANGE = re.compile(rf'= (.*?) ({"|".join(KINDS)})(-start)?\((.*)')
# TPU reduces and scatters by a fusion of this name, of an all-reduce and slices
# of it.
_SCATTER = re.compile(r'%?all-reduce-scatter[\w.\-]* .*-> (.*) \{$')


def sizes(text: str) -> dict[str, list[int]]:
  """Returns the bytes that each exchange gives a device, by kind.

  One of a start and an end counts once, and so do those in a loop, and one that
  is advanced by several fusions, which share its channel.
  """
  found, seen = {kind: [] for kind in KINDS}, set()
  scattered = None
  for line in text.splitlines():
    if not line[:1].isspace():  # A computation begins or ends.
      header = _SCATTER.match(line)
      scattered = header and header[1]
    exchange = _EXCHANGE.search(line)
    if not exchange:
      continue
    results, kind, start, rest = exchange.groups()
    if scattered:
      # Those that were combined have the same channel, but are not the same.
      found['reduce-scatter'].append(_bytes(scattered))
      continue
    # What starts gives its operands, its results, and more; but an all-reduce.
    if start and kind != 'all-reduce':
      results = _elements(results)[1]
    channel = re.search(r'channel_id=(\d+)', rest)
    key = channel and (kind, channel[1], *_shapes(results))
    if key is None or key not in seen:
      found[kind].append(_bytes(results))
    seen.add(key)
  return found


def count(text: str, kind: str) -> int:
  """Returns how many exchanges of a kind a program has; see `sizes`."""
  return len(sizes(text)[kind])


def _elements(results):
  """Returns the elements of a tuple, which may be tuples of arrays."""
  plain = re.sub(r'\{[^{}]*\}|/\*.*?\*/', '', results)  # Layouts, comments.
  return re.findall(r'\([^()]*\)|\w+\[[\d,]*\]', plain[1:-1])


def _shapes(results):
  return re.findall(r'([a-z]+)(\d*)\w*\[([\d,]*)\]', results)


def _bytes(results):
  total = 0
  for letters, bits, shape in _shapes(results):
    number = math.prod(int(size) for size in shape.split(',') if size)
    # Names begin with the bits: f8e4m3fn; a token has none.
    total += math.ceil(number * int(bits or 8 * (letters == 'pred')) / 8)
  return total
