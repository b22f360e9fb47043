"""Splits by name, and slices of them: 'train', 'train[:90%]', 'test[100:]'."""

from collections.abc import Sequence
import re
from typing import Any

from awconv_jax.errors import InputError, look_up

_SLICE = re.compile(r'([^[\]]+)(?:\[((?:-?\d+%?)?):((?:-?\d+%?)?)\])?')


def parse(split: str) -> tuple[str, str | None, str | None]:
  """Returns name, start and stop of a split, for `part`.

  Raises:
    InputError: it is neither a name nor a slice by numbers or per cent.
  """
  match = _SLICE.fullmatch(split)
  if match is None:
    raise InputError(
        f'split {split!r}: want a name, or a slice such as train[:90%]'
    )
  return match.groups()


def part(examples: Sequence, start: str | None, stop: str | None) -> Any:
  """Returns the examples between two ends of `parse`."""

  def number(end):
    if not end:
      return None
    share = end[-1] == '%'
    return round(int(end[:-1]) * len(examples) / 100) if share else int(end)

  return examples[number(start) : number(stop)]


def choose(split: str, known: dict[str, range], place: str) -> range:
  """Returns the numbers of a split's examples.

  Args:
    split: name, or a slice of it.
    known: all numbers of each split.
    place: the data set, for messages.

  Raises:
    InputError: the split is unknown, or empty.
  """
  name, *ends = parse(split)
  numbers = part(look_up(f'split of {place}', name, known), *ends)
  if not numbers:
    raise InputError(f'split {split!r} of {place} holds no examples')
  return numbers
