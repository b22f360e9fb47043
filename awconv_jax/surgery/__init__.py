"""AWConv inside Linen models that somebody else wrote."""

from awconv_jax.surgery.merge import merge_variables
from awconv_jax.surgery.replace import replace_conv

__all__ = ['merge_variables', 'replace_conv']
