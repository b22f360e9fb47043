"""The earlier attention modules by name, and their places in a network.

place    where it acts
block    on every block's branch, after its last norm, before the addition
stage    on the output of every stage before one that strides
conv     in the place of the 3x3 convolutions of the last three stages
"""

import dataclasses
import functools
from typing import Any

from awconv_jax.layers.attention_augmented import AugmentedConv
from awconv_jax.layers.bam import BAM
from awconv_jax.layers.cbam import CBAM
from awconv_jax.layers.eca import ECA
from awconv_jax.layers.squeeze_excite import SqueezeExcite


@dataclasses.dataclass(frozen=True)
class Attention:
  """An attention module and its place.

  Attributes:
    layer: the Flax module.
    place: 'block', 'stage' or 'conv'.
    own: fields that the network sets by itself.
  """

  layer: type
  place: str
  own: tuple[str, ...] = ('dtype', 'param_dtype', 'train')

  def create(self, train: bool, **fields: Any) -> functools.partial:
    """Returns the layer with fields; `train` where it has that."""
    if 'train' in self.layer.__dataclass_fields__:
      fields['train'] = train
    return functools.partial(self.layer, **fields)


# The convolution's own fields, which its slot decides.
_CONV_OWN = (
    *('features', 'kernel_size', 'strides', 'padding', 'use_bias'),
    *(
        'kernel_init',
        'bias_init',
        'convolution',
        'downsample',
        'dtype',
        'param_dtype',
    ),
)

ATTENTION = {
    'se': Attention(SqueezeExcite, 'block'),
    'cbam': Attention(CBAM, 'block'),
    'eca': Attention(ECA, 'block'),
    'bam': Attention(BAM, 'stage'),
    'aa': Attention(AugmentedConv, 'conv', own=_CONV_OWN),
}
LAYERS = {name: attention.layer for name, attention in ATTENTION.items()}
# What their place in a network decides.
GIVEN = ('dtype', 'param_dtype', 'train', *_CONV_OWN)
# Those that can refine the maps of an AW-convolution, too.
REFINEMENTS = tuple(n for n, own in ATTENTION.items() if own.place == 'block')
