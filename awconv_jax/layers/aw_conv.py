"""AWConv: a drop-in for `nn.Conv` that recalibrates its kernel per sample.

"An Attention Module for Convolutional Neural Networks",
https://arxiv.org/abs/2108.08205:

  O[n] = conv(I[n], K * (1 + A[n]))
  A = expand(gate(norm(P2(relu(norm(P1(pool(I))))))))

where pool is average pooling to a grid of the kernel's size, P1 and P2 are
pointwise convolutions, and expand repeats each value along one axis.
"""

from collections.abc import Callable, Iterable, Sequence
import numbers
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.layers.checks import check_count, check_number, pair
from awconv_jax.ops.adaptive_pool import adaptive_average_pool
from awconv_jax.ops.aw_conv import aw_conv, check_implementation
from awconv_jax.ops.valid_area import as_valid_size

Initializer = Callable[..., jax.Array]

GATES = {'sigmoid': jax.nn.sigmoid, 'tanh': jnp.tanh}
NORMS = ('batch', 'layer', 'none')
EXPANSION_AXES = ('in', 'out', 'none')
WRAPS = {'CIRCULAR': 'wrap', 'REFLECT': 'reflect'}
PADDINGS = ('SAME', 'VALID', 'SAME_LOWER', *WRAPS)


def expansion_factor(channels: int, expansion: int) -> int:
  """Returns the largest divisor of channels that is at most expansion."""
  return max(e for e in range(1, expansion + 1) if channels % e == 0)


