"""ODConv: a kernel mixed, and scaled along each of its axes, for every sample.

"Omni-Dimensional Dynamic Convolution", https://arxiv.org/abs/2209.07947:

  O[n] = conv(I[n], sum_e w[n, e] s[n] c[n] f[n] K_e)       (equation 2)

with s for each position in the kernel, c for each input and f for each output
channel, all sigmoids, and the softmax w over the kernels. In the paper each
kernel could have its own s, c and f; in the authors' code they share them, and
so do ours. All come from relu(norm(W mean_hw(I[n]))).
"""

import flax.linen as nn
import jax

from awconv_jax.layers.conv import NORM_MOMENTUM, batch_norm, pair
from awconv_jax.layers.own_kernel import MixedConv, attention_init
from awconv_jax.options import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)


class ODConv(MixedConv):
  """Mixes and scales the kernel of every sample; see `MixedConv`.

  As in the authors' code, a kernel of one position has no s, a depthwise
  convolution no f, and a single kernel no w; and c and f scale the input and
  the output, a bias included, which is the same and cheaper. At batch size 1
  its branch does not see the image in training: a norm over one value returns
  its bias.

  Attributes:
    experts: E, how many kernels are mixed: 1 and 4 in the paper.
    reduction: r; the branch has C // r channels inside.
    min_hidden: the least number of these.
    temperature: what all logits are divided by. The authors lower it from 30 to
      1 over the first epochs; here it is fixed: at 30 samples have nearly the
      same kernel at first, at 1 a small network learned less (docs/results.md).
    norm_momentum, norm_epsilon: of the norm (momentum: share of the old).
    train: whether batch statistics are used; None: if the call may update them.
  """

  experts: PositiveInt = 4
  reduction: PositiveInt = 16
  min_hidden: PositiveInt = 16
  temperature: PositiveFloat = 30.0
  norm_momentum: Fraction = NORM_MOMENTUM
  norm_epsilon: NonNegativeFloat = nn.BatchNorm.epsilon
  train: bool | None = None

  def own(self, x: jax.Array, average: jax.Array) -> jax.Array:
    channels, (kh, kw) = x.shape[-1], pair(self.kernel_size)
    hidden = max(channels // self.reduction, self.min_hidden)
    init = dict(kernel_init=attention_init)
    a = self.dense(hidden, use_bias=False, **init, name='squeeze')(average)
    a = nn.relu(batch_norm(self)(name='norm')(a))

    def logits(features, name):
      return self.dense(features, **init, name=name)(a) / self.temperature

    weights = taps = None
    if self.experts > 1:
      weights = nn.softmax(logits(self.experts, 'of_kernel'))
    if kh * kw > 1:
      taps = nn.sigmoid(logits(kh * kw, 'of_position')).reshape(-1, kh, kw)
    scale = nn.sigmoid(logits(channels, 'of_input'))
    out = self.mix(x * scale[:, None, None], weights, taps)
    if not self.feature_group_count == channels == self.features:
      out *= nn.sigmoid(logits(self.features, 'of_output'))[:, None, None]
    return out
