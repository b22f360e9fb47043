"""Checks of the layers' fields: one line that names the field and its value."""

from collections.abc import Iterable, Sequence
import numbers


def pair(value: int | Sequence[int] | None, name: str) -> tuple[int, int]:
  """Returns (value, value) for a number, (1, 1) for None, else two values.

  Args:
    value: any kind of integer, or two of them.
    name: of the field, for the error.

  Raises:
    ValueError: value is neither.
  """
  if value is None:
    return 1, 1
  if isinstance(value, numbers.Integral):
    return int(value), int(value)
  entries = tuple(value) if isinstance(value, Iterable) else ()
  if len(entries) != 2 or not all(
      isinstance(entry, numbers.Integral) for entry in entries
  ):
    raise ValueError(
        f'{name} must have two entries or be one, all integers, not {value!r}'
    )
  return int(entries[0]), int(entries[1])


def check_count(value: int, name: str) -> None:
  """Raises ValueError if value is not an integer of at least 1."""
  if not isinstance(value, numbers.Integral):
    raise ValueError(f'{name} must be an integer, not {value!r}')
  if value < 1:
    raise ValueError(f'{name} must be at least 1, not {value}')


def check_number(value: float, name: str) -> None:
  """Raises ValueError if value is not a number."""
  if not isinstance(value, numbers.Real):
    raise ValueError(f'{name} must be a number, not {value!r}')
