"""AWConv for models in Flax NNX.

  from awconv_jax.nnx import AWConv, replace_conv

Not imported with `awconv_jax`, as Linen's users have no need of Flax NNX.
"""

from awconv_jax.nnx.aw_conv import AWConv
from awconv_jax.nnx.surgery import replace_conv
from awconv_jax.nnx.variables import from_linen, to_linen

__all__ = ['AWConv', 'from_linen', 'replace_conv', 'to_linen']
