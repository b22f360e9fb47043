"""SimAM: scales every value by how far it stands out of its channel.

"SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural
Networks", ICML 2021, https://proceedings.mlr.press/v139/yang21o.html:

  y = x * sigmoid((x - m)^2 / (4 (v + lambda)) + 1/2)

with the mean m and the variance v of each channel of an image (equations 5 to
7). As in the authors' code v is that of M - 1, for M positions.
"""

import flax.linen as nn
import jax.numpy as jnp

from awconv_jax.layers.checks import check_call
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.valid_area import as_valid_size, mask_padding
from awconv_jax.options import PositiveFloat


class SimAM(nn.Module):
  """Scales the values of x; valid_size is as in `ops.valid_area`.

  It has no parameters. The authors put it after the 3x3 convolution of a block,
  before the norm; here it stands where all layers with its place do.

  Attributes:
    regularization: lambda, which keeps quiet channels from all standing out.
      The default is that of the paper; the authors' runs on ImageNet have 0.1.
  """

  regularization: PositiveFloat = 1e-4

  def __call__(self, x, *, valid_size=None):
    check_call(self, x)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = adaptive_average_pool(wide, (1, 1), valid_size=valid_size)
    squares = jnp.square(wide - mean)
    size = as_valid_size(valid_size, x.shape)
    others = jnp.maximum(size.prod(-1) - 1, 1)[:, None, None, None]
    total = mask_padding(squares, valid_size).sum((1, 2), keepdims=True)
    energy = squares / (4 * (total / others + self.regularization)) + 0.5
    return x * nn.sigmoid(energy).astype(x.dtype)
