"""From the sparse config of a recipe to one that is complete, checked, locked.

The signatures and fields of the code that reads the options are the schema, see
`awconv_jax.options`: an option that is added there can be overridden by
`--config.<its path>` at once, and a wrong value is one line that names the
path.
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import inspect
import re
from typing import Any

import ml_collections
import pydantic

from awconv_jax.errors import (
    InputError,
    did_you_mean,
    nearest,
    nearest_of,
    quoted,
    unknown_name,
    unnamed,
)
from awconv_jax.options import NONE, Named, Steps, marker_of, options_of

# A number is none in quotes, True is not 1, and NaN is no number.
_STRICT = pydantic.ConfigDict(
    strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
)
# What pydantic says of a value of another type, or along with that.
_TYPE_FAULTS = '_type', '_str', 'is_instance_of', 'none_required', 'too_short'
_TYPE_FAULTS += ('missing',)
_REQUIRED = inspect.Parameter.empty
# What Python says of a text that is no value, or one too deep or too long.
_NO_LITERAL = SyntaxError, ValueError, TypeError, MemoryError, RecursionError
# On the command line, in any case.
_WORDS = {'true': True, 'false': False} | dict.fromkeys(NONE)


def complete(
    config: Mapping[str, Any],
    schema: Callable[..., Any],
    overrides: Mapping[str, str] | None = None,
) -> ml_collections.ConfigDict:
  """Returns a config with all options, checked and locked; see `filled`."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  made = filled(config, schema, overrides)
  return ml_collections.ConfigDict(made).lock()


def filled(
    config: Mapping[str, Any],
    schema: Callable[..., Any],
    overrides: Mapping[str, str] | None = None,
    name: str = 'config',
) -> dict[str, Any]:
  """Returns all options, checked.

  Args:
    config: what is not the default; a dict or a `ConfigDict`, that may be
      complete already.
    schema: function or class whose keyword options the config holds; those
      annotated by `Options` and `Named` are sections.
    overrides: texts of values by path, such as {'config.seed': '3'}; that of a
      section is a dict, which takes the place of the whole section. One of a
      name brings the defaults of what has it, and drops what that does not know
      of the options that were there.
    name: what the paths begin with.

  Raises:
    InputError: unknown, missing and impossible values, all of them, one a line.
  """
  if not isinstance(config, Mapping):
    raise InputError(f'a {name} is a dict of its options, not {quoted(config)}')
  filling = _Filling(overrides)
  options = filling.section(name, schema, _tuples(config))
  filling.raise_faults()
  return options


def arguments(text: str, function: Callable[..., Any]) -> dict[str, Any]:
  """Parses 'key=value,key=value' by the annotations of a function.

  Args:
    text: what follows the colon in `--config=configs/x.py:...`; may be empty.
    function: has keyword options; 'none' is None for those that take it.

  Raises:
    InputError: unknown keys and impossible values, all of them, one a line.
  """
  known, values, filling = options_of(function), {}, _Filling()
  for item in filter(None, text.split(',')):
    key, _, value = item.partition('=')
    if key not in known:
      filling.faults.append(str(unknown_name('config argument', key, known)))
    elif not value or '=' in value:
      filling.faults.append(
          f"config argument {item!r} is not key=value; what holds '=' or ',' "
          'is given by its path: --config.data.name=...'
      )
    else:
      values[key] = filling.value(
          f'config argument {key}', known[key].annotation, _readings(value)
      )
  filling.raise_faults()
  return values


def default_of(option: inspect.Parameter) -> Any:
  """Returns the default of an option as configs hold it, or its `empty`."""
  if option.default is _REQUIRED or marker_of(option):
    return _tuples(option.default)
  return _Filling().value(option.name, option.annotation, [option.default])


