"""Squeeze-and-excitation: scales channels by a gate of their global average.

"Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507:

  y = x * sigmoid(W2 relu(W1 mean_hw(x)))
"""

import flax.linen as nn

from awconv_jax.layers.gate import Gate, average
from awconv_jax.options import PositiveInt


class SqueezeExcite(Gate):
  """Scales the channels of x; see `layers.gate` for how it is called.

  Attributes:
    reduction: r; the hidden layer has C // r channels, at least one.
  """

  reduction: PositiveInt = 16

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    channels = x.shape[-1]
    hidden = max(channels // self.reduction, 1)
    gate = average(x, valid_size)
    gate = nn.relu(self.typed(nn.Dense, hidden, name='reduce')(gate))
    gate = nn.sigmoid(self.typed(nn.Dense, channels, name='expand')(gate))
    return x * gate
