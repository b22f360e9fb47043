"""Models with AW-convolutions, their code unchanged; plain weights in them."""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import inspect
from typing import Any

from flax import traverse_util
import flax.linen as nn
import numpy as np

from awconv_jax import errors
from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.options import options_of
from awconv_jax.surgery.interception import Path, Surgery, Where, names


def is_3x3(_: Path, conv: nn.Conv) -> bool:
  """Returns whether the kernel is 3x3, wherever the convolution is."""
  return conv.kernel_size == (3, 3)


def _methods_of(model_class: type[nn.Module]) -> Iterator[str]:
  """Yields the names of the methods by which a model can be entered."""
  yield from ('apply', 'init_with_output')
  fields = {f.name for f in dataclasses.fields(model_class)} | {'setup'}
  classes = model_class.__mro__[: model_class.__mro__.index(nn.Module)]
  for name in {name: None for c in classes for name in vars(c)}:
    function = inspect.getattr_static(model_class, name)
    if name in fields or not inspect.isfunction(function):
      continue
    # A name scope is entered from another method, and must stay what it is.
    kept = any(hasattr(function, m) for m in ('nowrap', 'compact_name_scope'))
    if name == '__call__' or not (kept or name.startswith('__')):
      yield name


def _subclass(base: type[nn.Module], surgery: Surgery) -> type[nn.Module]:
  """Returns base with every method run while the surgery is at work."""

  def override(name):
    # Not wrapped by Flax, for which it is then the method of base alone.
    @nn.nowrap
    @functools.wraps(getattr(base, name), updated=())
    def method(self, *args, **kwargs):
      with surgery.at_work(self):
        out = getattr(super(replaced, self), name)(*args, **kwargs)
      if name == '__call__' and (fault := surgery.fault(self)):
        raise ValueError(f'replace_conv: {fault}')
      return out

    return method

  # The name stays, since Flax names submodules after it.
  kept = ('__module__', '__qualname__', '__doc__')
  body = {name: getattr(base, name) for name in kept} | {'_surgery': surgery}
  body |= {name: override(name) for name in _methods_of(base)}
  replaced = type(base)(base.__name__, (base,), body)
  return replaced


def replace_conv(
    model: nn.Module,
    where: Where = is_3x3,
    *,
    layer: type[nn.Module] = AWConv,
    **options: Any,
) -> nn.Module:
  """Returns the model with chosen convolutions computed by another layer.

  By default that is `AWConv`:

    conv(I[n], K)  becomes  conv(I[n], K * (1 + A[n]))

  The model's code stays as it is. `kernel` and `bias` stay where they were, and
  with the same key have the same first values; `attention` is added beside
  them, in 'params' and, with norm='batch', in 'batch_stats'. So plain weights
  load, see `merge_variables`. The maps are sown as 'attention_maps' in
  'intermediates'.

  The attention's batch norm uses the statistics of the batch where the call may
  update 'batch_stats', and running ones else. A model without batch norm of its
  own, trained without `mutable=['batch_stats']`, thus keeps to the first
  running statistics: pass it, or choose norm='layer'.

  Seen is what runs inside the model's methods, `init` and `apply`: also shared
  modules, and under nn.jit, nn.remat, nn.vmap and nn.scan, where the
  collections above must be among the lifted ones. That nn.jit takes blocks of
  equal fields for one, which `where` tells apart by path, is an error. Not seen
  is a submodule that another model takes out and calls, as in `bound.conv1(x)`.
  Applied to what it returned, it adds a choice among the convolutions that are
  left. Its class is made on the spot, so that it cannot be pickled.

  Args:
    model: a Linen module that is not bound to variables.
    where: called with the path in the model, a tuple of names, and the bound
      `nn.Conv` (or subclass which calls `nn.Conv.__call__`); returns whether to
      replace it. By default every 3x3.
    layer: class of modules that map [N, H, W, C] as `nn.Conv` does, with as
      many of its fields as the convolutions set. It runs in the convolution's
      place, so that its parameters lie there; what it is made of, also of
      `nn.Conv`, stays. A `kernel` (and `bias`) of its own under these names
      takes the plain weights; all else is added.
    **options: fields of the layer which `nn.Conv` has not, such as gate.

  Returns:
    A module of a subclass of the model's class, with the same fields. It raises
    ValueError when called if `where` matches nothing or what the layer cannot
    compute (AWConv: other than two dimensions, input_dilation).

  Raises:
    ValueError: model is something else, or an option is unknown.

  Source: arXiv 2108.08205; the replacement in foreign models is ours.
  """
  if not isinstance(model, nn.Module) or model.scope is not None:
    raise ValueError(f'replace_conv: {model!r} is no Linen module, or bound')
  if not isinstance(layer, type) or not issubclass(layer, nn.Module):
    raise ValueError(f'replace_conv: {layer!r} is no class of Linen modules')
  of_conv = {field.name for field in dataclasses.fields(nn.Conv)}
  known = {k: v for k, v in options_of(layer).items() if k not in of_conv}
  for name in options:
    errors.look_up(f'option of {layer.__name__}', name, known)
  base, rules = type(model), ((where, layer, options),)
  if '_surgery' in vars(base):
    base, rules = base.__base__, (*vars(base)['_surgery'].rules, *rules)
  replaced = _subclass(base, Surgery(rules))
  fields = {f.name for f in dataclasses.fields(base) if f.init} - {'parent'}
  return replaced(**{name: getattr(model, name) for name in fields})


def _is_added(path: Path, initial: Mapping[Path, Any]) -> bool:
  """Returns whether a leaf is what a layer has beside a plain one's kernel."""
  of_plain = path[-1] in ('kernel', 'bias')
  return any(
      ('params', *path[1:i], 'kernel') in initial
      for i in range(1, len(path) - of_plain)
  )


def merge_variables(
    initial: Mapping[str, Any], plain: Mapping[str, Any]
) -> dict[str, Any]:
  """Puts the variables of a plain model into those of its AW form.

  With gate='tanh' and identity_start=True it computes exactly the same then.

  Args:
    initial: variables, {collection: tree}, fresh from `init` of the model with
      AWConv (or another layer that has parts beside a `kernel`), from
      `replace_conv` or written by hand.
    plain: variables of the model without it.

  Returns:
    Variables as `initial`: those of the layers' parts from there, all
    others from `plain`, as they are.

  Raises:
    ValueError: paths are missing in `plain`, have no place in `initial`, or
      another shape.
  """
  old, new = map(traverse_util.flatten_dict, (initial, plain))
  # A partitioned array is boxed.
  want, got = (
      {path: np.shape(nn.meta.unbox(leaf)) for path, leaf in flat.items()}
      for flat in (old, new)
  )
  faults = errors.some(
      f'{names(p)} ({got.get(p, "missing")} for {want.get(p, "nothing")})'
      for p in sorted(want | got)
      if got.get(p) != want.get(p) and (p in got or not _is_added(p, old))
  )
  if faults:
    raise ValueError(f'merge_variables: plain weights do not fit: {faults}')
  return traverse_util.unflatten_dict(old | new)