def _resample(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Gives each of the kernel's taps the nearest cell of the pooled grid."""
  for axis, (cells, taps) in enumerate(zip(maps.shape[1:3], size)):  # noqa: B905
    if cells != taps:
      # The cell that holds the tap's centre, (i + 1/2) / taps.
      index = (2 * jnp.arange(taps) + 1) * cells // (2 * taps)
      maps = jnp.take(maps, index, axis=axis + 1)
  return maps


class AttentionMaps(nn.Module):
  """Computes the compact attention maps of a kernel from the input.

  Attributes:
    kernel_size: (kh, kw) of the kernel.
    groups_in: values along the kernel's input axis, G.
    groups_out: values along the kernel's output axis, D'.
    hidden: channels between the two pointwise convolutions.
    gate, norm, identity_start, pool_size: as in `AWConv`.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  kernel_size: tuple[int, int]
  groups_in: int
  groups_out: int
  hidden: int
  gate: str
  norm: str
  identity_start: bool
  pool_size: tuple[int, int]
  norm_momentum: float
  norm_epsilon: float
  dtype: Any = None
  param_dtype: Any = jnp.float32

  def _normalize(self, x, name, train, scale_init):
    options = dict(
        epsilon=self.norm_epsilon,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        scale_init=scale_init,
        name=name,
    )
    if self.norm == 'batch':
      return nn.BatchNorm(
          use_running_average=not train, momentum=self.norm_momentum, **options
      )(x)
    return nn.LayerNorm(**options)(x) if self.norm == 'layer' else x

  @nn.compact
  def __call__(self, x, *, train, valid_size=None):
    """Returns A [N, kh, kw, G, D'] for x [N, H, W, C]."""
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    last_norm = self.norm != 'none'
    # Without a norm the second convolution carries the zero of an identity
    # start, since there is no last scale.
    kernel_init = nn.initializers.lecun_normal()
    zero_kernel = self.identity_start and not last_norm
    dense = dict(
        use_bias=not last_norm, dtype=self.dtype, param_dtype=self.param_dtype
    )
    a = adaptive_average_pool(x, self.pool_size, valid_size=valid_size)
    a = a.astype(x.dtype)
    a = nn.Dense(self.hidden, name='pointwise1', **dense)(a)
    a = nn.relu(self._normalize(a, 'norm1', train, ones))
    a = nn.Dense(
        self.groups_in * self.groups_out,
        kernel_init=zeros if zero_kernel else kernel_init,
        name='pointwise2',
        **dense,
    )(a)
    last_scale = zeros if self.identity_start else ones
    a = GATES[self.gate](self._normalize(a, 'norm2', train, last_scale))
    a = _resample(a, self.kernel_size)
    return a.reshape(*a.shape[:-1], self.groups_in, self.groups_out)


class AWConv(nn.Module):
  """A two-dimensional convolution with per-sample attention on its kernel.

  Takes the place of `nn.Conv`: the same call and output shape, and `kernel`
  and `bias` under the same names, so that plain weights load. The parameters
  of the attention branch are added under `attention`, its running statistics
  in the collection 'batch_stats'. The maps are sown as 'attention_maps' in
  'intermediates': pass `mutable=['intermediates']` to see them.

  It trains at batch size 1: batch statistics are then taken over the cells of
  the pooled grid. But where that is a single cell (a 1x1 kernel or pool_size=1)
  a batch norm in training returns its bias whatever the input, and of the
  branch only the bias of `norm2` learns. Use norm='layer' there, which
  normalises over the channels and trains all of it.

  Attributes:
    features: output channels D.
    kernel_size: (kh, kw), or one number for both.
    strides: (vertical, horizontal), or one number for both.
    padding: 'SAME', 'VALID', 'CIRCULAR', 'REFLECT', a number, or per axis a
      number or a pair (low, high).
    kernel_dilation: spacing of the kernel's taps.
    feature_group_count: channel groups; C for a depthwise convolution.
    use_bias: whether to add a bias to the output.
    dtype: of the computation; None takes that of input and parameters.
    param_dtype: of the parameters.
    precision: as in `lax.conv_general_dilated`.
    kernel_init, bias_init: initializers, as in `nn.Conv`.
    reduction: r, by which pointwise convolution 1 reduces the channels.
    min_hidden: the least number of hidden channels.
    expansion: e, how many consecutive channels share one value of A; where it
      does not divide them, the largest divisor below it.
    expansion_axis: 'in' (input channels), 'out' (output channels) or 'none'.
    gate: 'sigmoid' or 'tanh'.
    norm: 'batch', 'layer' or 'none', after both pointwise convolutions. Batch
      statistics are taken over the whole (also a sharded) batch.
    norm_momentum, norm_epsilon: of the norms (momentum: share of the old).
    residual: True for K * (1 + A), False for K * A.
    pool_size: grid of the pooled input; None for the kernel's size.
    refinement: None, or what makes the module that refines the maps as if they
      were an activation of D' channels, such as `SqueezeExcite`; called as
      `refinement(name=...)(maps)` with [N * G, kh, kw, D'], parameters under
      'refinement'.
    identity_start: start with A = 0, so that the layer computes exactly what
      `nn.Conv` does (not in the paper); needs the gate 'tanh'.
    implementation, chunk: of `ops.aw_conv`.
    train: whether batch statistics are used; may be given in the call instead.
      None in both: True if the call may update 'batch_stats'.

  Source: arXiv 2108.08205. Where the paper's text leaves a choice open, it is a
  field here; README, "Ambiguities and what we chose".
  """

  features: int
  kernel_size: int | Sequence[int]
  strides: int | Sequence[int] | None = 1
  padding: str | int | Sequence[int | tuple[int, int]] = 'SAME'
  kernel_dilation: int | Sequence[int] | None = 1
  feature_group_count: int = 1
  use_bias: bool = True
  dtype: Any = None
  param_dtype: Any = jnp.float32
  precision: Any = None
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros
  reduction: int = 16
  min_hidden: int = 4
  expansion: int = 16
  expansion_axis: str = 'in'
  gate: str = 'sigmoid'
  norm: str = 'batch'
  norm_momentum: float = 0.9
  norm_epsilon: float = 1e-5
  residual: bool = True
  pool_size: int | Sequence[int] | None = None
  refinement: Callable[..., Any] | None = None
  identity_start: bool = False
  implementation: str = 'auto'
  chunk: int | None = None
  train: bool | None = None

  @nn.nowrap
  def check(self) -> None:
    """Raises ValueError for a field that cannot be used, whatever the input."""
    choices = dict(
        gate=GATES,
        norm=NORMS,
        expansion_axis=EXPANSION_AXES,
    )
    if isinstance(self.padding, str):
      choices['padding'] = PADDINGS
    for name, known in choices.items():
      value = getattr(self, name)
      if value not in known:
        raise ValueError(
            f'AWConv: unknown {name} {value!r}; known: {", ".join(known)}'
        )
    try:
      check_implementation(self.implementation, self.chunk)
    except ValueError as error:
      raise ValueError(f'AWConv: {error}') from None
    for name in ('kernel_size', 'strides', 'kernel_dilation', 'pool_size'):
      value = getattr(self, name)
      if min(pair(value, f'AWConv: {name}')) < 1:
        raise ValueError(f'AWConv: {name} must be at least 1, not {value}')
    for name in (
        *('features', 'feature_group_count'),
        *('reduction', 'min_hidden', 'expansion'),
    ):
      check_count(getattr(self, name), f'AWConv: {name}')
    for name in ('norm_momentum', 'norm_epsilon'):
      check_number(getattr(self, name), f'AWConv: {name}')
    if self.refinement is not None and not callable(self.refinement):
      raise ValueError(
          'AWConv: refinement must make a module, such as SqueezeExcite, not '
          f'{self.refinement!r}'
      )
    if self.identity_start and self.gate != 'tanh':
      raise ValueError(
          "AWConv: identity_start needs a gate that is 0 at 0 (gate='tanh'), "
          f'not {self.gate!r}'
      )

  def _pad(self, x, kernel_size, dilation):
    """Returns x and its padding for `ops.aw_conv`, wrapped where asked for."""
    if isinstance(self.padding, str) and self.padding in WRAPS:
      mode = WRAPS[self.padding]
      spans = [(k - 1) * d for k, d in zip(kernel_size, dilation, strict=True)]
      pads = [(s // 2, (s + 1) // 2) for s in spans]
      return jnp.pad(x, ((0, 0), *pads, (0, 0)), mode=mode), 'VALID'
    if isinstance(self.padding, str):
      return x, self.padding
    padding = self.padding
    if isinstance(padding, numbers.Integral):
      padding = (padding, padding)
    axes = tuple(padding) if isinstance(padding, Iterable) else ()
    if len(axes) != 2 or any(axis is None for axis in axes):
      raise ValueError(f'AWConv: padding must cover two axes, not {padding}')
    return x, [pair(p, 'AWConv: padding of an axis') for p in axes]

  def _attention(self, x, kernel, train, valid_size):
    kh, kw, c, d = kernel.shape
    share_in = share_out = 1
    if self.expansion_axis == 'in':
      share_in = expansion_factor(c, self.expansion)
    elif self.expansion_axis == 'out':
      share_out = expansion_factor(d, self.expansion)
    pool_size = (kh, kw)
    if self.pool_size is not None:
      pool_size = pair(self.pool_size, 'pool_size')
    return AttentionMaps(
        kernel_size=(kh, kw),
        groups_in=c // share_in,
        groups_out=d // share_out,
        hidden=max(x.shape[-1] // self.reduction, self.min_hidden),
        gate=self.gate,
        norm=self.norm,
        identity_start=self.identity_start,
        pool_size=pool_size,
        norm_momentum=self.norm_momentum,
        norm_epsilon=self.norm_epsilon,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name='attention',
    )(x, train=train, valid_size=valid_size)

  def _refine(self, maps):
    """Returns the maps A [N, kh, kw, G, D'], gated by the refinement."""
    if self.refinement is None:
      return maps
    n, kh, kw, groups, outputs = maps.shape
    # The same module for every run of inputs; an activation has one axis less.
    seen = jnp.moveaxis(maps, 3, 1).reshape(n * groups, kh, kw, outputs)
    refined = self.refinement(name='refinement')(seen)
    refined = refined.reshape(n, groups, kh, kw, outputs)
    return jnp.moveaxis(refined, 1, 3)

  @nn.compact
  def __call__(
      self,
      inputs: jax.Array,
      *,
      train: bool | None = None,
      valid_size: jax.Array | None = None,
  ) -> jax.Array:
    """Convolves every sample with its own kernel.

    Args:
      inputs: [..., H, W, C] with any number of leading (batch) axes.
      train: see the class.
      valid_size: int [..., 2], height and width of the image from the top left
        where it is padded on the right and below, clipped to 1 to H and 1 to
        W; A is computed from that area alone. None means the whole input.
        The convolution sees the padding as it is: for the output of the image
        alone it must be zero (`ops.valid_area.mask_padding`).

    Returns:
      [..., H', W', features].

    Raises:
      ValueError: a field or shape is impossible; says which.
    """
    self.check()
    kh, kw = pair(self.kernel_size, 'kernel_size')
    if self.train is not None or train is not None:
      train = nn.merge_param('train', self.train, train)
    else:
      train = self.is_mutable_collection('batch_stats')
    channels, groups = inputs.shape[-1], self.feature_group_count
    if channels % groups or self.features % groups:
      raise ValueError(
          f'AWConv: feature_group_count={groups} must divide input channels '
          f'({channels}) and features ({self.features})'
      )
    kernel = self.param(
        'kernel',
        self.kernel_init,
        (kh, kw, channels // groups, self.features),
        self.param_dtype,
    )
    bias = None
    if self.use_bias:
      bias = self.param(
          'bias', self.bias_init, (self.features,), self.param_dtype
      )
    inputs, kernel, bias = nn.dtypes.promote_dtype(
        inputs, kernel, bias, dtype=self.dtype
    )
    x = inputs.reshape(-1, *inputs.shape[-3:])
    if valid_size is not None:
      valid_size = as_valid_size(valid_size, inputs.shape).reshape(-1, 2)
    maps = self._refine(self._attention(x, kernel, train, valid_size))
    self.sow('intermediates', 'attention_maps', maps)
    dilation = pair(self.kernel_dilation, 'kernel_dilation')
    x, padding = self._pad(x, (kh, kw), dilation)
    out = aw_conv(
        x,
        kernel,
        maps,
        strides=pair(self.strides, 'strides'),
        padding=padding,
        dilation=dilation,
        groups=groups,
        residual=self.residual,
        implementation=self.implementation,
        chunk=self.chunk,
        precision=self.precision,
    )
    if bias is not None:
      out = out + bias
    return out.reshape(*inputs.shape[:-3], *out.shape[1:])
