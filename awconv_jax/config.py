"""From the sparse config of a recipe to one that is complete, checked, locked.

The signatures and fields of the code that reads the options are the schema, see
`awconv_jax.options`: an option that is added there can be overridden by
`--config.<its path>` at once, and a wrong value is one line that names the
path.
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import functools
import inspect
import re
import types
from typing import Any

import flax.linen as nn
import ml_collections
import pydantic

from awconv_jax.errors import InputError, nearest, unknown_name
from awconv_jax.options import Named, Options

# A number is none in quotes, and True is not 1.
_STRICT = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True)
_REQUIRED = inspect.Parameter.empty


def options_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Returns the options of a function, class or partial, by name.

  Of a Flax module those are the fields it declares, or a base that is not
  Flax's own: what `nn.Module` and `nn.Conv` declare, its place decides.
  """
  plain: Any = target.func if isinstance(target, functools.partial) else target
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
    config: Mapping[str, Any],
    schema: Callable[..., Any],
    overrides: Mapping[str, str] | None = None,
) -> ml_collections.ConfigDict:
  """Returns a config with all options, checked and locked.

  Args:
    config: what is not the default; a dict or a `ConfigDict`, that may be
      complete already.
    schema: function or class whose keyword options the config holds; those
      annotated by `Options` and `Named` are sections.
    overrides: texts of values by path, such as {'config.seed': '3'}; that of a
      section is a dict, which takes the place of the whole section. One of a
      name brings the defaults of what has it, and drops what that does not know
      of the options that were there.

  Raises:
    InputError: unknown, missing and impossible values, all of them, one a line.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  values = _tuples(config)
  for path, text in sorted((overrides or {}).items()):  # Sections come first.
    _override(values, path.split('.')[1:], text)
  filling = _Filling()
  filled = filling.section('config', schema, values)
  filling.raise_faults()
  return ml_collections.ConfigDict(filled).lock()


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
  """Parses 'key=value,key=value' by the types of the defaults.

  Args:
    arg: what follows the colon in `--config=configs/x.py:...`; may be empty.
    **defaults: every known key with its default, of type bool, int, float or
      str; None is that of a name or 'none'.

  Returns:
    The values by name, as attributes.

  Raises:
    InputError: unknown keys and impossible values, all of them, one a line.
  """
  values, filling = dict(defaults), _Filling()
  for item in filter(None, (arg or '').split(',')):
    key, _, text = item.partition('=')
    if key not in defaults:
      fault = unknown_name('config argument', key, defaults)
      filling.faults.append(str(fault))
    elif not text or '=' in text:
      filling.faults.append(
          f"config argument {item!r} is not key=value, where value holds no '='"
          " and no ','; give such a one by its path: --config.data.name=..."
      )
    else:
      kind: Any = type(defaults[key])
      if defaults[key] is None:
        kind, text = str | None, 'None' if text == 'none' else text
      values[key] = filling.value(f'config argument {key}', kind, _Text(text))
  filling.raise_faults()
  return types.SimpleNamespace(**values)


def _tuples(value: Any) -> Any:
  """Returns the value with tuples for its lists, which JSON makes of them."""
  if isinstance(value, Mapping):
    return {key: _tuples(inner) for key, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(map(_tuples, value))
  return value


class _Text(str):
  """A value as on the command line, and what is there without it."""

  before: Any = None


class _Whole(dict):
  """A section as on the command line, in place of the one in the config."""


def _override(values: dict[str, Any], path: list[str], text: str) -> None:
  """Puts a text where it belongs in a config."""
  *sections, name = path
  for section in sections:
    if not isinstance(values.get(section), dict):
      values[section] = {}
    values = values[section]
  new, literal = _Text(text), next(_readings(text))
  new.before = values.get(name)
  values[name] = _Whole(_tuples(literal)) if isinstance(literal, dict) else new


def _given(value: Any) -> bool:
  """Returns whether anything of a value is from the command line."""
  if isinstance(value, dict):
    return isinstance(value, _Whole) or any(map(_given, value.values()))
  return isinstance(value, _Text)


def _readings(text: str) -> Iterator[Any]:
  """Yields what a text on the command line may stand for, likeliest first."""
  try:
    literal = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    pass
  else:
    yield literal
    yield (literal,)
  yield str(text)
  if text.title() in ('True', 'False', 'None'):
    yield ast.literal_eval(text.title())
  yield tuple(text.split(','))


class _Filling:
  """Fills sections with their options, and collects the faults, one a line."""

  def __init__(self):
    self.faults: list[str] = []
    # Options that there are, by path; and those given that are none.
    self._known: list[str] = []
    self._unknown: list[str] = []

  def section(
      self,
      path: str,
      target: Callable[..., Any],
      values: Mapping[str, Any],
      given: Iterable[str] = (),
  ) -> dict[str, Any]:
    """Returns all options of `target`, but those given by its caller."""
    known = {k: v for k, v in options_of(target).items() if k not in given}
    self._known += [f'{path}.{name}' for name in known]
    self._unknown += [f'{path}.{name}' for name in values if name not in known]
    filled = {}
    # Sections last, as they may belong to a name beside them.
    for name in sorted(known, key=lambda name: bool(_marker(known[name]))):
      option, here = known[name], f'{path}.{name}'
      value, marker = values.get(name, option.default), _marker(option)
      if marker is not None and isinstance(value, _Text):
        value = next(_readings(value))
      if value is _REQUIRED:
        self.faults.append(f'{here} is missing')
        filled[name] = _REQUIRED
      elif marker is None:
        filled[name] = self.value(here, option.annotation, value)
      elif not isinstance(value, (Mapping, types.NoneType)):
        self.faults.append(f'{here}={value!r} must hold options by name')
      elif isinstance(marker, Named):
        value = dict(value or {})
        set_ = value.pop('name', None)
        if set_ is None:
          self.faults.append(f'{here}.name is missing')
        else:
          by, new = f'{here}.name', str(set_)
          options = self._options(here, by, marker, value, set_, new)
          filled[name] = {'name': new} | options
      elif marker.by is None:
        filled[name] = self.section(here, marker.of, value or {}, marker.given)
      else:
        by, new = f'{path}.{marker.by}', filled[marker.by]
        set_ = values.get(marker.by, known[marker.by].default)
        filled[name] = self._options(here, by, marker, value or {}, set_, new)
    return filled

  def value(self, path: str, annotation: Any, value: Any) -> Any:
    """Returns a checked value of a plain option; _REQUIRED if it is none."""
    readings = list(_readings(value)) if isinstance(value, _Text) else [value]
    adapter = pydantic.TypeAdapter(annotation, config=_STRICT)
    errors = []
    for reading in readings:
      try:
        # Numbers and names, so that no later change of a list is one here.
        return _tuples(adapter.validate_python(reading))
      except pydantic.ValidationError as error:
        errors.append(error)
    self.faults.append(_line(path, readings[0], errors[0]))
    return _REQUIRED

  def _options(self, path, by, marker, values, set_, new) -> dict[str, Any]:
    """Returns the options of what is named `new`, set as `set_`."""
    old = set_.before if isinstance(set_, _Text) else set_
    if new is None or new is _REQUIRED:  # Or at fault.
      if new is None and values and (old is None or _given(values)):
        self.faults.append(f'{path}={values} needs {by}, which is None')
      return {}
    try:
      target = marker.target(new)
    except InputError as error:
      self.faults.append(f'{by}: {error}')
      return {}
    if new != old and old is not None and not isinstance(values, _Whole):
      before, now = options_of(marker.target(old)), options_of(target)
      values = {
          name: value
          for name, value in values.items()
          if _given(value)
          or name in now
          and not (name in before and value == before[name].default)
      }
    return self.section(path, target, values, marker.given)

  def raise_faults(self) -> None:
    """Raises InputError if there are any."""
    names = [(path.rpartition('.')[2], path) for path in self._known]
    for path in self._unknown:
      section, _, name = path.rpartition('.')
      beside = [k for k, p in names if p == f'{section}.{k}']
      near = nearest(name, beside)
      for elsewhere in (p for k, p in names if k == name and not near):
        near = f' (did you mean {elsewhere!r}?)'
      listed = ', '.join(sorted(beside)) or 'none'
      self.faults.append(f'unknown {path}{near}; known: {listed}')
    if self.faults:
      raise InputError('\n'.join(self.faults))


def _line(path: str, value: Any, error: pydantic.ValidationError) -> str:
  """Returns a line on the first fault of a value."""
  fault = error.errors()[0]  # The others may be of a union's other members.
  message = fault['msg'].removeprefix('Value error, ')
  message = re.sub(r'^\w+ should ', 'must ', message)
  message = message.replace(' after validation', '')
  # Numbers are places in a tuple; names, members of a union.
  for place in (p for p in fault['loc'] if isinstance(p, int)):
    if place >= len(value):
      return f'{path}={value!r} has too few values'
    path, value = f'{path}[{place}]', value[place]
  hint = ''
  if fault['type'] == 'literal_error':
    hint = nearest(value, str(fault['ctx']['expected']).split("'")[1::2])
  return f'{path}={value!r} {message}{hint}'


def _marker(option: inspect.Parameter) -> Options | Named | None:
  """Returns what says that an option is a section, if it is one."""
  for extra in getattr(option.annotation, '__metadata__', ()):
    if isinstance(extra, (Options, Named)):
      return extra
  return None
