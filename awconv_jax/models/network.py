"""What all networks share: fields, their checks, and the slots of the blocks.

A network says what its stages and blocks are, how their convolutions are called
and which of them can become AW-convolutions (https://arxiv.org/abs/2108.08205);
this class puts them together.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax import errors
from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.layers.conv import Conv
from awconv_jax.models import checks
from awconv_jax.models.attention import ATTENTION, GIVEN, LAYERS, REFINEMENTS
from awconv_jax.models.blocks import strided_size
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.valid_area import as_valid_size
from awconv_jax.options import (
    Dtype,
    Fraction,
    NonNegativeFloat,
    OneOf,
    Options,
    PositiveInt,
    UnitFloat,
)

# The fields of an AW-convolution that its place in the network decides.
AW_OWN = (
    *('features', 'kernel_size', 'strides', 'padding', 'train'),
    *('kernel_dilation', 'feature_group_count'),
)
# What else no config decides.
AW_GIVEN = (
    *(*AW_OWN, 'use_bias', 'dtype', 'param_dtype', 'precision'),
    *('kernel_init', 'bias_init', 'norm_momentum', 'norm_epsilon'),
)

# He initialisation by fan-out, as torchvision's.
kernel_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Network(nn.Module):
  """A network of stages of blocks over NHWC images.

  With `aw_conv=False` the other fields named aw_* have no effect. They are
  checked all the same, so that a config can hold them whole and switch the
  AW-convolutions on and off by that one field.

  Attributes:
    num_classes: size of the logits; None returns the stages' features.
    attention: None or a name in `models.attention.ATTENTION`.
    attention_options: fields of that layer; None or empty without one.
    aw_conv: whether convolutions become AW-convolutions.
    aw_where: which; see the network.
    aw_stages: in which stages, counted from 1; None is all.
    aw_options: fields of `AWConv`, such as reduction and expansion; refinement
      by name, such as 'se'. Those not named here have AWConv's defaults, but
      norm_momentum, norm_epsilon, dtype and param_dtype are the network's.
    stochastic_depth: chance that a sample skips the branch of the last block in
      training (https://arxiv.org/abs/1603.09382); it grows linearly over all
      blocks from 0 at the first; needs an rng 'dropout' in training.
    norm_momentum: share of the old running statistics.
    norm_epsilon: of the norms.
    dtype: of the computation, such as 'bfloat16'; logits are float32.
    param_dtype: of the parameters.
  """

  num_classes: PositiveInt | None = 1000
  attention: Annotated[str, OneOf(ATTENTION)] | None = None
  attention_options: Annotated[
      Mapping[str, Any] | None, Options(LAYERS, by='attention', given=GIVEN)
  ] = None
  aw_conv: bool = False
  aw_where: str = '3x3'
  aw_stages: tuple[PositiveInt, ...] | None = None
  aw_options: Annotated[
      Mapping[str, Any] | None, Options(AWConv, given=AW_GIVEN)
  ] = None
  stochastic_depth: Fraction = 0.0
  norm_momentum: UnitFloat = 0.9
  norm_epsilon: NonNegativeFloat = 1e-5
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  # What a network is made of.

  @nn.nowrap
  def slots(self) -> Sequence[str]:
    """Returns the names of the blocks' convolutions."""
    raise NotImplementedError

  @nn.nowrap
  def aw_choices(self) -> Mapping[str, Sequence[str]]:
    """Returns the slots that become AW-convolutions, by `aw_where`."""
    raise NotImplementedError

  @nn.nowrap
  def augmented_slots(self) -> Sequence[str]:
    """Returns the slots that attention in the place 'conv' takes."""
    return ()

  @nn.nowrap
  def features(self, stage: int) -> int:
    """Returns the features of the 3x3 convolutions of a stage."""
    raise NotImplementedError

  @nn.nowrap
  def augmented_stages(self) -> Sequence[int]:
    """Returns the stages that are augmented, from 1: the last three."""
    number = len(self.strides())
    return range(max(number - 2, 1), number + 1)

  @nn.nowrap
  def augmented_downsample(self, stage: int) -> int:
    """Returns by how much augmenting attention shrinks a stage's images."""
    del stage
    return 1

  @nn.nowrap
  def strides(self) -> Sequence[int]:
    """Returns the stride of every stage."""
    raise NotImplementedError

  @nn.nowrap
  def depths(self) -> Sequence[int]:
    """Returns the number of blocks in every stage."""
    raise NotImplementedError

  def begin(self, x, train, valid_size):
    """Returns the stem's output for images x, and its valid area."""
    raise NotImplementedError

  @nn.nowrap
  def create_block(self, stage: int, **fields: Any) -> functools.partial:
    """Returns a block of a stage.

    Args:
      stage: counted from 1.
      **fields: stride, convs, norm, attention, drop of the block, and train.
    """
    raise NotImplementedError

  def end(self, x, train):
    """Returns what is done to the last stage's output, [N, H, W, C]."""
    del train
    return x

  @nn.nowrap
  def check(self) -> None:
    """Raises InputError for a field that cannot be used."""
    checks.check_choice('attention', self.attention, (None, *ATTENTION))
    checks.check_choice('aw_where', self.aw_where, tuple(self.aw_choices()))
    if self.aw_stages is not None:
      checks.check_stages('aw_stages', self.aw_stages, len(self.strides()))
    if self.num_classes is not None:
      checks.check_count('num_classes', self.num_classes)
    checks.check_fraction('stochastic_depth', self.stochastic_depth)
    for field in ('norm_momentum', 'norm_epsilon'):
      checks.check_number(field, getattr(self, field))
    for field in ('dtype', 'param_dtype'):
      checks.check_dtype(field, getattr(self, field))
    self._check_aw_options()
    self._check_attention_options()

  @nn.nowrap
  def _check_aw_options(self):
    """Raises InputError for options that an AW-convolution cannot have."""
    options = self.aw_options
    checks.check_options('aw_options', options, AWConv, AW_OWN)
    for field in ('dtype', 'param_dtype'):
      if field in (options or {}):
        checks.check_dtype(f'aw_options.{field}', options[field])
    options = dict(options or {})
    refinement = options.pop('refinement', None)
    checks.check_choice(
        'refinement in model.aw_options', refinement, (None, *REFINEMENTS)
    )
    checks.check_layer('aw_options', AWConv, options, features=1, kernel_size=1)

  @nn.nowrap
  def _check_attention_options(self):
    """Raises InputError for options that the attention cannot have."""
    options = self.attention_options
    if self.attention is None:
      if options:
        raise errors.InputError(
            f'model.attention_options={dict(options)} needs model.attention, '
            'which is None'
        )
      return
    attention = ATTENTION[self.attention]
    in_conv = attention.place == 'conv'
    if in_conv and not self.augmented_slots():
      raise errors.InputError(
          f'model.attention={self.attention!r} augments dense 3x3 '
          'convolutions, and this network has none; take another attention'
      )
    checks.check_options(
        'attention_options', options, attention.layer, attention.own
    )
    own = {}
    if in_conv:  # The narrowest of them.
      least = self.features(self.augmented_stages()[0])
      own = dict(features=least, kernel_size=3)
    checks.check_layer('attention_options', attention.layer, options, **own)

  @nn.nowrap
  def conv_fields(self) -> dict[str, Any]:
    """Returns the fields that all convolutions share."""
    return dict(
        use_bias=False,
        kernel_init=kernel_init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )

  @nn.nowrap
  def convs(self, stage: int, train: bool) -> dict[str, Any]:
    """Returns the convolution of every slot in a stage's blocks, as partials.

    Args:
      stage: counted from 1.
      train: whether norms use the batch's statistics.
    """
    fields = self.conv_fields()
    convs = dict.fromkeys(self.slots(), functools.partial(Conv, **fields))
    stages = self.aw_stages
    if self.aw_conv and (stages is None or stage in stages):
      norms = dict(
          norm_momentum=self.norm_momentum, norm_epsilon=self.norm_epsilon
      )
      aw_fields = fields | norms | dict(self.aw_options or {})
      if refinement := aw_fields.pop('refinement', None):
        aw_fields['refinement'] = ATTENTION[refinement].create(
            train, dtype=self.dtype, param_dtype=self.param_dtype
        )
      aw_conv = functools.partial(AWConv, train=train, **aw_fields)
      for slot in self.aw_choices()[self.aw_where]:
        convs[slot] = aw_conv
    if self._attends('conv') and stage in self.augmented_stages():
      for slot in self.augmented_slots():
        convs[slot] = self._create_attention(
            train,
            **fields,
            convolution=convs[slot],
            downsample=self.augmented_downsample(stage),
        )
    return convs

  @nn.nowrap
  def norms(self, train: bool) -> functools.partial:
    """Returns the batch norm of the blocks."""
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=self.norm_momentum,
        epsilon=self.norm_epsilon,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )

  @nn.nowrap
  def _attends(self, place: str) -> bool:
    """Returns whether there is attention in a place."""
    return self.attention is not None and (
        ATTENTION[self.attention].place == place
    )

  @nn.nowrap
  def _create_attention(self, train, **fields):
    """Returns the attention layer as a partial."""
    fields |= dict(dtype=self.dtype, param_dtype=self.param_dtype)
    options = self.attention_options or {}
    return ATTENTION[self.attention].create(train, **fields, **options)

  @nn.nowrap
  def block_attention(self, train: bool) -> functools.partial | None:
    """Returns the gate of a block's branch, or None."""
    return self._create_attention(train) if self._attends('block') else None

  @nn.nowrap
  def branch_drop(
      self, stage: int, index: int, train: bool
  ) -> functools.partial:
    """Returns what drops the branch of a block, of whole samples at random.

    Those kept are divided by the chance of that, so that the expected value is
    the value in evaluation, which drops nothing. (The paper scales in
    evaluation instead, drops one layer for all of a batch, and begins with a
    small chance at the first block; the recipes that are in use do this.)

    Args:
      stage: counted from 1.
      index: of the block in its stage, from 0.
      train: whether anything is dropped.
    """
    before = sum(self.depths()[: stage - 1]) + index
    last = sum(self.depths()) - 1
    return functools.partial(
        nn.Dropout,
        self.stochastic_depth * before / max(last, 1),
        broadcast_dims=(1, 2, 3),
        deterministic=not train,
    )

  def attend_stage(self, x, stage, train, valid_size):
    """Returns the output of a stage, gated if attention has its place there.

    Args:
      x: [N, H, W, C].
      stage: counted from 1.
      train: whether norms use the batch's statistics.
      valid_size: int [N, 2], or None.
    """
    # Bottlenecks of the network: where the next stage strides.
    strides = [*self.strides(), 1]
    if not self._attends('stage') or strides[stage] == 1:
      return x
    gate = self._create_attention(train)
    return gate(name=f'stage{stage}_attention')(x, valid_size=valid_size)

  def classify(self, x, train, valid_size, dropout=0.0):
    """Returns float32 logits [N, num_classes] for features [N, H, W, C]."""
    x = adaptive_average_pool(x, (1, 1), valid_size=valid_size)[:, 0, 0]
    x = nn.Dropout(dropout, deterministic=not train)(x)
    head = nn.Dense(
        self.num_classes,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name='head',
    )
    return head(x.astype(self.dtype)).astype(jnp.float32)

  @nn.compact
  def __call__(
      self,
      images: jax.Array,
      *,
      train: bool,
      valid_size: jax.Array | None = None,
  ) -> jax.Array | dict[str, jax.Array]:
    """Computes logits, or features for `num_classes=None`.

    Args:
      images: [N, H, W, 3] (or any channels), normalised.
      train: whether norms use (and update) the batch's statistics, and dropout
        and stochastic depth are on.
      valid_size: int [N, 2], height and width of each image from the top left
        where the rest of it is padding, of any content. With `train=False`
        logits and features are those of the image alone; features outside of
        its area (whose size is rounded up at every stride) mean nothing. With
        `train=True` the padding still counts in the batch statistics. None
        means no padding, and costs nothing.

    Returns:
      Logits [N, num_classes] in float32, or the output of every stage, 'c2',
      'c3', ...; of a ResNet {'c2': [N, H/4, W/4, ...], ..., 'c5': [N, H/32,
      W/32, ...]} (strides are 1 to 8 with the CIFAR stem).

    Raises:
      ValueError: the shape of valid_size does not fit; says which.
    """
    if valid_size is not None:
      valid_size = as_valid_size(valid_size, images.shape)
    x, valid_size = self.begin(images.astype(self.dtype), train, valid_size)
    features = {}
    for stage, stride in enumerate(self.strides(), start=1):
      for index in range(self.depths()[stage - 1]):
        own_stride = 1 if index else stride
        block = self.create_block(
            stage,
            stride=own_stride,
            convs=self.convs(stage, train),
            norm=self.norms(train),
            attention=self.block_attention(train),
            drop=self.branch_drop(stage, index, train),
            train=train,
        )
        name = f'stage{stage}_block{index + 1}'
        x = block(name=name)(x, valid_size=valid_size)
        valid_size = strided_size(valid_size, own_stride)
      x = self.attend_stage(x, stage, train, valid_size)
      features[f'c{stage + 1}'] = x
    features[f'c{stage + 1}'] = x = self.end(x, train)
    if self.num_classes is None:
      return features
    return self.classify(x, train, valid_size)
