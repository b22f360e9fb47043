"""Calls of a running model's convolutions, computed by a layer in their scopes.

Of `AWConv`, K keeps its name there, and the branch for A is beside it as
`attention`.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import contextvars
import dataclasses
import functools
import inspect
from typing import Any

from flax import errors as flax_errors
from flax import traverse_util
import flax.linen as nn
import jax
import numpy as np

from awconv_jax.errors import some
from awconv_jax.layers.attention_augmented import AugmentedConv
from awconv_jax.layers.aw_conv import AWConv

Path = tuple[str, ...]
Where = Callable[[Path, nn.Conv], bool]
# Which convolutions, what computes them, and its options.
Rule = tuple[Where, type[nn.Module], Mapping[str, Any]]

# The surgeries at work. JAX keys its caches by them: to nn.jit, a block of the
# plain model and of the replaced one would else be the same function.
_AT_WORK = jax.make_user_context(())
# Whether a layer computes one: what it is made of is not replaced.
_INSIDE = contextvars.ContextVar('inside', default=False)
_CONV_CALL = inspect.unwrap(nn.Conv.__call__)


# For variables that a replaced convolution does not find.
_REMEDY = (
    ' Initialise the model that replace_conv returned and put plain weights in '
    "by merge_variables; under nn.scan or nn.vmap name 'params' and "
    "'batch_stats' in variable_axes, or use norm='layer'"
)


def names(*paths: Path) -> str:
  """Returns paths as one readable line."""
  # Most networks' convolutions whole: `where` is written by them.
  listed = sorted('/'.join(path) or '()' for path in paths)
  return some(listed, 100) or 'none'


def _fields(path: Path, conv: nn.Conv, layer: type) -> dict[str, Any]:
  """Returns the convolution's fields that the layer has.

  Raises ValueError if it lacks one that is not as `nn.Conv` has it by itself.
  """
  fields = {}
  for field in dataclasses.fields(nn.Conv):
    value = getattr(conv, field.name)
    if field.name in layer.__dataclass_fields__:
      fields[field.name] = value
    elif repr(value) != repr(field.default):
      raise ValueError(
          f'replace_conv: {names(path)}: {layer.__name__} has no field '
          f'{field.name!r}, which is {value!r} there; leave it out by `where`'
      )
  return fields


def _convolve(path: Path, conv: nn.Conv, rule: Rule, call):
  """Computes the call of a bound convolution, in its scope."""
  _, make, options = rule
  fields = _fields(path, conv, make) | options
  layer = make(**fields | dict(parent=conv.scope, name=None))
  # With capture_intermediates both would put their output down under one name.
  captured = conv.get_variable('intermediates', '__call__', ())
  inside = _INSIDE.set(True)
  try:
    out = call(layer)
  except (ValueError, flax_errors.FlaxError) as error:
    remedy = _REMEDY if isinstance(error, flax_errors.FlaxError) else ''
    raise ValueError(f'replace_conv: {names(path)}: {error}{remedy}') from error
  finally:
    _INSIDE.reset(inside)
  if conv.has_variable('intermediates', '__call__'):
    conv.put_variable('intermediates', '__call__', captured)
  return out


class Surgery:
  """Which convolutions to replace, and which ones have been met."""

  def __init__(self, rules: tuple[Rule, ...]):
    self.rules = rules
    # By path in the model: the convolution, and the rule that took it. It stays
    # over the calls: a trace taken from a cache meets nothing.
    self.met: dict[Path, tuple[nn.Conv, int | None]] = {}

  def choose(self, path: Path, conv: nn.Conv) -> int | None:
    """Returns the first rule that wants a convolution, None if none does."""
    rules = enumerate(self.rules)
    return next((i for i, (where, *_) in rules if where(path, conv)), None)

  def intercept(self, root: Path, call, args, kwargs, context):
    """Runs one method of one module of the model; for nn.intercept_methods."""
    module, function = context.module, context.orig_method.func
    if (
        context.method_name != '__call__'
        or _INSIDE.get()
        or not isinstance(module, nn.Conv)
        or isinstance(module, (AWConv, AugmentedConv))
        # Shared with, and owned by, others.
        or module.path[: len(root)] != root
    ):
      return call(*args, **kwargs)
    path = module.path[len(root) :]
    if function is _CONV_CALL:
      rule = self.choose(path, module)
      self.met[path] = module.clone(), rule
      if rule is None:
        return call(*args, **kwargs)
      if type(module).param is nn.Module.param:
        compute = self.rules[rule]
        return _convolve(path, module, compute, lambda f: f(*args, **kwargs))
    else:  # A subclass with another call, around that of nn.Conv or without.
      out = call(*args, **kwargs)
      if path in self.met or self.choose(path, module) is None:
        return out
    raise ValueError(
        f'replace_conv: {names(path)}: {type(module).__name__} does not call '
        'nn.Conv.__call__, or has another `param`; leave it out by `where`'
    )

  @contextlib.contextmanager
  def at_work(self, model: nn.Module) -> Iterator[None]:
    """Replaces what is called inside, below the path of the model."""
    if self in _AT_WORK.value:
      yield
      return
    root = () if model.scope is None else model.path
    intercept = functools.partial(self.intercept, root)
    with _AT_WORK((*_AT_WORK.value, self)), nn.intercept_methods(intercept):
      yield

  def fault(self, model: nn.Module) -> str | None:
    """Returns, after a call, which rule was broken or of no use."""
    # nn.jit computes a block by the trace of another one with equal fields,
    # whatever their paths; their convolutions have equal names and kernels.
    params = traverse_util.flatten_dict(model.variables.get('params', {}))
    kinds = {
        path[:-1]: (path[-2:], np.shape(nn.meta.unbox(leaf)))
        for path, leaf in params.items()
        if path[-1] == 'kernel'
    }
    for path in kinds.keys() - self.met.keys():
      twins = [v for k, v in self.met.items() if kinds.get(k) == kinds[path]]
      wanted = {self.choose(path, conv) for conv, _ in twins}
      if twins and wanted.isdisjoint(rule for _, rule in twins):
        return (
            f'{names(path)} is computed by nn.jit with the trace of another '
            'block; let `where` decide alike for both or take nn.jit away'
        )
    matched = {rule for _, rule in self.met.values()}
    if matched.issuperset(range(len(self.rules))):
      return None
    return f'`where` matches no nn.Conv of the model: {names(*self.met)}'
