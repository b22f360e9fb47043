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

from awconv_jax.errors import InputError, nearest
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
  filling = _Filling(overrides or {})
  filled = filling.section('config', schema, _tuples(config))
  filling.check_overrides()
  if filling.faults:
    raise InputError('\n'.join(filling.faults))
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
  values, faults = dict(defaults), []
  for item in filter(None, (arg or '').split(',')):
    key, _, text = item.partition('=')
    if key not in defaults:
      hint = nearest(key, defaults)
      listed = ', '.join(sorted(defaults))
      faults.append(f'unknown config argument {key!r}{hint}; known: {listed}')
      continue
    kind = str if defaults[key] is None else type(defaults[key])
    types_ = (float, int) if kind is float else (kind,)
    fits = [kind(v) for v in _readings(text) if type(v) in types_]
    if not text or '=' in text:
      faults.append(
          f"config argument {item!r} is not key=value, where value holds no '='"
          " and no ','; give such a one by its path: --config.data.name=..."
      )
    elif not fits:
      wanted = 'true or false' if kind is bool else f'of type {kind.__name__}'
      faults.append(f'config argument {key}={text!r} must be {wanted}')
    else:
      values[key] = fits[0]
      if defaults[key] is None and text == 'none':
        values[key] = None
  if faults:
    raise InputError('\n'.join(faults))
  return types.SimpleNamespace(**values)


def _tuples(value: Any) -> Any:
  """Returns the value with tuples for its lists, which JSON makes of them."""
  if isinstance(value, Mapping):
    return {key: _tuples(inner) for key, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(map(_tuples, value))
  return value


def _readings(text: str) -> Iterator[Any]:
  """Yields what a text on the command line may stand for, likeliest first."""
  try:
    literal = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    pass
  else:
    yield literal
    yield (literal,)
  yield text
  if text.title() in ('True', 'False', 'None'):
    yield ast.literal_eval(text.title())
  yield tuple(text.split(','))


class _Filling:
  """Fills sections with their options, and collects the faults.

  Attributes:
    faults: a line for each.
  """

  def __init__(self, overrides: Mapping[str, str]):
    self.faults: list[str] = []
    self._overrides = overrides
    # Of all options that there are.
    self._paths: list[str] = []
    # Sections without options, and why that is; None if a fault says so.
    self._without: dict[str, str | None] = {}

  def section(
      self,
      path: str,
      target: Callable[..., Any],
      values: Mapping[str, Any],
      given: Iterable[str] = (),
  ) -> dict[str, Any]:
    """Returns all options of `target`, but those given by its caller."""
    known = {k: v for k, v in options_of(target).items() if k not in given}
    for name in values:
      if name not in known:
        self._unknown(f'{path}.{name}', name, known)
    filled = {}
    # Sections last, as they may belong to a name beside them.
    for name in sorted(
        known, key=lambda name: _marker(known[name]) is not None
    ):
      option, here = known[name], f'{path}.{name}'
      value, marker = values.get(name, option.default), _marker(option)
      whole = marker is not None and here in self._overrides
      if whole:  # "{'momentum': 0.8}", in place of what the config sets.
        self._paths.append(here)
        value = _tuples(next(_readings(self._overrides[here])))
      if marker is None:
        self._set(filled, name, here, option, value)
      elif value is _REQUIRED:
        self.faults.append(f'{here} is missing')
        self._without[here] = None
      elif not isinstance(value, (Mapping, types.NoneType)):
        self.faults.append(f'{here}={value!r} must hold options by name')
        self._without[here] = None
      elif isinstance(marker, Named):
        filled[name] = self._named(here, marker, dict(value or {}))
      elif marker.by is None:
        filled[name] = self.section(here, marker.of, value or {}, marker.given)
      else:
        new = filled.get(marker.by, _REQUIRED)
        old = values.get(marker.by, known[marker.by].default)
        filled[name] = self._beside(
            here, marker, value or {}, new if whole else old, new
        )
    return filled

  def _set(self, filled, name, path, option, value) -> None:
    """Sets a checked value of a plain option."""
    self._paths.append(path)
    readings = [value]
    if path in self._overrides:
      readings = list(_readings(self._overrides[path]))
    elif value is _REQUIRED:
      self.faults.append(f'{path} is missing')
      return
    adapter = pydantic.TypeAdapter(option.annotation, config=_STRICT)
    errors = []
    for reading in readings:
      try:
        # Numbers and names, so that no later change of a list is one here.
        filled[name] = _tuples(adapter.validate_python(reading))
        return
      except pydantic.ValidationError as error:
        errors.append(error)
    self.faults.append(_line(path, readings[0], errors[0]))

  def _named(self, path, marker, values) -> dict[str, Any]:
    """Returns a section that holds the name of what its options belong to."""
    self._paths.append(f'{path}.name')
    old = values.pop('name', None)
    new = self._overrides.get(f'{path}.name', old)
    if new is None:
      self.faults.append(f'{path}.name is missing')
      self._without[path] = None
      return {}
    inner = self._options(path, f'{path}.name', marker, values, old, new)
    return {'name': new} | inner

  def _beside(self, path, marker, values, old, new) -> dict[str, Any]:
    """Returns a section whose options belong to the name beside it."""
    by = f'{path.rpartition(".")[0]}.{marker.by}'
    if new is _REQUIRED:  # That name is at fault.
      self._without[path] = None
    elif new is None:
      self._without[path] = f'needs {by}, which is None'
      if values and old is None:
        self.faults.append(f'{path}={values} {self._without[path]}')
    else:
      return self._options(path, by, marker, values, old, new)
    return {}

  def _options(self, path, by, marker, values, old, new) -> dict[str, Any]:
    """Returns the options of what has the name `new`, `old` before."""
    try:
      target = marker.target(new)
    except InputError as error:
      self.faults.append(f'{by}: {error}')
      self._without[path] = None
      return {}
    if new != old and old is not None:
      before, now = options_of(marker.target(old)), options_of(target)
      values = {
          name: value
          for name, value in values.items()
          if name in now
          and not (name in before and value == before[name].default)
      }
    return self.section(path, target, values, marker.given)

  def check_overrides(self) -> None:
    """Notes the paths at which there is no option."""
    for path in self._overrides:
      if path not in self._paths:
        above = [s for s in self._without if path.startswith(f'{s}.')]
        if not above:
          self._unknown(path, path, self._paths)
        elif self._without[above[0]]:
          self.faults.append(f'{path} {self._without[above[0]]}')

  def _unknown(self, path: str, name: str, known: Iterable[str]) -> None:
    """Notes a name that is not known, with the known ones of its section."""
    hint = nearest(name, known)
    near = hint.split("'")[1] if hint else name
    section = near.rpartition('.')[0]
    beside = [k for k in known if k.rpartition('.')[0] == section] or known
    listed = ', '.join(sorted(k.rpartition('.')[2] for k in beside)) or 'none'
    self.faults.append(f'unknown {path}{hint}; known: {listed}')


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


def _is_section(item: tuple[str, inspect.Parameter]) -> bool:
  return _marker(item[1]) is not None
