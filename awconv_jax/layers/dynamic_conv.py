"""Dynamic convolution: a kernel mixed for every sample by a softmax.

"Dynamic Convolution: Attention over Convolution Kernels",
https://arxiv.org/abs/1912.03458:

  O[n] = conv(I[n], a_1[n] K_1 + ... + a_E[n] K_E)
  a[n] = softmax(W2 relu(W1 mean_hw(I[n])) / t)
"""

import flax.linen as nn
import jax

from awconv_jax.layers.own_kernel import MixedConv, attention_init
from awconv_jax.options import PositiveFloat, PositiveInt


class DynamicConv(MixedConv):
  """Mixes the kernel of every sample by a softmax; see `MixedConv`.

  The paper lowers the temperature t linearly from 30 to 1 over the first ten
  epochs. Here it is fixed: a schedule would make the layer depend on the step.
  30 is the paper's choice for a fixed one. Neither W has a bias.

  Attributes:
    experts: E, how many kernels are mixed.
    reduction: the hidden layer has C // reduction channels, at least one.
    temperature: t; a large one mixes all kernels alike.
  """

  experts: PositiveInt = 4
  reduction: PositiveInt = 4
  temperature: PositiveFloat = 30.0

  def own(self, x: jax.Array, average: jax.Array) -> jax.Array:
    plain = dict(use_bias=False, kernel_init=attention_init)
    hidden = max(average.shape[-1] // self.reduction, 1)
    a = self.dense(hidden, **plain, name='squeeze')(average)
    a = self.dense(self.experts, **plain, name='score')(nn.relu(a))
    return self.mix(x, nn.softmax(a / self.temperature))