def _tuples(value: Any) -> Any:
  """Returns the value with tuples for its lists, which JSON makes of them."""
  if isinstance(value, Mapping):
    return {key: _tuples(inner) for key, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(map(_tuples, value))
  return value


def _readings(text: str) -> Iterator[Any]:
  """Yields what a text on the command line may stand for, likeliest first."""
  with contextlib.suppress(*_NO_LITERAL):
    word = text.lower()
    literal = _WORDS[word] if word in _WORDS else ast.literal_eval(text)
    yield from (_tuples(literal), (_tuples(literal),))
  yield text
  if text[:1] not in tuple('([{'):  # Which would be a value gone wrong.
    yield tuple(text.split(','))


class _Filling:
  """Fills sections with their options, and collects the faults, one a line."""

  def __init__(self, texts: Mapping[str, str] | None = None):
    self._texts = dict(texts or {})  # Of the command line, by path.
    self.faults: list[str] = []
    # Options that there are, by path; and those given that are none.
    self._known: list[str] = []
    self._unknown: list[str] = []

  def _texts_of(self, section: str) -> dict[str, str]:
    """Returns the texts of the command line for a section, by path there."""
    start, texts = f'{section}.', self._texts.items()
    return {k.removeprefix(start): v for k, v in texts if k.startswith(start)}

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
    names = [*values, *(rest.split('.')[0] for rest in self._texts_of(path))]
    self._unknown += [f'{path}.{n}' for n in names if n not in known]
    filled = {}
    # Sections last, as they may belong to a name beside them.
    for name in sorted(known, key=lambda name: bool(marker_of(known[name]))):
      option, here = known[name], f'{path}.{name}'
      value, marker = values.get(name, option.default), marker_of(option)
      text, texts = self._texts.get(here), self._texts_of(here)
      plain = marker is None or isinstance(marker, Steps)
      if plain:
        self._unknown += [f'{here}.{rest}' for rest in texts]
      else:
        value = value if text is None else _tuples(next(_readings(text)))
        value = {} if value is None or value is _REQUIRED and texts else value
      if value is _REQUIRED and text is None:
        self.faults.append(f'{here} is missing')
        filled[name] = _REQUIRED
      elif plain:
        readings = [value] if text is None else _readings(text)
        filled[name] = self.value(here, option.annotation, readings)
        if marker is not None:
          filled[name] = self._steps(here, marker, filled[name])
      elif not isinstance(value, Mapping):
        self.faults.append(f'{here}={quoted(value)} must hold options by name')
      elif isinstance(marker, Named):
        by, value = f'{here}.name', dict(value)
        self._known.append(by)
        old = value.pop('name', None)
        new = self._texts.pop(by, old)
        if new is None:
          self.faults.append(f'{by} is missing')
        else:
          options = self._options(here, marker, value, by, old, str(new))
          filled[name] = {'name': str(new)} | options
      elif marker.by is None:
        filled[name] = self.section(here, marker.of, value, marker.given)
      else:
        by, new = f'{path}.{marker.by}', filled[marker.by]
        old = values.get(marker.by, known[marker.by].default)
        filled[name] = self._options(here, marker, value, by, old, new)
    return filled

  def _steps(self, path: str, marker: Steps, pairs: Any) -> tuple[Any, ...]:
    """Returns pairs of a name and options, with all of them."""
    if pairs is _REQUIRED:
      self.faults[-1] += "; each is a name and its options: (('flip', {}),)"
      return pairs
    filled = []
    for place, (name, values) in enumerate(pairs):
      here = f'{path}[{place}]'
      options = self._options(here, marker, values, here, name, name)
      filled.append((name, options))
    return tuple(filled)

  def value(self, path: str, annotation: Any, readings: Iterable[Any]) -> Any:
    """Returns the first reading that can be; _REQUIRED if none can."""
    adapter = pydantic.TypeAdapter(annotation, config=_STRICT)
    faults = []
    for reading in readings:
      try:
        # Numbers and names, so that no later change of a list is one here.
        return _tuples(adapter.validate_python(reading))
      except pydantic.ValidationError as error:
        # What lies deepest is of the reading that came farthest.
        found = sorted(error.errors(), key=lambda f: -len(_places(f)))
        faults += [(reading, fault) for fault in found]
    # A bound says more than that another reading, or member of a union, is not
    # the type.
    bounds = [f for f in faults if not f[1]['type'].endswith(_TYPE_FAULTS)]
    self.faults.append(_line(path, *(bounds or faults)[0]))
    return _REQUIRED

  def _options(self, path, marker, values, by, old, new) -> dict[str, Any]:
    """Returns the options of what is called `new`, instead of `old`."""
    whole, texts = path in self._texts, self._texts_of(path)
    if new is None or new is _REQUIRED:  # Or at fault.
      if new is None and (texts or values and (old is None or whole)):
        self.faults.append(str(unnamed(path, {**values, **texts}, by)))
      return {}
    try:
      target = marker.target(new)
    except InputError as error:
      self.faults.append(f'{by}: {error}')
      return {}
    if new != old and old is not None and not whole:
      before, now = options_of(marker.target(old)), options_of(target)
      values = {
          k: v
          for k, v in values.items()
          if k in now and not (k in before and v == before[k].default)
      }
    return self.section(path, target, values, marker.given)

  def raise_faults(self) -> None:
    """Raises InputError if there are any."""
    names = [(path.rpartition('.')[2], path) for path in self._known]
    for path in dict.fromkeys(self._unknown):
      section, _, name = path.rpartition('.')
      beside = [k for k, p in names if p == f'{section}.{k}']
      same = [p for k, p in names if k == name]
      near = did_you_mean(same) or nearest(name, beside)
      if not near:
        close = nearest_of(name, [k for k, _ in names])
        near = did_you_mean([p for k, p in names if k in close])
      listed = ', '.join(sorted(beside)) or 'none'
      self.faults.append(f'unknown {path}{near}; known: {listed}')
    if self.faults:
      raise InputError(*self.faults)


def _line(path: str, value: Any, fault: Mapping[str, Any]) -> str:
  """Returns a line on what pydantic found of a value."""
  message = fault['msg'].removeprefix('Value error, ')
  message = re.sub(r'^\w+ should ', 'must ', message)
  message = message.replace(' after validation', '')
  for place in _places(fault):
    if not isinstance(value, tuple):
      break  # It is a key.
    if place >= len(value):
      return f'{path}={quoted(value)} has too few values'
    path, value = f'{path}[{place}]', value[place]
  hint = ''
  if fault['type'] == 'literal_error':
    hint = nearest(value, str(fault['ctx']['expected']).split("'")[1::2])
  if fault['type'] in ('sequence_str', 'is_instance_of'):
    message = 'must be a sequence in brackets'
  return f'{path}={quoted(value)} {message}{hint}'


def _places(fault: Mapping[str, Any]) -> list[int]:
  """Returns where in a tuple of tuples the fault is."""
  # Names are those of members of a union.
  return [place for place in fault['loc'] if isinstance(place, int)]
