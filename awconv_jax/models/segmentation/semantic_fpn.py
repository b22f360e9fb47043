"""Semantic FPN: a class for every pixel, from a feature pyramid.

"Panoptic Feature Pyramid Networks", https://arxiv.org/abs/1901.02446, section
3.1 and figure 3, the branch for semantic segmentation: every level comes to
the resolution of the finest, 1/4 of the image, by as many stages as it takes, a
stage being a 3x3 convolution, group norm, ReLU and bilinear upsampling by 2
(the finest level has one without upsampling). Their sum, a 1x1 convolution and
bilinear upsampling by 4 give the logits.
"""

from collections.abc import Mapping
import functools
from typing import Annotated, Any

from flax.core import FrozenDict
import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax import options
from awconv_jax.errors import InputError
from awconv_jax.layers.conv import Conv
from awconv_jax.models.detection.fpn import FPN
from awconv_jax.models.network import check_norms, kernel_init
from awconv_jax.models.registry import MODELS
from awconv_jax.ops.resample import upsample
from awconv_jax.ops.valid_area import mask_padding

_DTYPES = ('dtype', 'param_dtype')
STRIDE = 4  # Of the finest level; each further one's is twice as large.


class SemanticFPN(nn.Module):
  """Semantic FPN over any network whose features are at 1/4, 1/8, ...

  A padded image gives what it gives alone, but for the statistics of a batch in
  training.

  Attributes:
    backbone: a network with `num_classes=None`; in a config, its options.
    num_classes: of the pixels, the background being one of them.
    norm_train: whether the backbone's norms use and update the statistics of
      the batch in training, and stochastic depth is on; else the statistics are
      frozen.
    pyramid: options of `fpn.FPN`.
    features: channels of the branch.
    groups: of its group norms.
    dtype: of the computation, see `models.network.Network`; logits are float32
      at least.
    param_dtype: of the parameters.
  """

  backbone: Annotated[
      nn.Module, options.Named(MODELS, 'model', given=('num_classes',))
  ]
  num_classes: options.PositiveInt = 21
  norm_train: bool = True
  pyramid: Annotated[Mapping[str, Any], options.Options(FPN, given=_DTYPES)] = (
      FrozenDict()
  )
  features: options.PositiveInt = 128
  groups: options.PositiveInt = 32
  dtype: options.Dtype = jnp.float32
  param_dtype: options.Dtype = jnp.float32

  def __post_init__(self):
    super().__post_init__()
    if self.features % self.groups:
      raise InputError(
          f'model.features={self.features} must be a multiple of model.groups='
          f'{self.groups}'
      )
    check_norms(self.backbone, self.norm_train)

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.fpn = FPN(**self.pyramid, **dtypes)
    self.branch = Branch(self.features, self.groups, **dtypes)
    self.predictor = Conv(
        self.num_classes, (1, 1), kernel_init=kernel_init, **dtypes
    )

  def levels(
      self, images: jax.Array, image_size: jax.Array, *, train: bool = False
  ) -> tuple[dict[str, jax.Array], list[jax.Array]]:
    """Returns the pyramid, 'p2': [N, H/4, W/4, C], ..., and its valid sizes.

    The arguments are as of a call.
    """
    canvas, size = images.shape[1:3], jnp.asarray(image_size, jnp.int32)
    train = train and self.norm_train
    stages = self.backbone(images, train=train, valid_size=size)
    strides = [STRIDE * 2**i for i in range(len(stages))]
    want = [tuple(-(-n // s) for n in canvas) for s in strides]
    got = [x.shape[1:3] for x in stages.values()]
    if want != got:
      raise InputError(
          f'model.backbone does not fit: its levels over {canvas[0]}x'
          f'{canvas[1]} are {got}, and semantic_fpn wants {want}, a ResNet '
          "with stem='imagenet'"
      )
    sizes = [-(-size // stride) for stride in strides]
    # Without the level that only proposals come from.
    *levels, _ = self.fpn(stages, sizes).items()
    return dict(levels), sizes

  def __call__(
      self, images: jax.Array, image_size: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """Returns logits [N, H, W, num_classes]; beyond an image they mean nothing.

    Args:
      images: [N, H, W, C], normalised and then padded.
      image_size: int [N, 2], height and width of each without its padding.
      train: whether the backbone trains its norms, if `norm_train`.
    """
    levels, sizes = self.levels(images, image_size, train=train)
    x = self.branch(levels, sizes)
    logits = self.predictor(x)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    logits = upsample(logits, STRIDE, sizes[0])
    return logits[:, : images.shape[1], : images.shape[2]]


class Branch(nn.Module):
  """Brings all levels to the resolution of the finest, and adds them up."""

  features: int
  groups: int
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(
      self, levels: Mapping[str, jax.Array], sizes: list[jax.Array]
  ) -> jax.Array:
    """Returns [N, H/4, W/4, features] for a pyramid and its valid sizes."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    conv = functools.partial(
        Conv,
        self.features,
        (3, 3),
        padding=1,
        use_bias=False,
        kernel_init=kernel_init,
        **dtypes,
    )
    shapes = [x.shape[1:3] for x in levels.values()]
    outs = []
    for level, (name, x) in enumerate(levels.items()):
      for stage in range(max(level, 1)):
        here = level - stage
        x = conv(name=f'{name}_conv{stage + 1}')(mask_padding(x, sizes[here]))
        norm = nn.GroupNorm(
            self.groups, name=f'{name}_norm{stage + 1}', **dtypes
        )
        inside = jnp.ones(x.shape, bool)
        x = norm(x, mask=mask_padding(inside, sizes[here], fill=False))
        x = nn.relu(x)
        if level:
          x = upsample(x, 2, sizes[here])
          height, width = shapes[here - 1]
          x = x[:, :height, :width]
      outs.append(x)
    return sum(outs)
