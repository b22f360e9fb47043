"""AW-convolution: a convolution whose kernel is recalibrated per sample.

  O[n] = conv(I[n], K * (1 + A[n]))

"An Attention Module for Convolutional Neural Networks",
https://arxiv.org/abs/2108.08205. The attention maps A have the kernel's shape.
They come in a compact form `[N, kh, kw, G, D']`: each of the G values along the
input axis stands for a run of C/groups/G consecutive input channels, each of
the D' values along the output axis for a run of D/D' consecutive outputs.
"""

from collections.abc import Callable, Iterable, Sequence
import functools
import math
import numbers
import warnings

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.ops.aw_conv import forms as aw_conv_forms
from awconv_jax.ops.aw_conv import fused as aw_conv_fused
from awconv_jax.ops.aw_conv import loops as aw_conv_loops
from awconv_jax.ops.data_shards import over_data_shards

Padding = str | Sequence[tuple[int, int]]


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    'vmap': aw_conv_forms.vmap,
    'map': aw_conv_forms.map_samples,
    'im2col': aw_conv_forms.im2col,
    'taps': aw_conv_forms.taps,
    'loop_dot': aw_conv_loops.loop_dot,
    'loop_conv': aw_conv_loops.loop_conv,
    'fused': aw_conv_fused.fused,
}

# Forms that can take the samples in chunks.
CHUNKED = ('vmap', 'im2col', 'taps')

# What 'auto' stands for, by backend and kind of kernel: the form for images of
# up to so many output positions. Measured: docs/performance.md.
_ANY = math.inf
_AUTO = {
    'cpu': {
        'full': ((400, 'loop_dot'), (_ANY, 'loop_conv')),
        'grouped': ((_ANY, 'map'),),
        'pointwise': ((_ANY, 'map'),),
        'depthwise': ((_ANY, 'taps'),),
    }
}
# Elsewhere a loop over single samples would leave the matrix units idle; the
# reasoned, unmeasured default are the forms with batched products, over as many
# samples at a time as take so much memory for their patches and kernels.
_AUTO_UNMEASURED = {
    'full': ((_ANY, 'im2col'),),
    'grouped': ((_ANY, 'im2col'),),
    'pointwise': ((_ANY, 'im2col'),),
    'depthwise': ((_ANY, 'taps'),),
}
_UNMEASURED_BYTES = 2**28


def kind(kernel_shape: Sequence[int], groups: int) -> str:
  """Returns 'full', 'grouped', 'pointwise' or 'depthwise' for a kernel.

  Args:
    kernel_shape: [kh, kw, C/groups, D].
    groups: number of channel groups.
  """
  if groups > 1:
    return 'depthwise' if kernel_shape[2] == 1 else 'grouped'
  return 'pointwise' if tuple(kernel_shape[:2]) == (1, 1) else 'full'


def choose(
    kernel_shape: Sequence[int], groups: int, positions: int, backend: str
) -> str:
  """Returns the implementation that 'auto' stands for.

  Args:
    kernel_shape: [kh, kw, C/groups, D].
    groups: number of channel groups.
    positions: H' * W', positions of the output.
    backend: such as 'cpu'; other backends than that are not measured yet.
  """
  table = _AUTO.get(backend, _AUTO_UNMEASURED)[kind(kernel_shape, groups)]
  return next(name for most, name in table if positions <= most)


