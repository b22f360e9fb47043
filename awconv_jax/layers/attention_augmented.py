"""Attention-augmented convolution: some of its features are self-attention's.

"Attention Augmented Convolutional Networks", https://arxiv.org/abs/1904.09925:

  AAConv(X) = concat[conv(X), MHA(X)]
  MHA(X) = concat[O_1, ..., O_heads] W_O
  O_h = softmax((Q K^T + S_rows + S_columns) / sqrt(d)) V

where S are the logits of relative positions, see `ops.relative_attention`.
"""

from collections.abc import Callable, Iterable, Sequence
import math
import numbers
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.layers import aw_conv
from awconv_jax.layers.checks import check_count, pair
from awconv_jax.layers.conv import Conv
from awconv_jax.ops import relative_attention
from awconv_jax.ops.valid_area import as_valid_size


def dims_per_head(features: int, heads: int, ratio: float, least: int) -> int:
  """Returns ratio * features / heads to the nearest, and at least `least`."""
  return max(math.floor(ratio * features / heads + 0.5), least)


def explicit_padding(
    padding: str | int | Sequence,
    size: Sequence[int],
    spans: Sequence[int],
    strides: Sequence[int],
) -> list[tuple[int, int]]:
  """Returns (low, high) for both axes, whatever way padding is given in.

  Args:
    padding: as of `AugmentedConv`.
    size: H and W of the image.
    spans: from the first to the last tap of the kernel, in positions.
    strides: of the convolution.

  Raises:
    ValueError: padding does not cover two axes.
  """
  if isinstance(padding, str) and padding in aw_conv.WRAPS:
    return [(span // 2, (span + 1) // 2) for span in spans]
  if isinstance(padding, str):
    windows = [span + 1 for span in spans]
    return lax.padtype_to_pads(size, windows, strides, padding)
  if isinstance(padding, numbers.Integral):
    padding = (padding, padding)
  axes = tuple(padding) if isinstance(padding, Iterable) else ()
  if len(axes) != 2 or any(axis is None for axis in axes):
    raise ValueError(
        f'AugmentedConv: padding must cover two axes, not {padding!r}'
    )
  return [pair(axis, 'AugmentedConv: padding of an axis') for axis in axes]


class RelativeSelfAttention(nn.Module):
  """Multi-head self-attention over the positions of an image.

  Attributes:
    heads: number of heads.
    key_dims: of each head's queries and keys.
    value_dims: of each head's values.
    relative: whether logits have terms for relative rows and columns.
    use_bias: whether the output projection has a bias.
    kernel_init: initializer of both projections.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  heads: int
  key_dims: int
  value_dims: int
  relative: bool = True
  use_bias: bool = True
  kernel_init: aw_conv.Initializer = nn.initializers.lecun_normal()
  dtype: Any = None
  param_dtype: Any = jnp.float32

  def _table(self, name, length, dtype):
    """Returns the embeddings of an axis' offsets, for the length at init."""
    rows = 2 * length - 1
    if self.has_variable('params', name):
      # The image may have another size now than it had at init.
      rows = len(self.get_variable('params', name))
    init = nn.initializers.normal(self.key_dims**-0.5)
    table = self.param(name, init, (rows, self.key_dims), self.param_dtype)
    return table.astype(dtype)

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H, W, heads * value_dims] for x [N, H, W, C]."""
    dense = dict(
        kernel_init=self.kernel_init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )
    sizes = (self.key_dims, self.key_dims, self.value_dims)
    # Biases here would take the networks away from their published sizes. One
    # of the keys cancels in the softmax, one of the values is the output's.
    qkv = nn.Dense(
        self.heads * sum(sizes), use_bias=False, name='qkv', **dense
    )(x)
    query, key, value = (
        part.reshape(*x.shape[:-1], self.heads, -1)
        for part in jnp.split(
            qkv, (self.heads * sizes[0], 2 * self.heads * sizes[0]), axis=-1
        )
    )
    rows = columns = None
    if self.relative:
      rows = self._table('relative_rows', x.shape[1], query.dtype)
      columns = self._table('relative_columns', x.shape[2], query.dtype)
    out = relative_attention.relative_attention(
        query, key, value, rows, columns, valid_size=valid_size
    )
    out = out.reshape(*x.shape[:-1], -1)
    return nn.Dense(
        out.shape[-1], use_bias=self.use_bias, name='project', **dense
    )(out)


class AugmentedConv(nn.Module):
  """A convolution and self-attention side by side, joined along the channels.

  Takes the place of `nn.Conv`: the same call and output shape. The convolution
  lies under `conv` and makes the first D - dv features, attention lies under
  `attention` and makes the last dv. Queries, keys and values have no biases;
  `use_bias` gives one to every feature of the output, in both branches.

  Attention runs at the resolution of the convolution's output. For strides s
  its input is averaged over windows of 2 s - 1 around the positions that the
  convolution's windows are centred on; for `downsample` once more, and the
  result is interpolated bilinearly.

  The tables of relative positions are made for the size of image seen at init,
  and serve any: a smaller image takes their central rows, in a larger one the
  offsets beyond them take the outermost row.

  Attributes:
    features: output channels D, of both branches together.
    kernel_size: (kh, kw) of the convolution, or one number for both.
    strides: (vertical, horizontal), or one number for both.
    padding: 'SAME', 'VALID', 'CIRCULAR', 'REFLECT', a number, or per axis a
      number or a pair (low, high).
    use_bias: whether to add a bias to the output.
    kernel_init: initializer of all kernels, as in `nn.Conv`.
    dtype: of the computation; None takes that of input and parameters.
    param_dtype: of the parameters.
    heads: of the attention.
    key_ratio: kappa; keys have kappa D dimensions over all heads.
    value_ratio: upsilon; values have dv = upsilon D. Both are rounded to the
      nearest multiple of heads, and not to 0.
    min_key_dims: the least number of key dimensions of each head.
    relative: whether attention knows of relative positions.
    downsample: factor, of both axes, by which attention runs at a coarser grid
      to save memory, which grows with the square of the positions.
    convolution: module class or partial that makes it: `Conv`, `AWConv`. Fields
      that a partial sets are not overridden by use_bias, kernel_init,
      dtype and param_dtype of this layer.

  Source: arXiv 1904.09925, section 3; the ratios, pooling by 3x3 and bilinear
  interpolation from section 4.
  """

  features: int
  kernel_size: int | Sequence[int]
  strides: int | Sequence[int] | None = 1
  padding: str | int | Sequence[int | tuple[int, int]] = 'SAME'
  use_bias: bool = True
  kernel_init: aw_conv.Initializer = nn.initializers.lecun_normal()
  dtype: Any = None
  param_dtype: Any = jnp.float32
  heads: int = 8
  key_ratio: float = 0.2
  value_ratio: float = 0.1
  min_key_dims: int = 20
  relative: bool = True
  downsample: int = 1
  convolution: Callable[..., Any] = Conv

  @nn.nowrap
  def _dims(self):
    """Returns the dimensions of each head's keys and values."""
    features, heads = self.features, self.heads
    return (
        dims_per_head(features, heads, self.key_ratio, self.min_key_dims),
        dims_per_head(features, heads, self.value_ratio, 1),
    )

  @nn.nowrap
  def check(self) -> None:
    """Raises ValueError for a field that cannot be used, whatever the input."""
    for name in ('features', 'heads', 'min_key_dims', 'downsample'):
      check_count(getattr(self, name), f'AugmentedConv: {name}')
    for name in ('kernel_size', 'strides'):
      value = getattr(self, name)
      if min(pair(value, f'AugmentedConv: {name}')) < 1:
        raise ValueError(
            f'AugmentedConv: {name} must be at least 1, not {value}'
        )
    if not isinstance(self.padding, str):
      explicit_padding(self.padding, (), (), ())
    elif self.padding not in aw_conv.PADDINGS:
      raise ValueError(
          f'AugmentedConv: unknown padding {self.padding!r}; known: '
          f'{", ".join(aw_conv.PADDINGS)}'
      )
    for name in ('key_ratio', 'value_ratio'):
      value = getattr(self, name)
      if not isinstance(value, numbers.Real) or not 0 < value < 1:
        raise ValueError(
            f'AugmentedConv: {name} must be a number between 0 and 1, not '
            f'{value!r}'
        )
    if not callable(self.convolution):
      raise ValueError(
          'AugmentedConv: convolution must be a module class or a partial of '
          f'one, not {self.convolution!r}'
      )
    value_dims = self.heads * self._dims()[1]
    if value_dims >= self.features:
      raise ValueError(
          f'AugmentedConv: {self.heads} heads take {value_dims} of '
          f'{self.features} features and leave none to the convolution; use '
          'fewer heads, a smaller value_ratio or more features'
      )

  def _attend(self, x, valid_size):
    """Returns [N, H', W', dv] for x at the resolution of the output."""
    key_dims, value_dims = self._dims()
    size, factor = x.shape[1:3], self.downsample
    if factor > 1:
      coarse = [-(-length // factor) for length in size]
      x = relative_attention.strided_average(
          x, coarse, (factor,) * 2, valid_size=valid_size
      )
      if valid_size is not None:
        valid_size = -(-valid_size // factor)
    out = RelativeSelfAttention(
        heads=self.heads,
        key_dims=key_dims,
        value_dims=value_dims,
        relative=self.relative,
        use_bias=self.use_bias,
        kernel_init=self.kernel_init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name='attention',
    )(x, valid_size=valid_size)
    if factor > 1:
      out = relative_attention.upsample(
          out, size, factor, valid_size=valid_size
      )
    return out

  def _at_output(self, x, out_size, dilation, valid_size):
    """Returns x, and its valid size, at the positions of the output."""
    strides = pair(self.strides, 'strides')
    kernel_size = pair(self.kernel_size, 'kernel_size')
    spans = [(k - 1) * d for k, d in zip(kernel_size, dilation, strict=True)]
    pads = explicit_padding(self.padding, x.shape[1:3], spans, strides)
    offsets = [s // 2 - low for s, (low, _) in zip(spans, pads, strict=True)]
    x = relative_attention.strided_average(
        x, out_size, strides, offsets=offsets, valid_size=valid_size
    )
    if valid_size is not None:
      # As many as the convolution has of the image alone.
      more = jnp.array([sum(p) - s for p, s in zip(pads, spans, strict=True)])
      valid_size = (valid_size + more - 1) // jnp.array(strides) + 1
      valid_size = as_valid_size(valid_size, x.shape)
    return x, valid_size

  @nn.compact
  def __call__(
      self, x: jax.Array, *, valid_size: jax.Array | None = None
  ) -> jax.Array:
    """Convolves and attends.

    Args:
      x: [N, H, W, C].
      valid_size: int [N, 2], height and width of the image from the top left
        where the rest of it is padding, clipped to 1 to H and 1 to W. Attention
        leaves the padding out; the convolution sees it as it is, and for the
        output of the image alone it must be zero (`ops.valid_area`). Outputs
        at the padding mean nothing. None means the whole input.

    Returns:
      [N, H', W', features].

    Raises:
      ValueError: a field or shape is impossible; says which.
    """
    self.check()
    if x.ndim != 4:
      raise ValueError(
          f'AugmentedConv wants images [N, H, W, C], not an array of {x.shape}'
      )
    if valid_size is not None:
      valid_size = as_valid_size(valid_size, x.shape)
    options = dict(
        use_bias=self.use_bias,
        kernel_init=self.kernel_init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )
    conv = self.convolution(
        self.features - self.heads * self._dims()[1],
        pair(self.kernel_size, 'kernel_size'),
        strides=self.strides,
        padding=self.padding,
        name='conv',
        **options | getattr(self.convolution, 'keywords', {}),
    )
    out = conv(x, valid_size=valid_size)
    dilation = pair(getattr(conv, 'kernel_dilation', 1), 'kernel_dilation')
    x, valid_size = self._at_output(x, out.shape[1:3], dilation, valid_size)
    attended = self._attend(x, valid_size)
    return jnp.concatenate([out, attended.astype(out.dtype)], axis=-1)
