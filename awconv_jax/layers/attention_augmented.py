"""Attention-augmented convolution: some of its features are self-attention's.

"Attention Augmented Convolutional Networks", https://arxiv.org/abs/1904.09925:

  AAConv(X) = concat[conv(X), MHA(X)]
  MHA(X) = concat[O_1, ..., O_heads] W_O
  O_h = softmax((Q K^T + S_rows + S_columns) / sqrt(d)) V

where S are the logits of relative positions, see `ops.relative_attention`.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.errors import InputError
from awconv_jax.layers.checks import check_call
from awconv_jax.layers.conv import (
    Conv,
    pair,
    spans_and_pads,
    valid_output,
)
from awconv_jax.ops import relative_attention, resample
from awconv_jax.ops.valid_area import as_valid_size
from awconv_jax.options import Bound, PositiveInt


class RelativeSelfAttention(nn.Module):
  """Multi-head self-attention over the positions of an image.

  key_dims and value_dims are of each head; other fields as in `AugmentedConv`.
  """

  heads: int
  key_dims: int
  value_dims: int
  relative: bool
  use_bias: bool
  dense: Callable[..., nn.Module]
  param_dtype: Any

  def _table(self, name, length, dtype):
    """Returns the embeddings of an axis' offsets, for the length at init."""
    rows = 2 * length - 1
    if self.has_variable('params', name):
      rows = len(self.get_variable('params', name))
    init = nn.initializers.normal(self.key_dims**-0.5)
    table = self.param(name, init, (rows, self.key_dims), self.param_dtype)
    return table.astype(dtype)

  @nn.compact
  def __call__(self, x, *, valid_size=None):
    """Returns [N, H, W, heads * value_dims] for x [N, H, W, C]."""
    keys, values = self.heads * self.key_dims, self.heads * self.value_dims
    # Biases here would take the networks away from their published sizes. One
    # of the keys cancels in the softmax, one of the values is the output's.
    dense = functools.partial(self.dense, param_dtype=self.param_dtype)
    qkv = dense(2 * keys + values, use_bias=False, name='qkv')(x)
    query, key, value = (
        part.reshape(*x.shape[:-1], self.heads, -1)
        for part in jnp.split(qkv, (keys, 2 * keys), axis=-1)
    )
    tables = []
    if self.relative:
      tables.append(self._table('relative_rows', x.shape[1], query.dtype))
      tables.append(self._table('relative_columns', x.shape[2], query.dtype))
    out = relative_attention.relative_attention(
        query, key, value, *tables, valid_size=valid_size
    ).reshape(*x.shape[:-1], -1)
    return dense(values, use_bias=self.use_bias, name='project')(out)


_Ratio = Annotated[float, Bound(gt=0, lt=1)]


class AugmentedConv(nn.Conv, kw_only=True):
  """A convolution and self-attention side by side, joined along the channels.

  Takes the place of `nn.Conv`: the same fields, call and output shape. The
  convolution, `conv`, makes the first D - dv features, and `attention` the last
  dv. Queries, keys and values have no biases; `use_bias` gives one to every
  feature of the output, in both branches.

  Attention runs at the resolution of the convolution's output. For strides s
  its input is averaged over windows of 2 s - 1 around the positions that the
  convolution's windows are centred on; for `downsample` once more, and the
  result is interpolated bilinearly.

  The tables of relative positions are made for the size of image seen at init,
  and serve any, see `ops.relative_attention`.

  Its fields use_bias, kernel_init and the dtypes are the attention's, too.

  Attributes:
    heads: of the attention.
    key_ratio: kappa; keys have kappa D dimensions over all heads.
    value_ratio: upsilon; values have dv = upsilon D. Both are rounded to the
      nearest multiple of heads, and not to 0.
    min_key_dims: the least number of key dimensions of each head.
    relative: whether attention knows of relative positions.
    downsample: factor, of both axes, by which attention runs at a coarser grid
      to save memory, which grows with the square of the positions.
    convolution: `Conv` or `AWConv`, or a partial of one, whose fields then go
      before those of this layer.

  Source: section 3; the ratios, pooling and interpolation from section 4.
  """

  place = 'conv'  # See `attention`.
  heads: PositiveInt = 8
  key_ratio: _Ratio = 0.2
  value_ratio: _Ratio = 0.1
  min_key_dims: PositiveInt = 20
  relative: bool = True
  downsample: PositiveInt = 1
  convolution: Callable[..., Any] = Conv

  def _at_output(self, x, out_size, conv, valid_size):
    """Returns x, and its valid size, at the positions of the output."""
    strides = pair(conv.strides)
    spans, pads = spans_and_pads(conv, x.shape[1:3])
    offsets = [s // 2 - low for s, (low, _) in zip(spans, pads, strict=True)]
    x = resample.strided_average(
        x, out_size, strides, offsets=offsets, valid_size=valid_size
    )
    if valid_size is not None:
      valid_size = valid_output(valid_size, pads, spans, strides, x.shape)
    return x, valid_size

  @nn.compact
  def __call__(
      self, x: jax.Array, *, valid_size: jax.Array | None = None
  ) -> jax.Array:
    """Convolves and attends.

    Args:
      x: [N, H, W, C].
      valid_size: int [N, 2], see `ops.valid_area`. Attention leaves the padding
        out; the convolution sees it as it is, and for the output of the image
        alone it must be zero. Outputs at the padding mean nothing.

    Returns:
      [N, H', W', features].

    Raises:
      ValueError: shapes do not fit, or attention would take all features.
    """
    check_call(self, x)
    if valid_size is not None:
      valid_size = as_valid_size(valid_size, x.shape)
    least = (self.key_ratio, self.min_key_dims), (self.value_ratio, 1)
    key_dims, value_dims = (  # Of each head, to the nearest.
        max(math.floor(ratio * self.features / self.heads + 0.5), dims)
        for ratio, dims in least
    )
    taken = self.heads * value_dims
    if taken >= self.features:
      raise InputError(
          f'AugmentedConv: {self.heads} heads take {taken} of '
          f'{self.features} features; use fewer heads or a smaller value_ratio'
      )
    names = {f.name for f in dataclasses.fields(nn.Conv)} - {'parent', 'name'}
    fields = {name: getattr(self, name) for name in names}
    fields['features'] -= taken
    fields['kernel_size'] = pair(self.kernel_size)
    fields |= getattr(self.convolution, 'keywords', {})
    conv = self.convolution(**fields, name='conv')
    out = conv(x, valid_size=valid_size)

    x, valid_size = self._at_output(x, out.shape[1:3], conv, valid_size)
    factor, cells = self.downsample, valid_size
    if factor > 1:
      coarse = [-(-length // factor) for length in x.shape[1:3]]
      x = resample.strided_average(
          x, coarse, (factor,) * 2, valid_size=valid_size
      )
      cells = None if valid_size is None else -(-valid_size // factor)
    shared = dict(kernel_init=self.kernel_init, dtype=self.dtype)
    attended = RelativeSelfAttention(
        heads=self.heads,
        key_dims=key_dims,
        value_dims=value_dims,
        relative=self.relative,
        use_bias=self.use_bias,
        dense=functools.partial(nn.Dense, **shared),
        param_dtype=self.param_dtype,
        name='attention',
    )(x, valid_size=cells)
    if factor > 1:
      attended = resample.upsample_aligned(
          attended, out.shape[1:3], factor, valid_size=cells
      )
    return jnp.concatenate([out, attended.astype(out.dtype)], axis=-1)
