"""ECA: scales channels by a gate of the averages of a few channels beside them.

"ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
https://arxiv.org/abs/1910.03151:

  y = x * sigmoid(conv1d(mean_hw(x)))  with a kernel of k channels,
  k = |log2(C) / gamma + b / gamma|, made odd (equation 12)
"""

import math

import flax.linen as nn

from awconv_jax.layers.gate import Gate, average
from awconv_jax.options import PositiveFloat, PositiveInt


class ECA(Gate):
  """Scales the channels of x; see `layers.gate` for how it is called.

  Attributes:
    gamma, b: of the rule by which the kernel grows with the channels.
    kernel_size: k, channels that a gate sees; None for that rule, cut to an
      integer, and one more if that is even, as the authors' code does. The
      paper says the nearest odd number.
  """

  gamma: PositiveFloat = 2
  b: float = 1
  kernel_size: PositiveInt | None = None

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    size = self.kernel_size
    if size is None:
      size = int(abs((math.log2(x.shape[-1]) + self.b) / self.gamma))
      size += size % 2 == 0
    gate = average(x, valid_size)[:, 0, 0, :, None]  # The channels are a line.
    conv = self.typed(nn.Conv, 1, (size,), use_bias=False, name='conv')
    return x * nn.sigmoid(conv(gate)[:, None, None, :, 0])
