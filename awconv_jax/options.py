"""What an annotation says of an option beyond its type: bounds, names, groups.

An option is declared once, in the signature or the field of what reads it:

  reduction: PositiveInt = 16
  gate: Annotated[str, OneOf(GATES)] = 'sigmoid'
  aw_options: Annotated[Mapping[str, Any], Options(AWConv)] = FrozenDict()

`awconv_jax.config` completes and checks a config by these annotations. They
cost nothing where there is no config: nothing here imports anything heavy, and
calling a function does not check them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Annotated, Any

from awconv_jax.errors import look_up


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
    return schema | limits


PositiveInt = Annotated[int, Bound(ge=1)]
NonNegativeInt = Annotated[int, Bound(ge=0)]
PositiveFloat = Annotated[float, Bound(gt=0)]
NonNegativeFloat = Annotated[float, Bound(ge=0)]
UnitFloat = Annotated[float, Bound(ge=0, le=1)]  # In [0, 1].
Fraction = Annotated[float, Bound(ge=0, lt=1)]  # In [0, 1).
Share = Annotated[float, Bound(gt=0, le=1)]  # In (0, 1].


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
  """A name that a registry holds; `errors.look_up` says so without a config."""

  names: Iterable[str]

  def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
    from pydantic_core import core_schema

    del source, handler
    return core_schema.literal_schema(list(self.names))


class Increasing:
  """A pair (least, greatest), of which the first is not the larger one."""

  def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
    from pydantic_core import core_schema

    def checked(pair):
      if pair[0] > pair[1]:
        raise ValueError('must be (least, greatest)')
      return pair

    return core_schema.no_info_after_validator_function(
        checked, handler(source)
    )


# (least, greatest) of what is drawn at random.
Interval = Annotated[tuple[PositiveFloat, PositiveFloat], Increasing()]
ShareInterval = Annotated[tuple[Share, Share], Increasing()]


class _FloatingDtype:
  """A floating dtype, by name in a config: 'bfloat16'."""

  def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
    import jax.numpy as jnp
    from pydantic_core import core_schema

    def name(value):
      # Numpy takes None for float64.
      if value is None or not jnp.issubdtype(jnp.dtype(value), jnp.floating):
        raise ValueError("must be a floating dtype, such as 'bfloat16'")
      return jnp.dtype(value).name

    def checked(value):
      try:
        return name(value)
      except TypeError:  # Numpy's, of what is no dtype at all.
        return name(None)

    return core_schema.no_info_plain_validator_function(checked)


Dtype = Annotated[Any, _FloatingDtype()]


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
    """Returns what has the name in the field beside."""
    return _named(self.of, self.by, name)


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
  """A mapping of a `name` and the keyword options of what has that name.

  Attributes:
    of: a registry, or a function of the name that raises InputError.
    kind: of what is named, for errors.
    given: options that the caller sets by itself.
  """

  of: Callable[..., Any] | Mapping[str, Callable[..., Any]]
  kind: str
  given: Sequence[str] = ()

  def target(self, name: str) -> Callable[..., Any]:
    """Returns what has the name."""
    return _named(self.of, self.kind, name)


def _named(of: Any, kind: str, name: str) -> Callable[..., Any]:
  return look_up(kind, name, of) if isinstance(of, Mapping) else of(name)
