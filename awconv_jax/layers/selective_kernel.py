"""SK: convolutions of several sizes, chosen between for each channel.

"Selective Kernel Networks", https://arxiv.org/abs/1903.06586:

  U_b = relu(norm(conv_b(I)))                              split
  z = relu(norm(W mean_hw(U_1 + U_2 + ...)))               fuse  (1 to 4)
  O = sum_b a_b U_b,   a = softmax over b of V_b z         select (5 and 6)
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.layers.checks import check_call
from awconv_jax.layers.conv import (
    NORM_MOMENTUM,
    WRAPS,
    Conv,
    batch_norm,
    pair,
    spans_and_pads,
    valid_output,
)
from awconv_jax.layers.own_kernel import refuse_fields
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.options import Fraction, NonNegativeFloat, PositiveInt


class SelectiveKernelConv(nn.Conv, kw_only=True):
  """Takes the place of `nn.Conv` on [N, H, W, C]: the same fields.

  Branch b has a kernel of the convolution's size, with b times its dilation and
  padded by as much more: of a 3x3, the second sees 5x5 and the third 7x7, as in
  the paper. Fields of `nn.Conv` are those of every branch.

  Its output is not below 0. In the paper the next convolution follows at once;
  here a block's norm and ReLU stand between. At batch size 1 the choice does
  not depend on the image in training: a norm over one value returns its bias.

  Attributes:
    branches: M, how many convolutions there are.
    reduction: r; z has features // r channels.
    min_hidden: L, the least number of these.
    norm_momentum, norm_epsilon: of the norms (momentum: share of the old).
    train: whether batch statistics are used; None: if the call may update them.
  """

  place = 'aw_conv'  # See `attention`.
  branches: PositiveInt = 2
  reduction: PositiveInt = 16
  min_hidden: PositiveInt = 32
  norm_momentum: Fraction = NORM_MOMENTUM
  norm_epsilon: NonNegativeFloat = nn.BatchNorm.epsilon
  train: bool | None = None

  def _branch(self, x, number, spans, pads, norm):
    """Returns U of a branch, counted from 1."""
    names = {f.name for f in dataclasses.fields(nn.Conv)} - {'parent', 'name'}
    fields = {name: getattr(self, name) for name in names}
    fields['kernel_size'] = pair(self.kernel_size)
    dilation = pair(self.kernel_dilation)
    fields['kernel_dilation'] = tuple(number * d for d in dilation)
    if str(self.padding).upper() not in WRAPS:  # These follow the dilation.
      more = [(number - 1) * span for span in spans]
      fields['padding'] = [
          (low + extra // 2, high + extra - extra // 2)
          for (low, high), extra in zip(pads, more, strict=True)
      ]
    u = Conv(**fields, name=f'branch{number}_conv')(x)
    return nn.relu(norm(name=f'branch{number}_norm')(u))

  @nn.compact
  def __call__(
      self, x: jax.Array, *, valid_size: jax.Array | None = None
  ) -> jax.Array:
    """Returns [N, H', W', features] for x [N, H, W, C].

    valid_size is as in `ops.valid_area`: averages leave the padding out, while
    the convolutions see it as it is and want it zero.
    """
    check_call(self, x)
    refuse_fields(self)
    norm, strides = batch_norm(self), pair(self.strides)
    spans, pads = spans_and_pads(self, x.shape[1:3])
    branches = jnp.stack(
        [
            self._branch(x, number, spans, pads, norm)
            for number in range(1, self.branches + 1)
        ],
        axis=-2,
    )  # [N, H', W', M, D]
    seen = branches.sum(-2)
    if valid_size is not None:
      valid_size = valid_output(valid_size, pads, spans, strides, seen.shape)
    plain = dict(use_bias=False, kernel_init=nn.initializers.normal(0.01))
    dense = functools.partial(
        nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype, **plain
    )
    z = adaptive_average_pool(seen, (1, 1), valid_size=valid_size)
    z = z[:, 0, 0].astype(seen.dtype)
    hidden = max(self.features // self.reduction, self.min_hidden)
    z = nn.relu(norm(name='norm')(dense(hidden, name='squeeze')(z)))
    scores = dense(self.branches * self.features, name='score')(z)
    scores = scores.reshape(-1, 1, 1, self.branches, self.features)
    return (branches * nn.softmax(scores, axis=-2)).sum(-2)
