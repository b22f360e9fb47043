"""BAM: scales every value by a gate of its channel and its position.

"BAM: Bottleneck Attention Module", https://arxiv.org/abs/1807.06514:

  y = x + x * M(x)                                          (equation 1)
  M(x) = sigmoid(Mc(x) * Ms(x)) or sigmoid(Mc(x) + Ms(x))   (equation 2)
  Mc(x) = W1 relu(norm(W0 mean_hw(x)))                      (equation 3)
  Ms(x) = f1x1(f3x3(f3x3(f1x1(x))))                         (equation 4)

where the f3x3 are dilated, and all f but the last have a norm and a ReLU. The
paper adds the branches and ends each with a norm; the authors' code multiplies
them and has the norms as above, and so have we.
"""

import operator
from typing import Annotated

import flax.linen as nn

from awconv_jax.errors import look_up
from awconv_jax.layers.gate import NormedGate, average
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import OneOf, PositiveInt

COMBINE = {'product': operator.mul, 'sum': operator.add}


class BAM(NormedGate):
  """Scales every value of x by 1 to 2; see `layers.gate` for how it is called.

  Meant to stand once after each stage but the last. It trains at batch size 1,
  but the channel branch does not see the image then: a batch norm over one
  value per channel returns its bias.

  Attributes:
    reduction: r; both branches have C // r channels inside, at least one.
    dilation: of the two 3x3 convolutions.
    combine: how the branches are joined, 'product' or 'sum'.
  """

  reduction: PositiveInt = 16
  dilation: PositiveInt = 4
  combine: Annotated[str, OneOf(COMBINE)] = 'product'

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    channels = x.shape[-1]
    hidden = max(channels // self.reduction, 1)
    a = average(x, valid_size)
    a = self.typed(nn.Dense, hidden, name='channel_reduce')(a)
    a = nn.relu(self.norm('channel_norm')(a))
    of_channel = self.typed(nn.Dense, channels, name='channel_expand')(a)

    a = x
    for i, size in enumerate((1, 3, 3), start=1):
      conv = self.typed(
          nn.Conv,
          hidden,
          (size, size),
          kernel_dilation=self.dilation,
          padding=size // 2 * self.dilation,
          name=f'spatial_conv{i}',
      )
      a = conv(mask_padding(a, valid_size))
      a = nn.relu(self.norm(f'spatial_norm{i}')(a))
    of_position = self.typed(nn.Conv, 1, (1, 1), name='spatial_conv4')(a)

    combine = look_up('combine', self.combine, COMBINE)
    return x * (1 + nn.sigmoid(combine(of_channel, of_position)))
