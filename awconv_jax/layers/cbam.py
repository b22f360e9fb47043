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

from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import Dtype, NonNegativeFloat, PositiveInt, UnitFloat


def largest(x: jax.Array, axis: int) -> jax.Array:
  """Returns the largest values along an axis, which is kept with length one.

  The gradient goes to the first of equal values. That of `x.max` looks for the
  places where x equals it; where the compiler computes x anew for that, and
  rounds otherwise, there are none, and it divides zero by zero.
  """
  places = jnp.expand_dims(jnp.argmax(x, axis), axis)
  return jnp.take_along_axis(x, places, axis)


class CBAM(nn.Module):
  """Scales the channels of x, and then its positions.

  The scale of the norm starts as zero, so that the gate of the positions starts
  as 1/2 everywhere.

  Attributes:
    reduction: r; the hidden layer has C // r channels, at least one.
    spatial_size: of the kernel that sees the positions.
    norm_momentum, norm_epsilon: of the norm (momentum: share of the old).
    train: whether batch statistics are used, in which padding counts, too.
      None: True if the call may update 'batch_stats'.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  reduction: PositiveInt = 16
  spatial_size: PositiveInt = 7
  norm_momentum: UnitFloat = 0.99
  norm_epsilon: NonNegativeFloat = 1e-5
  train: bool | None = None
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32

  def _channel_gate(self, x, valid_size):
    """Returns [N, 1, 1, C]."""
    channels = x.shape[-1]
    dense = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    hidden = max(channels // self.reduction, 1)
    mean = adaptive_average_pool(x, (1, 1), valid_size=valid_size)
    inside = mask_padding(x, valid_size, fill=-jnp.inf)
    most = largest(inside.reshape(x.shape[0], -1, channels), 1)
    # As two positions of one image, so that both share the layers.
    gate = jnp.concatenate([mean.astype(x.dtype), most[:, None]], axis=1)
    gate = nn.relu(nn.Dense(hidden, name='reduce', **dense)(gate))
    gate = nn.Dense(channels, name='expand', **dense)(gate)
    return nn.sigmoid(gate.sum(1, keepdims=True))

  def _spatial_gate(self, x, valid_size):
    """Returns [N, H, W, 1]."""
    train = self.train
    if train is None:
      train = self.is_mutable_collection('batch_stats')
    options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    gate = jnp.concatenate([largest(x, 3), x.mean(-1, keepdims=True)], axis=-1)
    gate = nn.Conv(
        1,
        (self.spatial_size, self.spatial_size),
        use_bias=False,
        name='spatial_conv',
        **options,
    )(mask_padding(gate, valid_size))
    gate = nn.BatchNorm(
        use_running_average=not train,
        momentum=self.norm_momentum,
        epsilon=self.norm_epsilon,
        scale_init=nn.initializers.zeros,
        name='spatial_norm',
        **options,
    )(gate)
    return nn.sigmoid(gate)

  @nn.compact
  def __call__(
      self, x: jax.Array, *, valid_size: jax.Array | None = None
  ) -> jax.Array:
    """Scales the channels and the positions of each image.

    Args:
      x: [N, H, W, C].
      valid_size: int [N, 2], height and width of the image from the top left
        where the rest of it is padding. With the running statistics the output
        in that area is that of the image alone.

    Returns:
      [N, H, W, C].

    Raises:
      ValueError: the shape of valid_size does not fit.
    """
    x = x * self._channel_gate(x, valid_size)
    return x * self._spatial_gate(x, valid_size)