def _auto(samples, kernel, groups, positions):
  """Returns the implementation and the chunk that 'auto' stands for."""
  backend = jax.default_backend()
  name = choose(kernel.shape, groups, positions, backend)
  if backend in _AUTO:
    return name, None
  warnings.warn(
      f"aw_conv: nothing is measured on {backend!r} yet; 'auto' takes batched "
      "products there ('im2col', or 'taps' for depthwise kernels), in chunks "
      f'of {_UNMEASURED_BYTES / 2**20:.0f} MiB at most',
      stacklevel=3,
  )
  patches = positions * math.prod(kernel.shape[:3]) * groups
  bytes_each = (kernel.size + patches) * kernel.dtype.itemsize
  chunk = max(1, _UNMEASURED_BYTES // bytes_each)
  fits = isinstance(samples, int) and samples <= chunk
  return name, None if fits else chunk


def check_implementation(name, chunk):
  """Raises ValueError for an unknown name, or a chunk that it does not take.

  Args:
    name: implementation of `aw_conv`.
    chunk: samples at a time, or None.
  """
  if name not in ('auto', *IMPLEMENTATIONS):
    known = ', '.join(['auto', *IMPLEMENTATIONS])
    raise ValueError(f'unknown implementation {name!r}; known: {known}')
  if chunk is None:
    return
  whole = isinstance(chunk, numbers.Integral) and not isinstance(chunk, bool)
  if not whole or chunk < 1:
    raise ValueError(
        f'chunk must be a number of samples or None, not {chunk!r}'
    )
  if name not in ('auto', *CHUNKED):
    raise ValueError(
        f'chunk={chunk}: {name!r} takes no chunks; they are for '
        f'{", ".join(CHUNKED)}'
    )


def _check_shapes(x, kernel, attention, groups):
  """Raises ValueError for operands that do not belong together."""
  if x.ndim != 4 or kernel.ndim != 4 or attention.ndim != 5:
    raise ValueError(
        'aw_conv wants x [N, H, W, C], kernel [kh, kw, C/groups, D] and '
        f"attention [N, kh, kw, G, D'], not {x.shape}, {kernel.shape} and "
        f'{attention.shape}'
    )
  kh, kw, c, d = kernel.shape
  if x.shape[3] != c * groups or d % groups:
    raise ValueError(
        f'kernel {kernel.shape} with groups={groups} does not fit x {x.shape}: '
        "C must be groups times the kernel's third size, and groups divide D"
    )
  n, ah, aw, g, p = attention.shape
  fits = (n, ah, aw) == (x.shape[0], kh, kw) and g > 0 and p > 0
  if not fits or c % g or d % p:
    raise ValueError(
        f'attention {attention.shape} does not fit x {x.shape} and kernel '
        f"{kernel.shape}: want [N, kh, kw, G, D'], G dividing C/groups and "
        "D' dividing D"
    )


def _int_pair(value, name, least=None):
  """Returns value as a pair of ints; raises ValueError if it is none."""
  entries = tuple(value) if isinstance(value, Iterable) else ()
  if len(entries) != 2 or not all(
      isinstance(entry, numbers.Integral) for entry in entries
  ):
    raise ValueError(f'{name} must be a pair of ints, not {value!r}')
  if least is not None and min(entries) < least:
    raise ValueError(f'{name} must be at least {least}, not {value!r}')
  return int(entries[0]), int(entries[1])


def _check_padding(padding):
  """Returns explicit padding as pairs of ints; raises ValueError if not so."""
  axes = tuple(padding) if isinstance(padding, Iterable) else ()
  if len(axes) != 2:
    raise ValueError(
        'padding must be a name or a pair (low, high) for height and width, '
        f'not {padding!r}'
    )
  return tuple(_int_pair(own, 'padding of each axis') for own in axes)


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
    padding: Padding = 'SAME',
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
      C/groups and D' divides D; each value stands for a run of consecutive
      input (output) channels.
    strides: vertical and horizontal stride.
    padding: as in `lax.conv_general_dilated`: 'SAME', 'VALID', 'SAME_LOWER' or
      pairs (low, high) for height and width, where a negative number crops.
    dilation: vertical and horizontal spacing of the kernel's taps.
    groups: number of channel groups, as `feature_group_count`.
    residual: True for K * (1 + A), False for K * A.
    implementation: 'auto' (by backend and shape), or a name in
      `IMPLEMENTATIONS`: 'vmap' (the reference, per-sample kernels under
      `jax.vmap`), 'map' (one sample after the other), 'im2col' and 'taps'
      (batched products), 'loop_dot' and 'loop_conv' (loops with a backward
      pass of their own; fastest on CPU, but not for `jax.jvp`), 'fused' (for
      GPU: kernels scaled on their way to the matrix unit; 'im2col' on other
      accelerators and for what it has no tiles for, see docs/performance.md).
    chunk: samples at a time, to bound the memory of 'vmap', 'im2col' and
      'taps', whose patches and kernels are then formed again in the backward
      pass; None for all at once. The others take none.
    precision: as in `lax.conv_general_dilated`.

  Returns:
    O, [N, H', W', D], in the common dtype of x and kernel; sums are taken in
    float32 at least.

  Raises:
    ValueError: the shapes do not fit, strides, padding or dilation are not
      pairs, the implementation is unknown, or takes no chunks.

  Source: arXiv 2108.08205; the residual form keeps K when A is 0.
  """
  _check_shapes(x, kernel, attention, groups)
  check_implementation(implementation, chunk)
  strides = _int_pair(strides, 'strides', least=1)
  dilation = _int_pair(dilation, 'dilation', least=1)
  dtype = jnp.promote_types(x.dtype, kernel.dtype)
  if isinstance(padding, str):
    spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation)]  # noqa: B905
    padding = lax.padtype_to_pads(x.shape[1:3], spans, strides, padding)
  x, padding = _crop(x, _check_padding(padding))
  window = dict(strides=strides, padding=padding, dilation=dilation)
  positions = math.prod(
      aw_conv_forms.output_size(x.shape[1:3], kernel.shape[:2], **window)
  )
  if 0 in (x.shape[0], positions):
    implementation = 'vmap'  # Nothing to compute; not all forms can.
  elif implementation == 'auto':
    implementation, own_chunk = _auto(x.shape[0], kernel, groups, positions)
    chunk = chunk or own_chunk
  function = functools.partial(
      IMPLEMENTATIONS[implementation],
      **(dict(chunk=chunk) if implementation in CHUNKED else {}),
      residual=residual,
      groups=groups,
      precision=precision,
      **window,
  )
  return over_data_shards(
      lambda x, attention, kernel: function(x, kernel, attention),
      batch=(x.astype(dtype), attention),
      shared=(kernel.astype(dtype),),
  )
