"""Strict parsing of a config's argument string, 'model=resnet34,seed=1'."""

import difflib
from typing import Any

import ml_collections


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Parses 'key=value,key=value' by the types of the defaults.

  Args:
    arg: what follows the colon in `--config=configs/x.py:...`; may be empty.
    **defaults: every known key with its default, of type bool, int, float or
      str.

  Returns:
    The values by name.

  Raises:
    ValueError: an unknown key, no '=', or a value of another type.
  """
  values = dict(defaults)
  for item in filter(None, (arg or '').split(',')):
    key, equals, text = item.partition('=')
    if key not in defaults:
      near = difflib.get_close_matches(key, defaults, n=1)
      hint = f' (did you mean {near[0]!r}?)' if near else ''
      raise ValueError(
          f'unknown config argument {key!r}{hint}; '
          f'known: {", ".join(sorted(defaults))}'
      )
    if not equals:
      raise ValueError(f'config argument {item!r} has no value: {key}=...')
    values[key] = _convert(key, text, type(defaults[key]))
  return ml_collections.ConfigDict(values)


def _convert(key: str, text: str, kind: type) -> Any:
  if kind is bool:
    if text.lower() not in ('true', 'false'):
      raise ValueError(f'config argument {key}={text!r} must be true or false')
    return text.lower() == 'true'
  try:
    return kind(text)
  except ValueError:
    raise ValueError(
        f'config argument {key}={text!r} must be of type {kind.__name__}'
    ) from None
