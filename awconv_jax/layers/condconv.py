"""CondConv: a kernel mixed for every sample by weights that need not sum to 1.

"CondConv: Conditionally Parameterized Convolutions for Efficient Inference",
https://arxiv.org/abs/1904.04971:

  O[n] = conv(I[n], a_1[n] K_1 + ... + a_E[n] K_E)
  a[n] = sigmoid(R mean_hw(I[n]))
"""

import flax.linen as nn
import jax

from awconv_jax.layers.own_kernel import MixedConv
from awconv_jax.options import PositiveInt


class CondConv(MixedConv):
  """Mixes the kernel of every sample by independent gates; see `MixedConv`.

  The routing R is a dense layer with a bias, as in the authors' code. There all
  convolutions of a block share one; here each has its own, as in the equations.

  Attributes:
    experts: E, how many kernels are mixed; 8 in most of the paper's networks.
  """

  experts: PositiveInt = 8

  def own(self, x: jax.Array, average: jax.Array) -> jax.Array:
    init = nn.initializers.glorot_uniform()
    routing = self.dense(self.experts, kernel_init=init, name='routing')
    return self.mix(x, nn.sigmoid(routing(average)))
