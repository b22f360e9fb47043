"""Gather-excite: scales values by a gate of what is gathered around them.

"Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks",
https://arxiv.org/abs/1810.12348:

  y = x * sigmoid(interpolate(gather(x)))

Its three forms, by the paper's names:

  theta_minus: averages, without parameters.
  theta: depthwise convolutions, with a norm after each and ReLU between them.
  theta_plus: these, and the two layers of squeeze-and-excitation.

The norms and ReLUs, and which layers have biases, are those of the authors'
models.
"""

import functools
from typing import Annotated

import flax.linen as nn
from flax.linen.dtypes import promote_dtype
import jax.numpy as jnp

from awconv_jax import options
from awconv_jax.errors import InputError, look_up
from awconv_jax.layers.checks import check_call
from awconv_jax.layers.conv import NORM_MOMENTUM, batch_norm
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.resample import nearest, strided_average
from awconv_jax.ops.valid_area import as_valid_size, mask_padding

# Whether parameters gather, and whether two layers excite.
FORMS = {
    'theta_minus': (False, False),
    'theta': (True, False),
    'theta_plus': (True, True),
}


class WholeImage(nn.Module):
  """A depthwise convolution whose one window is the image.

  The kernel is as large as the images at init. A smaller image is seen as if
  zeros followed it; a larger one raises InputError.
  """

  dtype: options.Dtype | None = None
  param_dtype: options.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Returns [N, 1, 1, C] for x [N, H, W, C]."""
    shape = *x.shape[1:3], 1, x.shape[3]
    if self.has_variable('params', 'kernel'):
      shape = self.get_variable('params', 'kernel').shape
    init = nn.initializers.lecun_normal()
    kernel = self.param('kernel', init, shape, self.param_dtype)
    if x.shape[1] > shape[0] or x.shape[2] > shape[1]:
      raise InputError(
          'GatherExcite: with parameters and extent=None it sees images of at '
          f'most {shape[:2]}, as at init, not {x.shape[1:3]}; make it for the '
          'largest, or use extent=8'
      )
    x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
    kernel = kernel[: x.shape[1], : x.shape[2], 0]
    return jnp.einsum('nhwc,hwc->nc', x, kernel)[:, None, None]


class GatherExcite(nn.Module):
  """Scales the values of x; valid_size is as in `ops.valid_area`.

  With parameters and over the whole image it has a weight for each of its
  positions, and each norm sees one value of an image: at batch size 1 it then
  learns nothing but a bias in training.

  Attributes:
    form: 'theta_minus', 'theta' or 'theta_plus', see above.
    extent: e; a cell sees (2 e - 1)^2 positions (theta_minus), and there is one
      for every e-th; with parameters a power of two, log2(e) convolutions of
      stride 2. None for one cell that sees the whole image.
    reduction: r of theta_plus; its hidden layer has C // r channels, at least
      one.
    norm_momentum, norm_epsilon: of the norms (momentum: share of the old).
    train: whether batch statistics are used; None: if the call may update them.
    dtype, param_dtype: of the computation, and of the parameters.
  """

  form: Annotated[str, options.OneOf(FORMS)] = 'theta_minus'
  extent: options.PositiveInt | None = None
  reduction: options.PositiveInt = 16
  norm_momentum: options.Fraction = NORM_MOMENTUM
  norm_epsilon: options.NonNegativeFloat = nn.BatchNorm.epsilon
  train: bool | None = None
  dtype: options.Dtype | None = None
  param_dtype: options.Dtype = jnp.float32

  def _average(self, x, valid_size):
    """Returns the average of what each cell sees, [N, h, w, C]."""
    if self.extent is None:
      return adaptive_average_pool(x, (1, 1), valid_size=valid_size)
    size = [-(-length // self.extent) for length in x.shape[1:3]]
    strides = self.extent, self.extent
    return strided_average(x, size, strides, valid_size=valid_size)

  def _convolve(self, x, valid_size):
    """Returns what convolutions gather for each cell, [N, h, w, C]."""
    channels, extent = x.shape[-1], self.extent
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    if extent is None:
      layers = [WholeImage(**dtypes, name='gather1')]
    elif extent & (extent - 1) or extent == 1:
      raise InputError(
          f'GatherExcite: extent={extent} must be a power of two, as each of '
          f'the convolutions of form={self.form!r} halves the image; or None'
      )
    else:
      how = dict(strides=2, padding=1, feature_group_count=channels)
      conv = functools.partial(nn.Conv, channels, (3, 3), use_bias=False, **how)
      steps = range(1, extent.bit_length())
      layers = [conv(**dtypes, name=f'gather{i}') for i in steps]
    if valid_size is not None:
      valid_size = as_valid_size(valid_size, x.shape)
    for i, layer in enumerate(layers, start=1):
      x = nn.relu(x) if i > 1 else x
      x = batch_norm(self)(name=f'norm{i}')(layer(mask_padding(x, valid_size)))
      valid_size = None if valid_size is None else -(-valid_size // 2)
    return x

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    check_call(self, x)
    convolves, excites = look_up('form', self.form, FORMS)
    gather = self._convolve if convolves else self._average
    gate = gather(x, valid_size).astype(x.dtype)
    if excites:
      dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
      dense = functools.partial(nn.Dense, **dtypes)
      hidden = max(x.shape[-1] // self.reduction, 1)
      gate = dense(hidden, name='reduce')(nn.relu(gate))
      gate = dense(x.shape[-1], name='expand')(nn.relu(gate))
    if self.extent is not None:
      gate = nearest(gate, x.shape, self.extent, valid_size)
    return x * nn.sigmoid(gate)
