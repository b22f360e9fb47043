"""From the sparse config of a recipe to one that is complete, checked, locked.

The signatures and fields of the code that reads the options are the schema, see
`awconv_jax.options`: an option that is added there can be overridden by
`--config.<its path>` at once, and a wrong value is one line that names the
path.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import inspect
import types
import typing
from typing import Any

import flax.linen as nn
import ml_collections
from ml_collections import config_dict
import pydantic

from awconv_jax.errors import InputError, nearest
from awconv_jax.options import Named, Options

# A number is none in quotes, and True is not 1.
_STRICT = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True)


def options_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Returns the options of a function, class or partial, by name.

  Of a Flax module those are the fields it declares, or a base that is not
  Flax's own: what `nn.Module` and `nn.Conv` declare, its place decides.
  """
  plain = target.func if isinstance(target, functools.partial) else target
  declared = None
  if dataclasses.is_dataclass(plain):
    # All fields but those of Flax's own classes, and those it adds to ours.
    bases = [b for b in plain.__mro__ if not b.__module__.startswith('flax.')]
    declared = set().union(*map(inspect.get_annotations, bases))
    declared -= {'parent', 'name'} if issubclass(plain, nn.Module) else set()
  return {
      name: parameter
      for name, parameter in inspect.signature(target).parameters.items()
      if parameter.annotation is not inspect.Parameter.empty
      and (declared is None or name in declared)
  }


def complete(
    config: Mapping[str, Any], schema: Callable[..., Any]
) -> ml_collections.ConfigDict:
  """Returns a config with all options, checked and locked.

  Args:
    config: what is not the default; a dict or a `ConfigDict`, that may be
      complete already.
    schema: function or class whose keyword options the config holds; those
      annotated by `Options` and `Named` are sections.

  Raises:
    InputError: unknown, missing and impossible values, all of them, one a line.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  faults = []
  filled = ml_collections.ConfigDict()
  _fill(filled, 'config', schema, _tuples(config), (), faults)
  if faults:
    raise InputError('\n'.join(faults))
  return filled.lock()


def _tuples(value: Any) -> Any:
  """Returns the value with tuples for its lists, which JSON makes of them."""
  if isinstance(value, Mapping):
    return {key: _tuples(inner) for key, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(map(_tuples, value))
  return value


def _fill(section, path, target, values, given, faults) -> None:
  """Fills a section with the options of `target`, and notes the faults."""
  known = {k: v for k, v in options_of(target).items() if k not in given}
  for name in values:
    if name not in known:
      listed = ', '.join(sorted(known)) or 'none'
      faults.append(
          f'unknown {path}.{name}{nearest(name, known)}; known: {listed}'
      )
  for name, option in known.items():
    value = values.get(name, option.default)
    here = f'{path}.{name}'
    if value is inspect.Parameter.empty:
      faults.append(f'{here} is missing')
      continue
    marker = _marker(option.annotation)
    if marker is None:
      _set(section, name, option.annotation, value, here, faults)
    elif value is not None and not isinstance(value, Mapping):
      faults.append(f'{here}={value!r} must hold options by name')
    else:
      section[name] = _fill_section(here, marker, value, section, faults)


def _fill_section(path, marker, values, beside, faults):
  values = dict(values or {})
  section = ml_collections.ConfigDict()
  try:
    if isinstance(marker, Named):
      section.name = name = values.pop('name', None)
      target = marker.target(name)
    elif (target := marker.target(beside)) is None:
      if values:
        raise InputError(
            f'{path}={values} needs {path.rpartition(".")[0]}.{marker.by}, '
            'which is None'
        )
      return section
  except KeyError:  # The name beside is wrong itself, and noted.
    return section
  except InputError as error:
    faults.append(f'{path}: {error}')
    return section
  _fill(section, path, target, values, marker.given, faults)
  return section


def _set(section, name, annotation, value, path, faults) -> None:
  """Sets a checked value, of a type that overrides are converted to."""
  adapter = pydantic.TypeAdapter(annotation, config=_STRICT)
  try:
    value = adapter.validate_python(value)
  except pydantic.ValidationError as error:
    faults.extend(_lines(path, value, error))
    return
  if type(None) in _members(annotation):
    section[name] = config_dict.placeholder(_type_of(annotation))
  # Numbers and names, so that no later change of a list is one of the config.
  section[name] = _tuples(value)


def _lines(path, value, error: pydantic.ValidationError) -> Iterator[str]:
  """Yields a line for each fault, but of a union only the first."""
  for fault in error.errors()[:1]:
    message = fault['msg'].removeprefix('Value error, ')
    message = message.replace('Input should be', 'must be')
    if fault['type'] == 'missing':
      yield f'{path}={value!r} has too few values'
      continue
    # Numbers are places in a tuple; names, members of a union.
    for place in (p for p in fault['loc'] if isinstance(p, int)):
      if place >= len(value):
        message = 'must have more entries'
        break
      path, value = f'{path}[{place}]', value[place]
    line = f'{path}={value!r} {message}'
    if fault['type'] == 'literal_error':
      line += nearest(value, str(fault['ctx']['expected']).split("'")[1::2])
    yield line


def _members(annotation: Any) -> tuple[Any, ...]:
  """Returns the types of a union, or the type alone, without annotations."""
  while typing.get_origin(annotation) is typing.Annotated:
    annotation = typing.get_args(annotation)[0]
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    members = map(_members, typing.get_args(annotation))
    return tuple(inner for member in members for inner in member)
  return (annotation,)


def _type_of(annotation: Any) -> type:
  """Returns the first type of a union that is not None, as a plain class."""
  first = next(m for m in _members(annotation) if m is not type(None))
  if typing.get_origin(first) is typing.Literal:
    return type(typing.get_args(first)[0])
  origin = typing.get_origin(first) or first
  return tuple if origin in (Sequence, list) else origin


def _marker(annotation: Any) -> Options | Named | None:
  """Returns what says that an option is a section, if it is one."""
  for extra in getattr(annotation, '__metadata__', ()):
    if isinstance(extra, (Options, Named)):
      return extra
  return None
