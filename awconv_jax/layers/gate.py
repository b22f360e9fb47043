"""What the layers share that scale an activation by a gate made from it.

Each is `layer(x, valid_size=None)`, for x and a result of [N, H, W, C], and
valid_size as `ops.valid_area` tells: averages and maxima leave the padding out,
so that with the running statistics of its norms the output in an image's area
is that of the image alone.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.options import Dtype, NonNegativeFloat, UnitFloat


class Gate(nn.Module, kw_only=True):
  """The fields of all of them.

  Attributes:
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32

  @nn.nowrap
  def typed(self, layer: type, *args, **fields) -> nn.Module:
    """Returns a layer of these dtypes."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    return layer(*args, **fields, **dtypes)


class NormedGate(Gate, kw_only=True):
  """The fields of those with batch norms.

  Attributes:
    norm_momentum, norm_epsilon: of the norms (momentum: share of the old).
    train: whether batch statistics are used, in which padding counts, too.
      None: True if the call may update 'batch_stats'.
  """

  norm_momentum: UnitFloat = 0.9
  norm_epsilon: NonNegativeFloat = 1e-5
  train: bool | None = None

  @nn.nowrap
  def norm(self, name: str, **fields) -> nn.Module:
    """Returns a batch norm."""
    train = self.train
    if train is None:
      train = self.is_mutable_collection('batch_stats')
    return self.typed(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=self.norm_momentum,
        epsilon=self.norm_epsilon,
        name=name,
        **fields,
    )


def average(x: jax.Array, valid_size: jax.Array | None) -> jax.Array:
  """Returns the channels' averages, [N, 1, 1, C] in the dtype of x."""
  return adaptive_average_pool(x, (1, 1), valid_size=valid_size).astype(x.dtype)
