"""AWConv inside NNX models that somebody else wrote."""

from collections.abc import Callable
from typing import Any, TypeVar

from flax import nnx

from awconv_jax.errors import InputError, some
from awconv_jax.nnx.aw_conv import AWConv, attention_of

M = TypeVar('M', bound=nnx.Module)
Path = tuple[str | int, ...]
Where = Callable[[Path, nnx.Conv], bool]


def is_3x3(_: Path, conv: nnx.Conv) -> bool:
  """Returns whether the kernel is 3x3, wherever the convolution is."""
  return conv.kernel_size == (3, 3)


def _names(paths):
  """Returns paths as one readable line."""
  return some(('/'.join(map(str, p)) or '()' for p in paths), 100) or 'none'


def replace_conv(
    model: M, where: Where = is_3x3, *, rngs: nnx.Rngs, **aw_options: Any
) -> M:
  """Turns chosen convolutions of a model into AWConv, in place.

    conv(I[n], K)  becomes  conv(I[n], K * (1 + A[n]))

  `kernel` and `bias` are the ones that were there; `attention` is added beside
  them. A convolution that is shared remains shared. They are as in `eval()` if
  all of the model that tells training from it is, such as `nnx.BatchNorm`; in a
  model that has nothing of the kind they train until `eval()` is called. Make
  the optimizer next: there are new parameters.

  Args:
    model: an NNX module.
    where: called with the path in the model, one of them where it is shared,
      and the `nnx.Conv`; returns whether to replace it. By default every 3x3.
      One of a subclass is refused.
    rngs: for the first values of the attention branches.
    **aw_options: options of `AWConv` which `nnx.Conv` has not, such as
      gate='tanh', identity_start=True, with which the model at first computes
      what it did.

  Returns:
    The model; a model that is itself an `nnx.Conv` becomes an AWConv.

  Raises:
    ValueError: `where` matches nothing, or what AWConv cannot compute. The
      model is then as it was.
  """
  convs = {
      path: module
      for path, module in nnx.iter_modules(model)
      if isinstance(module, nnx.Conv) and not isinstance(module, AWConv)
  }
  chosen = {path: conv for path, conv in convs.items() if where(path, conv)}
  if not chosen:
    raise InputError(
        f'replace_conv: `where` matches no nnx.Conv of the model: '
        f'{_names(convs)}'
    )
  added = {}
  for path, conv in chosen.items():
    if type(conv) is not nnx.Conv:
      raise InputError(
          f'replace_conv: {_names([path])}: {type(conv).__name__} is a class '
          'of its own, which it would lose; leave it out by `where`'
      )
    try:
      added[path] = attention_of(conv, rngs, aw_options)
    except ValueError as error:
      raise InputError(f'replace_conv: {_names([path])}: {error}') from error
  modes = {
      mode
      for _, module in nnx.iter_modules(model)
      for name in ('use_running_average', 'deterministic')
      if isinstance(mode := getattr(module, name, None), bool)
  }
  for path, attributes in added.items():
    attributes |= dict(use_running_average=modes == {True})
    # Of the same object, so that all who hold it hold an AWConv, whether in an
    # attribute, a list or a tuple.
    conv = chosen[path]
    conv.__class__ = AWConv
    for name, value in attributes.items():
      setattr(conv, name, value)
  return model
