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

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.ops import aw_conv_forms, aw_conv_loops

# A batch that is sharded over a mesh axis of this name (see `partition.py`) is
# looped over on each device by itself; a loop over a sharded axis would
# otherwise gather the whole batch on every device.
DATA_AXIS = 'data'

Padding = str | Sequence[tuple[int, int]]


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    'vmap': aw_conv_forms.vmap,
    'map': aw_conv_forms.map_samples,
    'im2col': aw_conv_forms.im2col,
    'taps': aw_conv_forms.taps,
    'loop_dot': aw_conv_loops.loop_dot,
    'loop_conv': aw_conv_loops.loop_conv,
}

# By backend: the form for images of up to so many output positions. Measured on
# CPU only: docs/performance.md.
_AUTO = {'cpu': ((400, 'loop_dot'), (math.inf, 'loop_conv'))}
# Elsewhere a loop over samples would leave the matrix units idle; the reasoned,
# unmeasured default is the form with one batched product.
_AUTO_UNMEASURED = ((math.inf, 'im2col'),)


def choose(positions: int, backend: str) -> str:
  """Returns the implementation that 'auto' stands for.

  Args:
    positions: H' * W', positions of the output.
    backend: such as 'cpu'; other backends than that are not measured yet.
  """
  table = _AUTO.get(backend, _AUTO_UNMEASURED)
  return next(name for most, name in table if positions <= most)


def _over_data_shards(function, x, kernel, attention):
  """Runs function on every device's own samples if a mesh is in force."""
  mesh = jax.sharding.get_abstract_mesh()
  auto = jax.sharding.AxisType.Auto
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  if types.get(DATA_AXIS) != auto or x.shape[0] % mesh.shape[DATA_AXIS]:
    return function(x, kernel, attention)
  batch, shared = jax.P(DATA_AXIS), jax.P()
  return jax.shard_map(
      function,
      in_specs=(batch, shared, batch),
      out_specs=batch,
      axis_names={DATA_AXIS},
      check_vma=False,  # The forms know nothing of meshes.
  )(x, kernel, attention)


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
      pass of their own; fastest on CPU, but not for `jax.jvp`).
    precision: as in `lax.conv_general_dilated`.

  Returns:
    O, [N, H', W', D], in the common dtype of x and kernel; sums are taken in
    float32 at least.

  Raises:
    ValueError: the shapes do not fit, strides, padding or dilation are not
      pairs, or the implementation is unknown.

  Source: arXiv 2108.08205; the residual form keeps K when A is 0.
  """
  _check_shapes(x, kernel, attention, groups)
  if implementation not in ('auto', *IMPLEMENTATIONS):
    known = ', '.join(['auto', *IMPLEMENTATIONS])
    raise ValueError(
        f'unknown implementation {implementation!r}; known: {known}'
    )
  strides = _int_pair(strides, 'strides', least=1)
  dilation = _int_pair(dilation, 'dilation', least=1)
  dtype = jnp.promote_types(x.dtype, kernel.dtype)
  window = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation)]  # noqa: B905
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
  padding = _check_padding(padding)
  if implementation == 'auto':
    height, width = aw_conv_forms.output_size(
        x.shape[1:3],
        kernel.shape[:2],
        strides=strides,
        padding=padding,
        dilation=dilation,
    )
    implementation = choose(height * width, jax.default_backend())
  function = functools.partial(
      IMPLEMENTATIONS[implementation],
      residual=residual,
      strides=strides,
      padding=padding,
      dilation=dilation,
      groups=groups,
      precision=precision,
  )
  return _over_data_shards(
      function, x.astype(dtype), kernel.astype(dtype), attention
  )
