"""Checks of a network's fields: one line that names the field and its value."""

from collections.abc import Mapping, Sequence
import inspect
import numbers
from typing import Any

import jax.numpy as jnp

from awconv_jax import errors


def check_choice(field: str, value: Any, known: Sequence[Any]) -> None:
  """Raises InputError if a field's value is none of the known ones."""
  if value not in known:
    raise errors.unknown_name(field, value, map(str, known))


def check_count(field: str, value: Any) -> None:
  """Raises InputError if a field's value is not an integer of at least 1."""
  if not isinstance(value, numbers.Integral) or value < 1:
    raise errors.InputError(
        f'model.{field}={value!r} must be an integer of at least 1'
    )


def check_counts(field: str, values: Any) -> None:
  """Raises InputError if a field's value is not a sequence of such integers."""
  if not isinstance(values, Sequence) or isinstance(values, str):
    raise errors.InputError(
        f'model.{field}={values!r} must be a sequence of integers'
    )
  if not values:
    raise errors.InputError(f'model.{field}={values!r} must not be empty')
  for i, value in enumerate(values):
    check_count(f'{field}[{i}]', value)


def check_number(field: str, value: Any) -> None:
  """Raises InputError if a field's value is not a number."""
  if not isinstance(value, numbers.Real):
    raise errors.InputError(f'model.{field}={value!r} must be a number')


def check_positive(field: str, value: Any) -> None:
  """Raises InputError if a field's value is not a number above 0."""
  check_number(field, value)
  if not value > 0:
    raise errors.InputError(f'model.{field}={value!r} must be above 0')


def check_fraction(field: str, value: Any) -> None:
  """Raises InputError if a field's value is not a number in [0, 1)."""
  check_number(field, value)
  if not 0 <= value < 1:
    raise errors.InputError(f'model.{field}={value!r} is not in [0, 1)')


def check_dtype(field: str, value: Any) -> None:
  """Raises InputError if a field's value is not a floating dtype."""
  try:
    floating = jnp.issubdtype(jnp.dtype(value), jnp.floating)
  except TypeError:
    floating = False
  # Numpy takes None for float64.
  if value is None or not floating:
    raise errors.InputError(
        f"model.{field}={value!r} is not a floating dtype, such as 'bfloat16'"
    )


def check_stages(field: str, stages: Any, number: int) -> None:
  """Raises InputError if a value is not a sequence of stages, from 1 on."""
  listed = isinstance(stages, Sequence) and not isinstance(stages, str)
  if not listed or not all(stage in range(1, number + 1) for stage in stages):
    raise errors.InputError(
        f'model.{field}={stages!r} must be a sequence of stages, each from 1 '
        f'to {number}'
    )


def check_options(
    field: str, options: Any, layer: type, own: Sequence[str] = ()
) -> None:
  """Raises InputError for options that are not a mapping of a layer's fields.

  Args:
    field: of the network, that holds the options.
    options: field names and values, or None.
    layer: class they are meant for.
    own: fields that the network sets by itself.
  """
  if options is not None and not isinstance(options, Mapping):
    raise errors.InputError(
        f'model.{field}={options!r} must hold fields by name, or be None'
    )
  known = set(inspect.signature(layer).parameters) - {'parent', 'name', *own}
  for option in options or ():
    if option not in known:
      raise errors.unknown_name(f'option in model.{field}', option, known)


def check_layer(
    field: str, layer: type, options: Mapping[str, Any] | None, **own: Any
) -> None:
  """Raises InputError for options with values that a layer cannot have.

  Args:
    field: of the network, that holds the options.
    layer: class they are meant for, with a method `check`.
    options: field names and values, or None.
    **own: fields without a default, any values.
  """
  try:
    layer(parent=None, **own, **(options or {}))
  except (TypeError, ValueError) as error:
    raise errors.InputError(f'model.{field}: {error}') from error
