"""Which convolutions of a running model are replaced, and how it is checked."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import inspect
from typing import Any

from flax import traverse_util
import flax.linen as nn
import jax
import numpy as np

from awconv_jax.layers.attention_augmented import AugmentedConv
from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.surgery.conv_call import Path, convolve, names

Where = Callable[[Path, nn.Conv], bool]

# Convolutions that have attention already.
LAYERS = (AWConv, AugmentedConv)

# The surgeries at work. JAX keys its caches by it: nn.jit would else take a
# block of the plain model and of the replaced one for the same function.
_AT_WORK = jax.make_user_context(())
_CONV_CALL = inspect.unwrap(nn.Conv.__call__)


class Surgery:
  """Which convolutions to replace, and which ones have been met.

  What has been met is remembered over the calls: a trace taken from a cache
  meets nothing.
  """

  def __init__(self, rules: tuple[tuple[Where, Mapping[str, Any]], ...]):
    self.rules = rules
    # By path in the model: the convolution, and the rule that took it.
    self.met: dict[Path, tuple[nn.Conv, int | None]] = {}

  def choose(self, path: Path, conv: nn.Conv) -> int | None:
    """Returns the first rule that wants a convolution, None if none does."""
    for i, (where, _) in enumerate(self.rules):
      if where(path, conv):
        return i
    return None

  def intercept(self, root: Path, call, args, kwargs, context):
    """Runs one method of one module of the model; for nn.intercept_methods."""
    module, function = context.module, context.orig_method.func
    plain = isinstance(module, nn.Conv) and not isinstance(module, LAYERS)
    if not plain or context.method_name != '__call__':
      return call(*args, **kwargs)
    if module.path[: len(root)] != root:  # Shared with, and owned by, others.
      return call(*args, **kwargs)
    path = module.path[len(root) :]
    if function is _CONV_CALL:
      rule = self.choose(path, module)
      self.met[path] = module.clone(), rule
      if rule is None:
        return call(*args, **kwargs)
      return convolve(path, module, self.rules[rule][1], args, kwargs)
    # A subclass with a call of its own, around that of nn.Conv or without.
    out = call(*args, **kwargs)
    if path not in self.met and self.choose(path, module) is not None:
      raise ValueError(
          f'replace_conv: {names([path])}: {type(module).__name__} does not '
          'call nn.Conv.__call__, so AWConv cannot take its place; leave it '
          'out by `where`'
      )
    return out

  @contextlib.contextmanager
  def at_work(self, model: nn.Module) -> Iterator[None]:
    """Replaces what is called inside, below the path of the model."""
    if any(surgery is self for surgery in _AT_WORK.value):
      yield
      return
    root = model.path if model.scope is not None else ()
    with _AT_WORK((*_AT_WORK.value, self)):
      with nn.intercept_methods(functools.partial(self.intercept, root)):
        yield

  def check(self, model: nn.Module) -> None:
    """Raises ValueError if, after a call, a rule was broken or of no use."""
    self._check_not_met(
        traverse_util.flatten_dict(model.variables.get('params', {}))
    )
    matched = {rule for _, rule in self.met.values()}
    if not matched.issuperset(range(len(self.rules))):
      raise ValueError(
          'replace_conv: `where` matches no nn.Conv of the model; there are: '
          f'{names(self.met)}'
      )

  def _check_not_met(self, params: Mapping[Path, Any]) -> None:
    # nn.jit computes a block by the trace of another one with equal fields,
    # whatever their paths; their convolutions have equal names and kernels.
    shapes = {
        path[:-1]: np.shape(nn.meta.unbox(leaf))
        for path, leaf in params.items()
        if path[-1] == 'kernel'
    }
    for path in shapes.keys() - self.met.keys():
      twins = [
          (conv, rule)
          for twin, (conv, rule) in self.met.items()
          if (twin[-1:], shapes.get(twin)) == (path[-1:], shapes[path])
      ]
      wanted = {self.choose(path, conv) for conv, _ in twins}
      got = {rule for _, rule in twins}
      if twins and not wanted & got:
        raise ValueError(
            f'replace_conv: {names([path])} is computed by nn.jit with the '
            'trace of another block, for which `where` decided otherwise; '
            'let it decide alike for both or take nn.jit away'
        )
