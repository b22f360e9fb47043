"""Splits by name, and slices of them: 'train', 'train[:90%]', 'test[100:]'."""

from collections.abc import Callable, Sequence
import re
from typing import Any

from awconv_jax.errors import InputError, look_up

_SLICE = re.compile(
    r'([^[\]]+)(?:\[((?:-?\d{1,18}%?)?):((?:-?\d{1,18}%?)?)\])?'
)


def parse(split: str) -> tuple[str, Callable[[Sequence], Any]]:
  """Returns the name of a split, and what takes its slice of all examples.

  Raises:
    InputError: it is neither a name nor a slice by numbers or per cent.
  """
  match = _SLICE.fullmatch(split)
  if match is None:
    raise InputError(
        f'split {split!r}: want a name, or a slice such as train[:90%]'
    )
  name, *ends = match.groups()

  def number(end, length):
    if not end:
      return None
    return round(int(end[:-1]) * length / 100) if end[-1] == '%' else int(end)

  def part(examples):
    return examples[slice(*(number(end, len(examples)) for end in ends))]

  return name, part


def choose(split: str, known: dict[str, range], place: str) -> range:
  """Returns the numbers of a split's examples; InputError if there are none.

  Args:
    split: name, or a slice of it.
    known: all numbers of each split.
    place: the data set, for messages.
  """
  name, part = parse(split)
  numbers = part(look_up(f'split of {place}', name, known))
  if not numbers:
    raise InputError(f'split {split!r} of {place} holds no examples')
  return numbers
