"""CBAM: scales the channels, then the positions, by gates of the activations.

"CBAM: Convolutional Block Attention Module", https://arxiv.org/abs/1807.06521:

  y = x * sigmoid(MLP(mean_hw(x)) + MLP(max_hw(x)))        (equation 2)
  z = y * sigmoid(norm(conv7x7([max_c(y); mean_c(y)])))    (equation 3)

where MLP(a) = W1 relu(W0 a) is the same for both. The norm, the order of the
maps and the biases of the MLP are those of the authors' code.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.layers.gate import NormedGate, average
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import PositiveInt, UnitFloat


def largest(x: jax.Array, axis: int) -> jax.Array:
  """Returns the largest values along an axis, which is kept with length one.

  The gradient goes to the first of equal values. That of `x.max` looks for the
  places where x equals it; where the compiler computes x anew for that, and
  rounds otherwise, there are none, and it divides zero by zero.
  """
  places = jnp.expand_dims(jnp.argmax(x, axis), axis)
  return jnp.take_along_axis(x, places, axis)


class CBAM(NormedGate):
  """Scales the channels of x, and then its positions; see `layers.gate`.

  The scale of the norm starts as zero, so that the gate of the positions starts
  as 1/2 everywhere.

  Attributes:
    reduction: r; the hidden layer has C // r channels, at least one.
    spatial_size: of the kernel that sees the positions.
    norm_momentum: as there, with another default.
  """

  reduction: PositiveInt = 16
  spatial_size: PositiveInt = 7
  norm_momentum: UnitFloat = 0.99

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    channels = x.shape[-1]
    hidden = max(channels // self.reduction, 1)
    inside = mask_padding(x, valid_size, fill=-jnp.inf)
    most = largest(inside.reshape(x.shape[0], -1, channels), 1)
    # As two positions of one image, so that both share the layers.
    gate = jnp.concatenate([average(x, valid_size), most[:, None]], axis=1)
    gate = nn.relu(self.typed(nn.Dense, hidden, name='reduce')(gate))
    gate = self.typed(nn.Dense, channels, name='expand')(gate)
    x = x * nn.sigmoid(gate.sum(1, keepdims=True))

    gate = jnp.concatenate([largest(x, 3), x.mean(-1, keepdims=True)], axis=-1)
    size = (self.spatial_size,) * 2
    gate = self.typed(nn.Conv, 1, size, use_bias=False, name='spatial_conv')(
        mask_padding(gate, valid_size)
    )
    zeros = nn.initializers.zeros
    return x * nn.sigmoid(self.norm('spatial_norm', scale_init=zeros)(gate))
