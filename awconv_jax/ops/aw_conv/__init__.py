"""AW-convolution: a convolution whose kernel is recalibrated per sample.

  O[n] = conv(I[n], K * (1 + A[n]))

"An Attention Module for Convolutional Neural Networks",
https://arxiv.org/abs/2108.08205. The attention maps A have the kernel's shape.
They come in a compact form `[N, kh, kw, G, D']`: each of the G values along the
input axis stands for a run of C/groups/G consecutive input channels, each of
the D' values along the output axis for a run of D/D' consecutive outputs.
"""

from collections.abc import Callable, Sequence
import math
import operator

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.errors import look_up
from awconv_jax.ops.aw_conv import choice
from awconv_jax.ops.aw_conv.choice import FORMS
from awconv_jax.ops.aw_conv.forms import Options
from awconv_jax.ops.data_shards import over_data_shards

# The forms by name, and what chooses among them.
IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    'auto': choice.auto,
    **{name: form.forward for name, form in FORMS.items()},
    'fused': choice.fused,
}
CHUNKED = tuple(name for name, form in FORMS.items() if form.batched)


def _check_shapes(x, kernel, attention, groups):
  """Raises ValueError for operands that do not belong together."""
  fits = (x.ndim, kernel.ndim, attention.ndim) == (4, 4, 5)
  if fits:
    *taps, c, d = kernel.shape
    *places, g, p = attention.shape
    fits = x.shape[3] == c * groups and places == [x.shape[0], *taps]
    fits = fits and g and p and not (d % groups or c % g or d % p)
  if not fits:
    raise ValueError(
        f'aw_conv: x {x.shape}, kernel {kernel.shape} and attention '
        f'{attention.shape} do not fit with groups={groups}: want '
        "[N, H, W, C], [kh, kw, C/groups, D] and [N, kh, kw, G, D'], where G "
        "divides C/groups, and D' and groups divide D"
    )


def _crop(x, padding):
  """Returns x without what negative padding crops, and the padding left.

  XLA's convolution on CPU reads beyond the image where one side crops and the
  other pads by as much (jaxlib 0.10.2, float32).
  """
  if min(n for pair in padding for n in pair) >= 0:
    return x, padding
  crops = [(0, 0, 0)]
  crops += [(min(low, 0), min(high, 0), 0) for low, high in padding]
  x = lax.pad(x, jnp.zeros((), x.dtype), [*crops, (0, 0, 0)])
  return x, tuple((max(low, 0), max(high, 0)) for low, high in padding)


def aw_conv(
    x: jax.Array,
    kernel: jax.Array,
    attention: jax.Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = 'SAME',
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    residual: bool = True,
    implementation: str = 'auto',
    chunk: int | None = None,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
  """Convolves each sample with its own kernel: conv(I[n], K * (1 + A[n])).

  Args:
    x: input I, [N, H, W, C].
    kernel: shared kernel K, [kh, kw, C/groups, D].
    attention: maps A in compact form, [N, kh, kw, G, D'], where G divides
      C/groups and D' divides D.
    strides: vertical and horizontal stride.
    padding: as in `lax.conv_general_dilated`: 'SAME', 'VALID', 'SAME_LOWER' or
      pairs (low, high) for height and width, where a negative number crops.
    dilation: vertical and horizontal spacing of the kernel's taps.
    groups: number of channel groups, as `feature_group_count`.
    residual: True for K * (1 + A), False for K * A.
    implementation: a name in `IMPLEMENTATIONS`: 'auto' (by shape, and by the
      platform that the program is lowered for: `choice.TABLE`), 'vmap' (the
      reference, per-sample kernels under `jax.vmap`), 'map' (one sample after
      the other), 'im2col' and 'taps' (batched products), 'loop_dot' and
      'loop_conv' (loops with a backward pass of their own; fastest on CPU, but
      not for `jax.jvp`), 'fused' (kernels scaled on their way to the matrix
      unit, in Pallas; as 'auto' where a platform has none for the operands, see
      docs/performance.md).
    chunk: samples at a time, to bound the memory of 'vmap', 'im2col' and
      'taps', whose patches and kernels are then formed again in the backward
      pass; None for all at once, and what 'auto' thinks fit. The others take
      none.
    precision: as in `lax.conv_general_dilated`.

  Returns:
    O, [N, H', W', D], in the common dtype of x and kernel; sums are taken in
    float32 at least.

  Raises:
    ValueError: the shapes do not fit, the implementation is unknown, or takes
      no chunks.
  """
  _check_shapes(x, kernel, attention, groups)
  look_up('implementation', implementation, IMPLEMENTATIONS)
  if chunk is not None and implementation not in ('auto', *CHUNKED):
    raise ValueError(
        f'chunk={chunk}: {implementation!r} takes no chunks; they are for '
        f'{", ".join(CHUNKED)}'
    )
  if isinstance(padding, str):
    windows = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation)]  # noqa: B905
    padding = lax.padtype_to_pads(x.shape[1:3], windows, strides, padding)
  # They may be lists, and NumPy's integers.
  strides, dilation, *padding = (
      (operator.index(a), operator.index(b))
      for a, b in (strides, dilation, *padding)
  )
  x, padding = _crop(x, tuple(padding))
  options = Options(
      strides, padding, dilation, groups, residual, precision, chunk
  )
  positions = math.prod(options.output_size(x.shape[1:3], kernel.shape[:2]))
  if 0 in (x.shape[0], positions):
    implementation = 'vmap'  # Nothing to compute; not all forms can.
  function = IMPLEMENTATIONS[implementation]
  dtype = jnp.promote_types(x.dtype, kernel.dtype)
  return over_data_shards(
      lambda x, attention, kernel: function(x, kernel, attention, options),
      batch=(x.astype(dtype), attention),
      shared=(kernel.astype(dtype),),
  )
