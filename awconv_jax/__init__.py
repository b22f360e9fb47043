"""AW-convolution (https://arxiv.org/abs/2108.08205) in JAX and Flax."""

from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.models import create as create_model
from awconv_jax.models import create_detector
from awconv_jax.ops.aw_conv import aw_conv
from awconv_jax.surgery import merge_variables, replace_conv

__all__ = [
    'AWConv',
    'aw_conv',
    'create_detector',
    'create_model',
    'merge_variables',
    'replace_conv',
]
__version__ = '0.1.0'
