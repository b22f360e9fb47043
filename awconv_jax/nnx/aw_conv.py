"""AWConv as an NNX module.

It holds the variables, and the layer of `layers.aw_conv` is the pure function
of them: one computes exactly what the other does.
"""

from collections.abc import Mapping, Sequence
import inspect
from typing import Any

from flax import nnx
import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.errors import InputError, look_up
from awconv_jax.layers import aw_conv as linen
from awconv_jax.layers.checks import check_sizes
from awconv_jax.layers.conv import pair
from awconv_jax.nnx.variables import to_linen
from awconv_jax.options import options_of

# Fields that the Linen layer has beyond `nn.Conv`, and their defaults. Whether
# it trains is said as NNX does.
OPTIONS = {
    name: option.default
    for name, option in options_of(linen.AWConv).items()
    if name != 'train'
}
# Those of `nnx.Conv` that are read when it is called.
_FIELDS = (
    *('kernel_size', 'strides', 'padding', 'input_dilation', 'use_bias'),
    *('kernel_dilation', 'feature_group_count', 'mask', 'dtype', 'param_dtype'),
    'precision',
)
_SIDE = 256  # Of an image that is never computed; any padding fits it.


def _function(conv: nnx.Conv, options: Mapping[str, Any]) -> linen.AWConv:
  """Returns the layer whose variables `conv` holds, or part of them."""
  fields = {name: getattr(conv, name) for name in _FIELDS}
  # NNX has it take the arrays as one argument.
  fields['promote_dtype'] = lambda *a, dtype: conv.promote_dtype(a, dtype=dtype)
  return linen.AWConv(features=conv.out_features, **fields, **options)


def attention_of(
    conv: nnx.Conv, rngs: nnx.Rngs, options: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the attributes that make an AWConv of an `nnx.Conv`.

  ValueError where there is no such layer; see `layers.aw_conv`.
  """
  for name in options:
    look_up('option of AWConv', name, OPTIONS)
  for name, default in (
      ('conv_general_dilated', lax.conv_general_dilated),
      ('preferred_element_type', None),
  ):
    if (value := getattr(conv, name)) is not default:
      raise InputError(f'AWConv: {name}={value!r} must be left out')
  options = OPTIONS | options
  # Only the shapes of the others are needed, and they are not computed.
  layer = _function(conv, options).clone(kernel_init=nn.initializers.zeros)
  image = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, conv.in_features), jnp.float32)
  variables = layer.lazy_init(rngs.params(), image)
  attributes = nnx.bridge.variables.linen_vars_to_nnx_attrs(variables)
  branches = {k: v for k, v in attributes.items() if isinstance(v, dict)}
  own = dict(aw_options=tuple(options.items()), use_running_average=False)
  return own | _modules(branches)


def _modules(tree):
  """Returns the tree's first level, with modules for what is below it."""
  return {
      k: nnx.Dict(_modules(v)) if isinstance(v, dict) else v
      for k, v in tree.items()
  }


class AWConv(nnx.Conv):
  """A two-dimensional convolution with per-sample attention on its kernel.

    O[n] = conv(I[n], K * (1 + A[n]))

  Takes the place of `nnx.Conv`: the same arguments and output shape, `kernel`
  and `bias` under the same names, and of the same values for the same `rngs`.
  The attention branch lies under `attention`, its running statistics are
  `nnx.BatchStat`: `train()` has it use and move those of the batch (at first
  it does), `eval()` the running ones. `nnx.capture(layer, nnx.Intermediate)`
  returns the maps as 'attention_maps', [N, kh, kw, G, D'].

  Args:
    in_features, out_features, kernel_size, ...: as of `nnx.Conv`, but
      kernel_size may be one number for both axes, and input_dilation,
      conv_general_dilated and preferred_element_type must be left out.
    rngs: the stream 'params' is used, for the attention branch after the
      kernel and the bias.
    **options: fields of `awconv_jax.AWConv`, such as expansion=4, with its
      defaults. They, with their values, are the attribute `aw_options`.

  Raises:
    ValueError: a name is unknown, or fields exclude each other; says which.

  Source: https://arxiv.org/abs/2108.08205; see `layers.aw_conv`.
  """

  aw_options: tuple[tuple[str, Any], ...]  # Not a dict, for jit hashes them.
  use_running_average: bool

  def __init__(
      self,
      in_features: int,
      out_features: int,
      kernel_size: int | Sequence[int],
      strides: int | Sequence[int] | None = 1,
      *,
      rngs: nnx.Rngs,
      **options: Any,
  ):
    known = OPTIONS | inspect.signature(nnx.Conv.__init__).parameters
    for name in options:
      look_up('option of AWConv', name, known)
    own = {name: options.pop(name) for name in OPTIONS if name in options}
    check_sizes(
        'AWConv',
        in_features=in_features,
        out_features=out_features,
        kernel_size=kernel_size,
    )
    sizes = pair(kernel_size)
    super().__init__(
        in_features, out_features, sizes, strides, rngs=rngs, **options
    )
    for name, value in attention_of(self, rngs, own).items():
      setattr(self, name, value)

  def set_view(self, use_running_average: bool | None = None):
    """For `nnx.view`.

    Args:
      use_running_average: whether the running statistics are used, and stay.
    """
    if use_running_average is not None:
      self.use_running_average = use_running_average

  def __call__(
      self,
      inputs: jax.Array,
      use_running_average: bool | None = None,
      valid_size: jax.Array | None = None,
  ) -> jax.Array:
    """Convolves every sample with its own kernel.

    Args:
      inputs: [..., H, W, C] with any number of leading (batch) axes.
      use_running_average: in place of what `train()` or `eval()` have set.
      valid_size: int [..., 2], see `ops.valid_area`; A is computed from that
        area alone.

    Returns:
      [..., H', W', out_features].
    """
    if (got := jnp.shape(inputs))[-1:] != (self.in_features,):
      raise InputError(
          f'AWConv: the input is {got}, want in_features={self.in_features} '
          'channels in the last axis'
      )
    if use_running_average is None:
      use_running_average = self.use_running_average
    # Outside of nnx.capture maps would pile up in the module.
    captures = hasattr(self, '__captures__')
    out, moved = _function(self, dict(self.aw_options)).apply(
        to_linen(self),
        inputs,
        train=not use_running_average,
        valid_size=valid_size,
        mutable=['batch_stats'] * (not use_running_average)
        + ['intermediates'] * captures,
    )
    if captures:
      (maps,) = moved.pop('intermediates')['attention_maps']
      self.sow(nnx.Intermediate, 'attention_maps', maps)
    if moved:
      state = nnx.state(self, nnx.BatchStat)
      new = jax.tree.map(lax.stop_gradient, moved['batch_stats'])
      nnx.replace_by_pure_dict(state, new)
      nnx.update(self, state)
    return out
