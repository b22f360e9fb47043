"""The forms that leave their derivatives to JAX: vmap, map, im2col, taps.

Each is `form(x, kernel, attention, options)` with the arguments of
`ops.aw_conv.aw_conv`. They allow any order of derivative, forward and reverse.
"""

import dataclasses
import functools
import itertools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# The scope of products that are multiply-adds though no matrix product.
MULTIPLY_ADDS = 'multiply_adds'


@dataclasses.dataclass(frozen=True)
class Options:
  """Those of `ops.aw_conv.aw_conv`, with the padding as (low, high) of axes."""

  strides: tuple[int, int]
  padding: tuple[tuple[int, int], tuple[int, int]]
  dilation: tuple[int, int]
  groups: int
  residual: bool
  precision: lax.PrecisionLike
  chunk: int | None

  def output_size(self, size, kernel_size):
    """Returns (H', W') for an image of size (H, W)."""
    windows = zip(
        *(size, kernel_size, self.strides, self.padding, self.dilation),
        strict=True,
    )
    return tuple(
        (n + sum(p) - (k - 1) * d - 1) // s + 1 for n, k, s, p, d in windows
    )


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
  # Wide, so that a bfloat16 kernel is rounded once; as an einsum, whose
  # transpose is a plain reduction: the gradient of a broadcast product is many
  # times slower on CPU.
  wide = accumulator(kernel.dtype)
  scale = scale_of(attention, wide, residual)
  # A last axis of one would keep XLA from vectorising over the outputs.
  runs_out = () if p == d else (d // p,)
  split = kernel.astype(wide).reshape(kh, kw, g, c // g, p, *runs_out)
  product = jnp.einsum('ijgep...,ijgp->ijgep...', split, scale)
  return product.reshape(kernel.shape).astype(kernel.dtype)


def scale_of(maps: jax.Array, dtype, residual: bool) -> jax.Array:
  """Returns what the kernel is multiplied by, 1 + A or A, in a dtype."""
  maps = maps.astype(dtype)
  return 1 + maps if residual else maps


def tap_views(image: jax.Array, kernel_size, options: Options):
  """Returns what each tap sees of an image [H, W, C]: arrays [H', W', C]."""
  counts = np.array(options.output_size(image.shape[:2], kernel_size))
  config = [(*pair, 0) for pair in options.padding] + [(0, 0, 0)]
  image = lax.pad(image, jnp.zeros((), image.dtype), config)
  strides, channels = options.strides, image.shape[2]
  views = []
  for tap in itertools.product(*map(range, kernel_size)):
    start = np.multiply(tap, options.dilation)
    ends = (*start, 0), (*(start + (counts - 1) * strides + 1), channels)
    views.append(lax.slice(image, *ends, (*strides, 1)))
  return views


def patches(image: jax.Array, kernel_size, options: Options):
  """Returns an image's patches, [groups, H' * W', kh * kw * C / groups]."""
  views = tap_views(image, kernel_size, options)
  split = [split_groups(view, options.groups) for view in views]
  return jnp.concatenate(split, axis=-1)


def split_groups(image: jax.Array, groups: int) -> jax.Array:
  """Returns [H, W, C] as [groups, H * W, C / groups]."""
  height, width, channels = image.shape
  if groups == 1:  # Nothing moves.
    return image.reshape(1, height * width, channels)
  image = image.reshape(height * width, groups, channels // groups)
  return jnp.moveaxis(image, 1, 0)


def join_groups(matrices: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Returns [groups, H * W, D / groups] as [H, W, D]."""
  return jnp.moveaxis(matrices, 0, 1).reshape(*size, -1)


def as_matrices(kernel: jax.Array, groups: int) -> jax.Array:
  """Returns [..., C/groups, D] as [groups, ... * C/groups, D/groups]."""
  d = kernel.shape[-1]
  split = kernel.reshape(-1, groups, d // groups)
  return jnp.moveaxis(split, 1, 0)


def accumulator(dtype) -> jnp.dtype:
  """Returns the dtype in which sums of products of `dtype` are taken."""
  return jnp.promote_types(dtype, jnp.float32)


def dot(lhs: jax.Array, rhs: jax.Array, contract: tuple[int, int], precision):
  """Returns the products of matrices [groups, ., .], in `accumulator`'s dtype.

  `contract` is the axis of each that is summed over, 0 or 1.
  """
  product = functools.partial(
      lax.dot_general,
      dimension_numbers=(((contract[0],), (contract[1],)), ((), ())),
      precision=precision,
      preferred_element_type=accumulator(lhs.dtype),
  )
  if lhs.shape[0] == 1:
    # A batch axis, even of one, keeps XLA from its fastest product on CPU.
    return product(lhs[0], rhs[0])[None]
  return jax.vmap(product)(lhs, rhs)


def convolve_one(image, kernel, options: Options):
  """Returns one sample's output [H', W', D] as a convolution."""
  return lax.conv_general_dilated(
      image[None],
      kernel,
      options.strides,
      options.padding,
      rhs_dilation=options.dilation,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=options.groups,
      precision=options.precision,
  )[0]


def multiply_one(image, kernel, options: Options):
  """Returns one sample's output [H', W', D] as its patches times its kernel."""
  size = options.output_size(image.shape[:2], kernel.shape[:2])
  seen = patches(image, kernel.shape[:2], options)
  matrices = as_matrices(kernel, options.groups)
  out = dot(seen, matrices, (1, 0), options.precision)
  return join_groups(out, size).astype(image.dtype)


def scale_channels(image: jax.Array, factors: jax.Array) -> jax.Array:
  """Returns each channel times its factors, [H, W, C] and [D] to [H, W, D]."""
  # In plain products: as an einsum the backward pass takes 1.4 times as long on
  # CPU. Their scope tells that they are the multiply-adds of a convolution.
  channels = image.shape[2]
  with jax.named_scope(MULTIPLY_ADDS):
    if factors.size == channels:  # A last axis of one would not be vectorised.
      return image * factors
    product = image[..., None] * factors.reshape(channels, -1)
  return product.reshape(*image.shape[:2], factors.size)


def add_taps_one(image, kernel, options: Options):
  """Returns one sample's output [H', W', D] as a sum over the kernel's taps."""
  size = options.output_size(image.shape[:2], kernel.shape[:2])
  views = tap_views(image, kernel.shape[:2], options)
  matrices = kernel.reshape(-1, *kernel.shape[2:])
  if kernel.shape[2] == 1:  # Depthwise: there is nothing to sum but the taps.
    wide = accumulator(image.dtype)
    out = sum(
        scale_channels(v.astype(wide), m.astype(wide))
        for v, m in zip(views, matrices[:, 0], strict=True)
    )
    return jnp.asarray(out, image.dtype)
  out = 0
  for view, matrix in zip(views, matrices, strict=True):
    seen = split_groups(view, options.groups)
    matrix = as_matrices(matrix, options.groups)
    out += dot(seen, matrix, (1, 0), options.precision)
  return join_groups(out, size).astype(image.dtype)


def with_own_kernel(function, kernel, options: Options):
  """Returns function(image, own kernel, options) as one of (image, maps)."""
  # Wide outside of any loop over samples, which sums up its gradient.
  kernel = kernel.astype(accumulator(kernel.dtype))

  def one(image, maps):
    scaled = modulate(kernel, maps, residual=options.residual)
    return function(image, scaled.astype(image.dtype), options)

  return one


def _batched(function, x, kernel, attention, options):
  """Returns function of all samples at once, or of a chunk at a time."""
  one = with_own_kernel(function, kernel, options)
  chunk = options.chunk
  if chunk is None:
    return jax.vmap(one)(x, attention)
  # Only one chunk's patches and kernels are kept alive.
  several = jax.checkpoint(jax.vmap(one))
  # Filled up with zeros, so that a symbolic number of samples will do.
  chunks = -(-x.shape[0] // chunk)
  missing = chunks * chunk - x.shape[0]

  def split(array):
    array = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
    return array.reshape(chunks, chunk, *array.shape[1:])

  out = lax.map(lambda both: several(*both), (split(x), split(attention)))
  return out.reshape(chunks * chunk, *out.shape[2:])[: x.shape[0]]


# The reference: one convolution per sample, batched by `jax.vmap`.
vmap = functools.partial(_batched, convolve_one)
# All patches of the batch times all kernels, as one batched product.
im2col = functools.partial(_batched, multiply_one)
# A batched product per tap of the kernel, summed: no patches in memory.
taps = functools.partial(_batched, add_taps_one)


def map_samples(x, kernel, attention, options: Options):
  """One sample after the other, each as patches times its own kernel."""
  # XLA has no fast backward pass for convolutions in loops on CPU. Only one
  # sample's patches and kernel are kept alive.
  one = jax.checkpoint(with_own_kernel(multiply_one, kernel, options))
  return lax.map(lambda operands: one(*operands), (x, attention))


def backward(form, options: Options, x, kernel, attention, grad):
  """Returns the gradients of x, kernel and attention that JAX derives."""
  run = functools.partial(form, options=options)
  return jax.vjp(run, x, kernel, attention)[1](grad)


def in_reverse_only(apply, *operands):
  """Returns apply(*operands), which has a backward pass of its own only."""
  try:
    return apply(*operands)
  except TypeError as error:
    if 'forward-mode' in str(error):
      # What 'auto' takes may have no forward derivatives, either.
      error.add_note(
          "aw_conv: for jvp, jacfwd, hessian say implementation='map'"
      )
    raise
