"""CBAM: scales the channels, then the positions, by gates of the activations.

"CBAM: Convolutional Block Attention Module", https://arxiv.org/abs/1807.06521:

  y = x * sigmoid(MLP(mean_hw(x)) + MLP(max_hw(x)))        (equation 2)
  z = y * sigmoid(norm(conv7x7([max_c(y); mean_c(y)])))    (equation 3)

where MLP(a) = W1 relu(W0 a) is the same for both. The norm, the order of the
maps and the biases of the MLP are those of the authors' code.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax import options
from awconv_jax.layers.checks import check_call
from awconv_jax.layers.conv import batch_norm
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.valid_area import mask_padding


def largest(x: jax.Array, axis: int) -> jax.Array:
  """Returns the largest values along an axis, which is kept with length one.

  The gradient goes to the first of equal values. That of `x.max` looks for them
  in x; where the compiler computes x anew, and rounds otherwise, there are
  none, and it divides zero by zero.
  """
  places = jnp.expand_dims(jnp.argmax(x, axis), axis)
  return jnp.take_along_axis(x, places, axis)


class CBAM(nn.Module):
  """Scales the channels of x, and then its positions, at first by 1/2.

  Attributes:
    reduction: r; the hidden layer has C // r channels, at least one.
    spatial_size: of the kernel that sees the positions.
    norm_momentum, norm_epsilon: of the norm (momentum: share of the old).
    train: whether batch statistics are used; None: if the call may update them.
    dtype, param_dtype: of the computation, and of the parameters.
  """

  reduction: options.PositiveInt = 16
  spatial_size: options.PositiveInt = 7
  norm_momentum: options.Fraction = 0.99  # As in the authors' code.
  norm_epsilon: options.NonNegativeFloat = nn.BatchNorm.epsilon
  train: bool | None = None
  dtype: options.Dtype | None = None
  param_dtype: options.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    check_call(self, x)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dense = functools.partial(nn.Dense, **dtypes)
    channels = x.shape[-1]
    inside = mask_padding(x, valid_size, fill=-jnp.inf)
    most = largest(inside.reshape(x.shape[0], -1, channels), 1)
    mean = adaptive_average_pool(x, (1, 1), valid_size=valid_size)
    # As two positions of one image, so that both share the layers.
    gate = jnp.concatenate([mean.astype(x.dtype), most[:, None]], axis=1)
    gate = dense(max(channels // self.reduction, 1), name='reduce')(gate)
    gate = dense(channels, name='expand')(nn.relu(gate))
    x = x * nn.sigmoid(gate.sum(1, keepdims=True))

    gate = jnp.concatenate([largest(x, 3), x.mean(-1, keepdims=True)], axis=-1)
    size = (self.spatial_size,) * 2
    conv = nn.Conv(1, size, use_bias=False, name='spatial_conv', **dtypes)
    start = nn.initializers.zeros
    norm = batch_norm(self)(scale_init=start, name='spatial_norm')
    return x * nn.sigmoid(norm(conv(mask_padding(gate, valid_size))))
