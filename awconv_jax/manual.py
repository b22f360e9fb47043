"""Every option of a config with its default and its meaning, to read.

Names, types and defaults are in signatures (see `options`), meanings in
docstrings, in their sections Args and Attributes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import functools
import inspect
import re
import shlex
import textwrap
from typing import Any, NamedTuple

from awconv_jax import config as engine
from awconv_jax.options import Named, Steps, marker_of, options_of

_SECTION = re.compile(r'^(?:Args|Attributes):\n((?:\n|  .*\n?)*)', re.MULTILINE)
_ENTRY = re.compile(r'^  ([\w*, ]+): *((?:.*\n?)(?:(?:    .*)?\n?)*)', re.M)


def meanings(target: Callable[..., Any]) -> dict[str, str]:
  """Returns what docstrings say of options, by name; a class's with its bases.

  Of an entry for several, such as 'a, b: of the norm', each gets the whole.
  """
  plain: Any = target.func if isinstance(target, functools.partial) else target
  classes = plain.__mro__[::-1] if inspect.isclass(plain) else ()
  parts = [p for c in classes for p in (c, vars(c).get('__init__'))] or [plain]
  found = {}
  for part in parts:
    text = inspect.cleandoc(getattr(part, '__doc__', None) or '')
    for section in _SECTION.findall(text):
      for names, meaning in _ENTRY.findall(section):
        shared = f'{names}: ' * (',' in names)
        whole = shared + ' '.join(meaning.split())
        found |= dict.fromkeys(re.findall(r'\w+', names), whole)
  return found


class Key(NamedTuple):
  """An option: its path, value, default and meaning.

  The default is `inspect.Parameter.empty` where there is none.
  """

  path: str
  value: Any
  default: Any
  meaning: str


def keys(
    config: Mapping[str, Any],
    target: Callable[..., Any],
    path: str = 'config',
    given: Iterable[str] = (),
) -> Iterator[Key]:
  """Yields the options of a complete config that `target` and others read.

  Args:
    config: what the target's options are, complete.
    target: function or class, as for `config.complete`.
    path: of these options.
    given: options of the target that are not in the config.
  """
  texts = meanings(target)
  for name, option in options_of(target).items():
    if name in given:
      continue
    marker, here, value = marker_of(option), f'{path}.{name}', config[name]
    meaning, default = texts.get(name, ''), engine.default_of(option)
    inner = marker.of if marker else None
    if marker is None or isinstance(marker, Steps):
      yield Key(here, value, default, meaning)
      continue
    value = dict(value or {})
    if isinstance(marker, Named):
      chosen = value.pop('name')
      inner = marker.target(chosen)
      yield Key(f'{here}.name', chosen, inspect.Parameter.empty, meaning)
    elif marker.by is not None:
      chosen = config[marker.by]
      inner = None if chosen is None else marker.target(chosen)
    held = keys(value, inner, here, marker.given) if inner else ()
    # An option without options of its own is one.
    yield from list(held) or [Key(here, value, {}, meaning)]


def flag(key: Key) -> str:
  """Returns what sets an option on the command line of a shell."""
  text = key.value if isinstance(key.value, str) else repr(key.value)
  quoted = shlex.quote(text)
  if "'" in text and not set(text) & set('"$`\\!'):
    quoted = f'"{text}"'  # Which is easier to read.
  return f'--{key.path}={quoted}'


def text(config: Mapping[str, Any], target: Callable[..., Any]) -> str:
  """Returns all options, as flags, each with its default and its meaning."""
  lines = []
  for key in keys(config, target):
    if key.default is inspect.Parameter.empty:
      note = 'no default'
    elif key.default == key.value:
      note = 'the default'
    else:
      note = f'default {key.default!r}'
    lines.append(f'{flag(key)}  # {note}')
    gap = '    # '
    lines += textwrap.wrap(
        key.meaning, 76, initial_indent=gap, subsequent_indent=gap
    )
  return '\n'.join(lines)
