"""AWConv inside Linen models that somebody else wrote."""

from awconv_jax.surgery.replace import merge_variables, replace_conv

__all__ = ['merge_variables', 'replace_conv']
