"""What convolutions share that give every sample a kernel of its own."""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import InputError
from awconv_jax.layers.checks import check_call
from awconv_jax.layers.conv import WRAPS, pair, spans_and_pads
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.aw_conv import IMPLEMENTATIONS, aw_conv
from awconv_jax.options import OneOf, PositiveInt

# Of attention branches, as in the code of ODConv's authors.
attention_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# Fields of nn.Conv that must be left out, and why.
_OWN = 'it has one for every sample, which no other convolution computes'
_REFUSED = {
    'conv_general_dilated': _OWN,
    'conv_general_dilated_cls': _OWN,
    'input_dilation': 'no form of it transposes; use nn.ConvTranspose',
}


def refuse_fields(layer: Any) -> None:
  """Raises InputError for a field of nn.Conv that such a layer cannot use."""
  for name, why in _REFUSED.items():
    value = getattr(layer, name)
    one = name == 'input_dilation' and pair(value) == (1, 1)
    if value is not None and not one:
      kind = type(layer).__name__
      raise InputError(f'{kind}: {name}={value!r} must be left out: {why}')


def masked(layer: Any, kernel: jax.Array) -> jax.Array:
  """Returns a kernel, or several along a first axis, times the layer's mask.

  Raises:
    InputError: the mask has another shape than a kernel.
  """
  if layer.mask is None:
    return kernel
  if np.shape(layer.mask) != kernel.shape[-4:]:
    got, want = np.shape(layer.mask), kernel.shape[-4:]
    kind = type(layer).__name__
    raise InputError(f'{kind}: mask is {got}, want {want}, as the kernel')
  return kernel * layer.mask  # Not in place: it may be NumPy's.


def convolve(
    layer: Any, x: jax.Array, kernel: jax.Array, maps: jax.Array, residual: bool
) -> jax.Array:
  """Returns `ops.aw_conv` of [N, H, W, C] as a layer's fields, of nn.Conv, say.

  Args:
    layer: with `implementation` and `chunk` of that operation.
    x: [N, H, W, C].
    kernel: [kh, kw, C / groups, D].
    maps: [N, kh, kw, G, D'].
    residual: of `ops.aw_conv`.
  """
  _, padding = spans_and_pads(layer, x.shape[1:3])
  if wrap := WRAPS.get(str(layer.padding).upper()):
    pads = (0, 0), *padding, (0, 0)
    x, padding = jnp.pad(x, pads, mode=wrap), 'VALID'
  return aw_conv(
      x,
      kernel,
      maps,
      strides=pair(layer.strides),
      padding=padding,
      dilation=pair(layer.kernel_dilation),
      groups=layer.feature_group_count,
      residual=residual,
      implementation=layer.implementation,
      chunk=layer.chunk,
      precision=layer.precision,
  )


class MixedConv(nn.Conv, kw_only=True):
  """A convolution whose kernel is mixed, for every sample, from a few experts.

    O[n] = conv(I[n], sum_e a[n, e] K_e)

  The base of layers that differ in how they compute a[n, e], and in what else
  they scale. They take the place of `nn.Conv` on [N, H, W, C]: the same fields
  and output shape. `kernel` is [experts, kh, kw, C / groups, D], each expert
  with the first values of a convolution's; a bias is mixed by the same a.

  The kernels are mixed first, as the papers do, which costs `experts`
  multiply-adds for a weight of the kernel, whatever the size of the image; a
  convolution for each expert would cost that for each position. Kernels for all
  samples are in memory then.

  Attributes:
    experts: how many kernels are mixed.
    implementation, chunk: of `ops.aw_conv`.
  """

  place = 'aw_conv'  # See `attention`.
  experts: PositiveInt = 4
  implementation: Annotated[str, OneOf(IMPLEMENTATIONS)] = 'auto'
  chunk: PositiveInt | None = None

  @nn.compact
  def __call__(
      self, x: jax.Array, *, valid_size: jax.Array | None = None
  ) -> jax.Array:
    """Returns [N, H', W', features] for x [N, H, W, C].

    valid_size is as in `ops.valid_area`: averages leave the padding out, while
    the convolution sees it as it is and wants it zero.
    """
    check_call(self, x)
    refuse_fields(self)
    return self.own(x, self.pooled(x, valid_size))

  def own(self, x: jax.Array, average: jax.Array) -> jax.Array:
    """Returns `mix` of x as its averages [N, C] say."""
    raise NotImplementedError

  def pooled(self, x: jax.Array, valid_size: jax.Array | None) -> jax.Array:
    """Returns the averages [N, C] of images [N, H, W, C]."""
    average = adaptive_average_pool(x, (1, 1), valid_size=valid_size)
    return average[:, 0, 0].astype(x.dtype)

  def dense(self, features: int, **fields: Any) -> nn.Dense:
    """Returns a dense layer with the dtypes of this."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    return nn.Dense(features, **dtypes, **fields)

  def _expert_param(self, name, init, shape):
    """Returns a parameter [experts, *shape], each expert initialised alone."""

    def all_experts(key, shape, dtype):
      keys = jax.random.split(key, shape[0])
      return jax.vmap(lambda key: init(key, shape[1:], dtype))(keys)

    shape = self.experts, *shape
    return self.param(name, all_experts, shape, self.param_dtype)

  def mix(
      self,
      x: jax.Array,
      weights: jax.Array | None,
      taps: jax.Array | None = None,
  ) -> jax.Array:
    """Convolves every sample with its own mixture.

    Args:
      x: [N, H, W, C].
      weights: a, [N, experts]; None is 1 for a single expert. They are sown as
        'kernel_weights' in 'intermediates'.
      taps: what the kernel's positions are scaled by, [N, kh, kw]; None is 1.

    Returns:
      [N, H', W', features].
    """
    inputs = x.shape[-1] // self.feature_group_count
    shape = *pair(self.kernel_size), inputs, self.features
    kernel = self._expert_param('kernel', self.kernel_init, shape)
    bias = None
    if self.use_bias:
      bias = self._expert_param('bias', self.bias_init, shape[-1:])
    arrays = x, kernel, bias, weights, taps
    arrays = self.promote_dtype(*arrays, dtype=self.dtype)
    x, kernel, bias, weights, taps = arrays
    kernel = masked(self, kernel)
    if weights is None:
      weights = jnp.ones((x.shape[0], 1), x.dtype)
    self.sow('intermediates', 'kernel_weights', weights)
    if self.experts == 1:
      maps = weights[:, :, None, None, None]
      maps = jnp.broadcast_to(maps, (x.shape[0], *shape[:2], 1, 1))
      kernel = kernel[0]
    else:
      # As one product of matrices, in whose order the kernels lie.
      maps = jnp.tensordot(weights, kernel, 1, precision=self.precision)
      kernel = jnp.ones(shape, x.dtype)
    if taps is not None:
      maps = maps * taps[..., None, None]
    out = convolve(self, x, kernel, maps, residual=False)
    if bias is not None:
      out += (weights @ bias)[:, None, None]
    return out
