"""What an annotation says of an option beyond its type: bounds, names, groups.

An option is declared once, in the signature or the field of what reads it:

  reduction: PositiveInt = 16
  gate: Annotated[str, OneOf(GATES)] = 'sigmoid'
  aw_options: Annotated[
      Mapping[str, Any] | None, Options(AWConv, given=('train', ...))
  ] = None

`awconv_jax.config` completes and checks a config by these annotations. They
cost nothing where there is no config: nothing here imports anything heavy, and
calling a function does not check them; layers do, by `misfit`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import inspect
import math
import numbers
import operator
import os
import re
import types
from typing import Annotated, Any, Union, get_args, get_origin

from awconv_jax.errors import InputError, look_up

_LARGEST = 3.4e38  # Beyond it float32, in which all is computed, is infinite.


@dataclasses.dataclass(frozen=True)
class Bound:
  """Limits of a finite number (>= ge, > gt, <= le, < lt), or of a length."""

  ge: float | None = None
  gt: float | None = None
  le: float | None = None
  lt: float | None = None
  min_length: int | None = None

  def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
    limits = {k: v for k, v in vars(self).items() if v is not None}
    schema = handler(source)
    if schema['type'] == 'float':
      limits['allow_inf_nan'] = False
      if not limits.keys() & {'le', 'lt'}:
        limits['le'] = _LARGEST
    return schema | limits

  def misfit(self, kind: type, value: Any) -> str:
    """Returns why a value is no such number; '' if it is, or is traced."""
    if getattr(value, 'aval', None) is not None:
      return ''  # Of JAX, and known only when it is computed with.
    whole, limits, fits = kind is int, [], False
    for name, (word, holds) in _LIMITS.items():
      if (limit := getattr(self, name)) not in (None, MOST):
        limits.append((f'{word} {limit:g}', holds, limit))
    number = numbers.Integral if whole else numbers.Real
    if isinstance(value, number) and not isinstance(value, bool):
      fits = math.isfinite(value)
      fits = fits and all(holds(value, limit) for _, holds, limit in limits)
    words = ['a whole number' if whole else 'a number']
    words += [' and '.join(word for word, *_ in limits)] * bool(limits)
    return '' if fits else f'must be {", ".join(words)}'


# What arrays can be as long as, and 32 bits can count.
MOST = 2**31 - 1
_LIMITS = {
    'ge': ('at least', operator.ge),
    'gt': ('greater than', operator.gt),
    'le': ('at most', operator.le),
    'lt': ('less than', operator.lt),
}


def misfit(annotation: Any, value: Any) -> str:
  """Returns why an option cannot be a value, '' if it can.

  Without a config, and so without pydantic: of numbers alone, of pairs of them,
  and of what else may be in their place.
  """
  origin, parts = get_origin(annotation), get_args(annotation)
  if origin is Annotated:
    bound = next((part for part in parts if isinstance(part, Bound)), None)
    if bound and parts[0] in (int, float):
      return bound.misfit(parts[0], value)
    return misfit(parts[0], value)
  if origin in (Union, types.UnionType):
    faults = [misfit(part, value) for part in parts]
    return '' if '' in faults else faults[0]
  if origin is tuple and ... not in parts:
    if not isinstance(value, tuple | list) or len(value) != len(parts):
      return f'must be {len(parts)} values'
    return next(filter(None, map(misfit, parts, value)), '')
  if annotation is types.NoneType and value is not None:
    return 'must be None'
  return ''


# In texts, in any case.
NONE = 'none', 'null'
_DTYPES = 'float32', 'bfloat16', 'float16', 'float64'
PositiveInt = Annotated[int, Bound(ge=1, le=MOST)]
NonNegativeInt = Annotated[int, Bound(ge=0, le=MOST)]
Seed = Annotated[int, Bound(ge=0, lt=2**32)]  # JAX takes the lowest 32 bits.
Side = Annotated[int, Bound(ge=1, le=2**15)]  # Of an image, in pixels.
Number = Annotated[float, Bound()]
PositiveFloat = Annotated[float, Bound(gt=0)]
NonNegativeFloat = Annotated[float, Bound(ge=0)]
UnitFloat = Annotated[float, Bound(ge=0, le=1)]  # In [0, 1].
Fraction = Annotated[float, Bound(ge=0, lt=1)]  # In [0, 1).
Share = Annotated[float, Bound(gt=0, le=1)]  # In (0, 1].
Epochs = Annotated[float, Bound(gt=0, le=1e6)]


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
  """A name that a registry holds; `errors.look_up` says so without a config.

  With `own` it may be 'module:Name', too, of what lies elsewhere.
  """

  names: Iterable[str]
  own: bool = False

  def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
    from pydantic_core import core_schema

    del source, handler
    literal = core_schema.literal_schema(list(self.names))
    path = core_schema.str_schema(pattern=r'^[\w.]+:\w+$')
    return core_schema.union_schema([literal, path]) if self.own else literal


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
  """What `function` makes of a value; its ValueError says why none."""

  function: Callable[[Any], Any]

  def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
    from pydantic_core import core_schema

    return core_schema.no_info_after_validator_function(
        self.function, handler(source)
    )


def local_path(path: str | os.PathLike) -> str:
  """Returns a path with '~' expanded; InputError unless it is of this machine.

  It may be absent.
  """
  text = os.path.expanduser(path)
  if re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', text):
    fault = 'is no path of this machine; copy it here, or mount it'
  elif text[:1] == '~':
    fault = f'has no such user; a file called so is ./{text}'
  elif re.search('[\0\ud800-\udc7f\udd00-\udfff]', text):
    fault = 'has what no path can have, a zero byte or half a character'
  elif not text:
    fault = 'is empty, as of a variable that is not set; none is None'
  else:
    return text
  raise InputError(f'{os.fspath(path)!r} {fault}')


def any_path(path: str | os.PathLike) -> str:
  """Returns a path in a bucket as it is, and others as `local_path` does."""
  text = os.fspath(path)
  if not re.match('gs:/', text):
    return local_path(text)
  path = text.rstrip('/')
  part = r'/(?!\.{1,2}(/|\Z))[^/\0\ud800-\udfff]+'
  if not re.fullmatch(rf'gs://[a-z0-9][a-z0-9._-]+({part})*', path):
    raise InputError(
        f'{text!r} is no path in a bucket; want gs://bucket/path, with the '
        "bucket's own small letters, and no part that is empty, . or .."
    )
  return path


def _increasing(pair: tuple[float, float]) -> tuple[float, float]:
  if pair[0] > pair[1]:
    raise ValueError('must be (least, greatest)')
  return pair


def _floating(dtype: Any) -> str:
  import jax.numpy as jnp

  # Numpy takes None for float64; and what is no dtype at all is no name here.
  name = str(None)
  with contextlib.suppress(TypeError):
    name = str(dtype) if dtype is None else jnp.dtype(dtype).name
  if name not in _DTYPES:
    known = ', '.join(map(repr, _DTYPES))
    raise ValueError(f'must be a floating dtype, one of {known}')
  if name == 'float64' != jnp.result_type(float).name:
    # JAX would compute in float32.
    raise ValueError('needs JAX_ENABLE_X64=1 in the environment')
  return name


# (least, greatest) of what is drawn at random.
Interval = Annotated[tuple[PositiveFloat, PositiveFloat], Check(_increasing)]
ShareInterval = Annotated[tuple[Share, Share], Check(_increasing)]
LocalPath = Annotated[str, Check(local_path)]
AnyPath = Annotated[str, Check(any_path)]
Dtype = Annotated[Any, Check(_floating)]  # By name in a config: 'bfloat16'.


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
  """Keyword options of another callable, as a mapping.

  Attributes:
    of: that callable; or, with `by`, what has one for each name: a registry, or
      a function that raises InputError for an unknown name.
    by: the field beside this one that holds the name; None in it has no
      options.
    given: options that the caller sets by itself.
  """

  of: Callable[..., Any] | Mapping[str, Callable[..., Any]]
  by: str | None = None
  given: Sequence[str] = ()

  def target(self, name: str) -> Callable[..., Any]:
    """Returns what has the name."""
    if isinstance(self.of, Mapping):
      return look_up(self.by, name, self.of)
    return self.of(name)


class Named(Options):
  """A mapping of a `name` and the options of what has it; `by` is its kind."""


class Steps(Options):
  """A sequence of pairs, a name and the options of what has it; as `Named`."""


def options_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Returns the options of a function, class or partial, by name.

  Those with an annotation; of a Flax module, the fields that it declares or a
  base that is not Flax's own: those of `nn.Conv` are decided by its place.
  """
  plain: Any = target.func if isinstance(target, functools.partial) else target
  declared = None
  if dataclasses.is_dataclass(plain):
    ours = [b for b in plain.__mro__ if not b.__module__.startswith('flax.')]
    declared = set().union(*map(inspect.get_annotations, ours))
    if len(ours) < len(plain.__mro__):
      declared -= {'parent', 'name'}  # Which Flax adds to ours.
  return {
      name: parameter
      for name, parameter in inspect.signature(target).parameters.items()
      if parameter.annotation is not inspect.Parameter.empty
      and (declared is None or name in declared)
  }


def marker_of(option: inspect.Parameter) -> Options | None:
  """Returns what says that an option is a section, if it is one."""
  extras = getattr(option.annotation, '__metadata__', ())
  return next((e for e in extras if isinstance(e, Options)), None)
