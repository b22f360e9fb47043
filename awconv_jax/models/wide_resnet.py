"""Wide-ResNet for CIFAR, with dropout, plain or with AW-convolutions.

"Wide Residual Networks", https://arxiv.org/abs/1605.07146. WRN-d-k has three
stages of (d - 4) / 6 blocks with 16 k, 32 k and 64 k channels. The blocks are
pre-activated: norm and ReLU come before each 3x3 convolution, and a last norm
and ReLU before the pooling.
"""

from functools import partial
from typing import Annotated

import flax.linen as nn
import jax

from awconv_jax.errors import look_up
from awconv_jax.models import network
from awconv_jax.options import Fraction, OneOf, PositiveInt

# The slots whose convolution becomes an AW-convolution.
AW_WHERE = {'3x3': ('conv1', 'conv2'), 'first_3x3': ('conv1',)}


class WideBlock(network.Block):
  """norm, ReLU, 3x3; norm, ReLU, dropout, 3x3; plus the shortcut.

  The dropout is what drops values between the convolutions.
  """

  features: int  # Output channels.
  stride: int
  dropout: network.Layer

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H / stride, W / stride, features] for x [N, H, W, C]."""
    seen, stride = nn.relu(self.norm(name='norm1')(x)), self.stride
    y, size = self.conv('conv1', seen, self.features, 3, stride, valid_size)
    y = self.dropout()(nn.relu(self.norm(name='norm2')(y)))
    y, size = self.conv('conv2', y, self.features, 3, 1, size)
    y = self.gate(y, size)
    if x.shape != y.shape:
      shape = self.features, 1, stride
      x, _ = self.conv('downsample_conv', seen, *shape, valid_size)
    return x + self.drop()(y)


class WideResNet(network.Network):
  """Wide-ResNet over NHWC images; the other fields are those of `Network`.

  Attributes:
    blocks: in each of the three stages.
    widen: k, how many times as wide as the original ResNet for CIFAR.
    width: channels of the stem.
    dropout: share of the values that is dropped inside of the blocks; needs an
      rng 'dropout' in training.
    aw_where: '3x3' or 'first_3x3' of each block.
  """

  blocks: PositiveInt = 4
  widen: PositiveInt = 10
  width: PositiveInt = 16
  dropout: Fraction = 0.0
  aw_where: Annotated[str, OneOf(AW_WHERE)] = '3x3'

  def __post_init__(self):
    super().__post_init__()
    self.check_places(3, dense_3x3=True)

  @nn.compact
  def __call__(
      self, images: jax.Array, *, train: bool, valid_size: network.Size = None
  ) -> network.Output:
    """Computes logits, or features for `num_classes=None`; see `Network`."""
    x, valid_size = self.start(images, valid_size)
    x, _ = self.conv()('stem_conv', x, self.width, 3, 1, valid_size)

    parts = self.parts(3 * self.blocks, train)
    aw, features = look_up('aw_where', self.aw_where, AW_WHERE), {}
    for stage in (1, 2, 3):
      for index in range(self.blocks):
        stride = 2 if stage > 1 and index == 0 else 1
        x = WideBlock(
            features=self.width * self.widen * 2 ** (stage - 1),
            stride=stride,
            conv=self.conv(stage, train, aw=aw, augmented='conv1'),
            dropout=partial(nn.Dropout, self.dropout, deterministic=not train),
            name=f'stage{stage}_block{index + 1}',
            **next(parts),
        )(x, valid_size=valid_size)
        valid_size = network.strided_size(valid_size, stride)
      if stage < 3:
        x = self.gate(f'stage{stage}_attention', train)(x, valid_size)
      features[f'c{stage + 1}'] = x

    features['c4'] = x = nn.relu(self.norm(train)(name='last_norm')(x))
    if self.num_classes is None:
      return features
    return self.classify(x, train, valid_size)


MODELS = {
    'wrn_16_4': partial(WideResNet, blocks=2, widen=4),
    'wrn_28_10': WideResNet,
    'wrn_40_4': partial(WideResNet, blocks=6, widen=4),
}
