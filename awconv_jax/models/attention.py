"""The earlier attention modules by name, and their places in a network.

place    where it acts
block    on every block's branch, after its last norm, before the addition
stage    on the output of every stage before one that strides
conv     in the place of the 3x3 convolutions of the last three stages
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn

from awconv_jax.layers import attention


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
    *(field.name for field in dataclasses.fields(nn.Conv)),
    *('convolution', 'downsample'),
)

ATTENTION = {
    **{n: Attention(x, 'block') for n, x in attention.IN_BLOCK.items()},
    **{n: Attention(x, 'stage') for n, x in attention.AFTER_STAGE.items()},
    **{
        n: Attention(x, 'conv', _CONV_OWN) for n, x in attention.AS_CONV.items()
    },
}
LAYERS = {name: entry.layer for name, entry in ATTENTION.items()}
# What their place in a network decides.
GIVEN = ('dtype', 'param_dtype', 'train', *_CONV_OWN)
# Those that can refine the maps of an AW-convolution, too.
REFINEMENTS = tuple(n for n, own in ATTENTION.items() if own.place == 'block')
