"""The attention layers by name, and by their places in a network.

Each is `layer(x, valid_size=None)`, for x and a result of [N, H, W, C], and
valid_size as `ops.valid_area` tells: averages and maxima leave the padding out,
so that with the running statistics of its norms the output in an image's area
is that of the image alone; in batch statistics padding counts, too. A network
sets the fields dtype, param_dtype and train of those that have them.

A new one is a file beside this and a line here.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from awconv_jax.layers.attention_augmented import AugmentedConv
from awconv_jax.layers.bam import BAM
from awconv_jax.layers.cbam import CBAM
from awconv_jax.layers.eca import ECA
from awconv_jax.layers.squeeze_excite import SqueezeExcite

# On every block's branch, after its last norm, before the addition. These can
# refine the maps of an AW-convolution, too.
IN_BLOCK = {'se': SqueezeExcite, 'cbam': CBAM, 'eca': ECA}
# On the output of every stage before one that strides.
AFTER_STAGE = {'bam': BAM}
# In the place of the 3x3 convolutions of the last three stages.
AS_CONV = {'aa': AugmentedConv}
ATTENTION = IN_BLOCK | AFTER_STAGE | AS_CONV


def partial_of(layer: type, given: Mapping[str, Any], **fields: Any) -> partial:
  """Returns a layer with fields, and what it has of the given ones."""
  has = layer.__dataclass_fields__
  return partial(layer, **{k: v for k, v in given.items() if k in has} | fields)
