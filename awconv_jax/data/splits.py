"""Splits by name, and slices of them: 'train', 'train[:90%]', 'test[100:]'."""

from collections.abc import Iterable
import re

from awconv_jax.errors import InputError, look_up

_SLICE = re.compile(
    r'(?P<name>[^[\]]+)'
    r'(?:\[(?P<start>(?:-?\d+%?)?):(?P<stop>(?:-?\d+%?)?)\])?'
)


def parse(split: str) -> tuple[str, str, str]:
  """Returns name, start and stop of a split; '' where none is given.

  Raises:
    InputError: it is neither a name nor a slice by numbers or per cent.
  """
  match = _SLICE.fullmatch(split)
  if match is None:
    raise InputError(
        f'split {split!r}: want a name, or a slice such as train[:90%]'
    )
  return match['name'], match['start'] or '', match['stop'] or ''


def interval(start: str, stop: str, length: int) -> slice:
  """Returns the slice of `length` examples between two ends of `parse`."""
  ends = [
      None
      if not end
      else round(int(end[:-1]) * length / 100)
      if end[-1] == '%'
      else int(end)
      for end in (start, stop)
  ]
  return slice(*ends)


def choose(split: str, known: dict[str, range], place: str) -> Iterable[int]:
  """Returns the numbers of a split's examples.

  Args:
    split: name, or a slice of it.
    known: all numbers of each split.
    place: the data set, for messages.

  Raises:
    InputError: the split is unknown, or empty.
  """
  name, *ends = parse(split)
  numbers = look_up(f'split of {place}', name, known)
  numbers = numbers[interval(*ends, len(numbers))]
  if not numbers:
    raise InputError(f'split {split!r} of {place} holds no examples')
  return numbers
