"""AW-convolution: a convolution whose kernel is recalibrated per sample.

  O[n] = conv(I[n], K * (1 + A[n]))

"An Attention Module for Convolutional Neural Networks",
https://arxiv.org/abs/2108.08205. The attention maps A have the kernel's shape.
They come in a compact form `[N, kh, kw, G, D']`: each of the G values along the
input axis stands for a run of C/groups/G consecutive input channels, each of
the D' values along the output axis for a run of D/D' consecutive outputs.
"""

from collections.abc import Callable, Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

# A batch that is sharded over a mesh axis of this name (see `partition.py`) is
# looped over on each device by itself; a loop over a sharded axis would
# otherwise gather the whole batch on every device.
DATA_AXIS = 'data'

Padding = str | Sequence[tuple[int, int]]


def modulate(
    kernel: jax.Array, attention: jax.Array, *, residual: bool = True
) -> jax.Array:
  """Returns K * (1 + A), the kernel of one sample.

  Args:
    kernel: shared kernel K, [kh, kw, C/groups, D].
    attention: one sample's maps A in compact form, [kh, kw, G, D'].
    residual: True for K * (1 + A), False for K * A.

  Returns:
    [kh, kw, C/groups, D] in the kernel's dtype, rounded once.
  """
  kh, kw, c, d = kernel.shape
  g, p = attention.shape[-2:]
  # The product is formed in at least float32, so that a bfloat16 kernel is
  # rounded once, and as an einsum, whose transpose is a plain reduction: the
  # gradient of a broadcast product is many times slower on CPU.
  wide = jnp.promote_types(kernel.dtype, jnp.float32)
  scale = attention.astype(wide)
  if residual:
    scale = 1 + scale
  split = kernel.astype(wide).reshape(kh, kw, g, c // g, p, d // p)
  product = jnp.einsum('ijgepf,ijgp->ijgepf', split, scale)
  return product.reshape(kernel.shape).astype(kernel.dtype)


def _convolve(x, kernel, *, strides, padding, dilation, groups, precision):
  """The plain convolution of x [N, H, W, C], accumulated in float32."""
  return lax.conv_general_dilated(
      x,
      kernel,
      strides,
      padding,
      rhs_dilation=dilation,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
      precision=precision,
  )


def _patches(image, kernel_size, strides, padding, dilation):
  """Returns the taps of one padded image [H, W, C]: [H', W', kh * kw, C]."""
  image = jnp.pad(image, (*padding, (0, 0)))
  size = image.shape[:2]
  out = [
      (n - (k - 1) * d - 1) // s + 1
      for n, k, s, d in zip(size, kernel_size, strides, dilation, strict=True)
  ]
  taps = []
  for i in range(kernel_size[0]):
    for j in range(kernel_size[1]):
      start = (i * dilation[0], j * dilation[1], 0)
      stop = tuple(
          b + (n - 1) * s + 1 for b, n, s in zip(start, out, strides)  # noqa: B905
      )
      taps.append(
          lax.slice(image, start, (*stop, image.shape[2]), (*strides, 1))
      )
  return jnp.stack(taps, axis=2)


def _vmap(x, kernel, attention, *, residual, **options):
  """Reference: one convolution per sample, batched by `jax.vmap`."""

  def one(image, maps):
    own = modulate(kernel, maps, residual=residual)
    return _convolve(image[None], own, **options)[0]

  return jax.vmap(one)(x, attention)


def _map(x, kernel, attention, *, residual, groups, precision, **window):
  """One sample after the other, each as patches times its own kernel.

  A matrix product inside the loop is used in place of a convolution since XLA
  has no fast backward pass for convolutions in loops on CPU; `jax.checkpoint`
  keeps only one sample's patches and kernel alive.
  """
  kh, kw, c, d = kernel.shape

  def one(operands):
    image, maps = operands
    own = modulate(kernel, maps, residual=residual)
    patches = _patches(image, (kh, kw), **window)
    height, width = patches.shape[:2]
    if groups == 1:
      out = jnp.dot(
          patches.reshape(height, width, kh * kw * c),
          own.reshape(kh * kw * c, d),
          precision=precision,
          preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
      )
    else:
      out = jnp.einsum(
          'hwtgc,tcgd->hwgd',
          patches.reshape(height, width, kh * kw, groups, c),
          own.reshape(kh * kw, c, groups, d // groups),
          precision=precision,
          preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
      ).reshape(height, width, d)
    return out.astype(x.dtype)

  return lax.map(jax.checkpoint(one), (x, attention))


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    'vmap': _vmap,
    'map': _map,
}

# Measured on CPU only. Elsewhere a loop over samples would leave the matrix
# units idle, so the batched form is the reasoned (unmeasured) default.
_AUTO = {'cpu': 'map'}
_AUTO_UNMEASURED = 'vmap'


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
      pairs (low, high) for height and width.
    dilation: vertical and horizontal spacing of the kernel's taps.
    groups: number of channel groups, as `feature_group_count`.
    residual: True for K * (1 + A), False for K * A.
    implementation: 'vmap' (the reference, per-sample kernels under `jax.vmap`),
      'map' (one sample after the other), or 'auto' (by backend).
    precision: as in `lax.conv_general_dilated`.

  Returns:
    O, [N, H', W', D], in the common dtype of x and kernel; sums are taken in
    float32 at least.

  Raises:
    ValueError: the shapes do not fit, or the implementation is unknown.

  Source: arXiv 2108.08205; the residual form keeps K when A is 0.
  """
  _check_shapes(x, kernel, attention, groups)
  if implementation == 'auto':
    implementation = _AUTO.get(jax.default_backend(), _AUTO_UNMEASURED)
  if implementation not in IMPLEMENTATIONS:
    known = ', '.join(['auto', *IMPLEMENTATIONS])
    raise ValueError(
        f'unknown implementation {implementation!r}; known: {known}'
    )
  dtype = jnp.promote_types(x.dtype, kernel.dtype)
  window = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation)]  # noqa: B905
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
  function = functools.partial(
      IMPLEMENTATIONS[implementation],
      residual=residual,
      strides=tuple(strides),
      padding=tuple(map(tuple, padding)),
      dilation=tuple(dilation),
      groups=groups,
      precision=precision,
  )
  return _over_data_shards(
      function, x.astype(dtype), kernel.astype(dtype), attention
  )
