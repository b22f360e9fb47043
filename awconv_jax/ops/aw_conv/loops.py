"""AW-convolution as a loop over samples with a backward pass of its own.

Only one sample's kernel K * (1 + A[n]) exists at a time, and each is a matrix
product or a convolution in the form that runs fastest. With G[n] the gradient
of the output, P[n] the patches of the input and dKn = P[n]^T G[n]:

  dI[n] = conv_transpose(G[n], K * (1 + A[n]))
  dK    = sum_n dKn * (1 + A[n])
  dA[n] = sum over each run of channels of dKn * K

`loop_dot` suits small images with many channels, `loop_conv` large ones. Both
can be differentiated repeatedly in reverse, but not forward (`jax.jvp`).
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from awconv_jax.ops.aw_conv import forms

# A backward pass holds four arrays of the kernel's size for each sample: K,
# K * (1 + A), dKn and the sum dK. It goes through blocks of input channels that
# keep them in the caches; blocks of this size were fastest on CPU.
_BLOCK_BYTES = 2.5e6


def _input_gradient_dot(grad, kernel, image, options):
  """Returns dI [H, W, C] of one sample: a product, then patches put back."""
  matrices = forms.as_matrices(kernel, options.groups)
  grad = forms.split_groups(grad, options.groups)
  columns = forms.dot(grad, matrices, (1, 1), options.precision)

  def see(x):
    return forms.patches(x, kernel.shape[:2], options)

  wide = jax.ShapeDtypeStruct(image.shape, columns.dtype)
  (result,) = jax.linear_transpose(see, wide)(columns)
  return result.astype(image.dtype)


def _input_gradient_conv(grad, kernel, image, options):
  """Returns dI [H, W, C] of one sample as a convolution of stride 1."""
  # In this form XLA has a fast convolution in loops on CPU, and in that of its
  # own transpose rule not.
  kh, kw, c, d = kernel.shape
  groups = options.groups
  flipped = kernel[::-1, ::-1].reshape(kh, kw, c, groups, d // groups)
  flipped = flipped.transpose(0, 1, 4, 3, 2).reshape(kh, kw, -1, c * groups)
  spans = [(k - 1) * s for k, s in zip((kh, kw), options.dilation)]  # noqa: B905
  parts = zip(spans, options.padding, image.shape, grad.shape, strict=False)
  padding = [(span - low, n - m + low) for span, (low, _), n, m in parts]
  back = dataclasses.replace(options, padding=padding)
  return forms.convolve_one(grad, flipped, back)


class _Layout:
  """How a kernel lies in a backward pass, and an axis for each of its parts.

  The parts: taps, runs of channels that share a value of the maps, channels of
  a run. With outputs_first the product that forms dKn has few rows, which is up
  to 1.4 times as fast for large images; the sums over runs are slower.
  """

  def __init__(self, outputs_first, kernel_shape, maps_shape):
    kh, kw, c, d = kernel_shape
    g, p = maps_shape[-2:]
    inputs, outputs = (kh, kw, g, c // g), (p, d // p)
    self._outputs_first = outputs_first
    self._axis = 0 if outputs_first else 3  # Of outputs, in kernel and maps.
    self._arranged = (d, kh, kw, c) if outputs_first else kernel_shape
    # The split shape, and its axes within a run.
    if outputs_first:
      self._shape, self._within = (*outputs, *inputs), (1, 5)
    elif p < d:
      self._shape, self._within = (*inputs, *outputs), (3, 5)
    else:  # A last axis of one would keep XLA from vectorising over outputs.
      self._shape, self._within = (*inputs, p), (3,)

  def arrange(self, kernel):
    """Returns the kernel with the outputs where they belong."""
    return jnp.moveaxis(kernel, 3, self._axis)

  def split(self, arranged):
    """Returns what was arranged with all axes; `restore` is the way back."""
    return arranged.reshape(self._shape)

  def restore(self, split):
    return jnp.moveaxis(split.reshape(self._arranged), self._axis, 3)

  def scale(self, maps):
    """Returns the maps so that they broadcast against what is split."""
    return jnp.expand_dims(jnp.moveaxis(maps, 3, self._axis), self._within)

  def reduce(self, product):
    """Returns the sums over runs, in the shape of the maps."""
    return jnp.moveaxis(product.sum(self._within), self._axis, 3)

  def gradient(self, grad, seen, precision):
    """Returns dKn, split."""
    if self._outputs_first:
      return self.split(forms.dot(grad, seen, (0, 0), precision))
    product = forms.dot(seen, grad, (0, 0), precision)
    return self.split(jnp.moveaxis(product, 0, 1))  # To [k, D].


def _count_blocks(kernel, runs):
  """Returns into how many blocks, of whole runs of inputs, a pass is split."""
  size = kernel.size * forms.accumulator(kernel.dtype).itemsize
  counts = [b for b in range(1, runs + 1) if runs % b == 0]
  return next((b for b in counts if size <= b * _BLOCK_BYTES), 1)


def _read(array, n, block, blocks):
  """Returns a block of the fourth axis of sample n, without its first axis."""
  size = array.shape[3] // blocks
  start = (n, 0, 0, block * size, *[0] * (array.ndim - 4))
  shape = (1, *array.shape[1:3], size, *array.shape[4:])
  return lax.dynamic_slice(array, start, shape)[0]


def _write(array, values, n, block):
  """Returns the array with what `_read` reads replaced by values."""
  start = (n, 0, 0, block * values.shape[2], *[0] * (array.ndim - 4))
  return lax.dynamic_update_slice(
      array, values[None].astype(array.dtype), start
  )


def _backward(
    input_gradient, options, x, kernel, attention, grad, *, outputs_first
):
  """Returns the gradients of x, kernel and attention, by that of the output."""
  wide = forms.accumulator(x.dtype)
  # A block of input channels is a slice of the kernel without channel groups
  # only; they are small in any case.
  whole = options.groups > 1
  blocks = 1 if whole else _count_blocks(kernel, attention.shape[3])

  def add_block(gradients, block):
    """Writes dI and dA of a block of input channels; returns its dK, too."""
    size = kernel.shape[2] // blocks
    shared = lax.dynamic_slice_in_dim(kernel, block * size, size, 2)
    runs, outputs = attention.shape[3] // blocks, attention.shape[4]
    parts = _Layout(outputs_first, shared.shape, (runs, outputs))
    arranged = parts.arrange(shared)

    def add_sample(carry, n):
      total, x_grad, attention_grad = carry
      image = _read(x, n, block, blocks)
      maps = _read(attention, n, block, blocks)
      out_grad = lax.dynamic_index_in_dim(grad, n, keepdims=False)
      scaled = forms.modulate(shared, maps, residual=options.residual)
      scale = parts.scale(forms.scale_of(maps, wide, options.residual))
      scaled_grad = parts.gradient(
          forms.split_groups(out_grad, options.groups),
          forms.patches(image, kernel.shape[:2], options),
          options.precision,
      )
      # Split in here: outside, the loop would hold the kernel a second time.
      split = parts.split(arranged).astype(wide)
      image_grad = input_gradient(out_grad, scaled, image, options)
      total = total + scaled_grad * scale
      x_grad = _write(x_grad, image_grad, n, block)
      maps_grad = parts.reduce(scaled_grad * split)
      attention_grad = _write(attention_grad, maps_grad, n, block)
      return (total, x_grad, attention_grad), None

    zeros = jnp.zeros_like(parts.split(arranged), wide)
    (total, *gradients), _ = lax.scan(
        add_sample, (zeros, *gradients), jnp.arange(x.shape[0])
    )
    return gradients, parts.restore(total).astype(kernel.dtype)

  gradients = [jnp.zeros_like(x), jnp.zeros_like(attention)]
  if blocks == 1:
    gradients, kernel_grad = add_block(gradients, 0)
  else:
    gradients, parts = lax.scan(add_block, gradients, jnp.arange(blocks))
    kernel_grad = jnp.moveaxis(parts, 0, 2).reshape(kernel.shape)
  return gradients[0], kernel_grad, gradients[1]


def _loop(forward, backward, x, kernel, attention, options):
  """Loops over samples in both directions, backward with a pass of its own."""

  @jax.custom_vjp
  def apply(x, kernel, attention):
    one = forms.with_own_kernel(forward, kernel, options)
    return lax.map(lambda operands: one(*operands), (x, attention))

  apply.defvjp(
      lambda *operands: (apply(*operands), operands),
      lambda operands, grad: backward(options, *operands, grad),
  )
  return forms.in_reverse_only(apply, x, kernel, attention)


def backward_dot(options: forms.Options, *operands):
  """Returns the gradients of x, kernel and attention, by (these, output's)."""
  return _backward(_input_gradient_dot, options, *operands, outputs_first=False)


def backward_conv(options: forms.Options, *operands):
  """Returns the gradients of x, kernel and attention, by (these, output's)."""
  # A stride would make the transpose a convolution with gaps, which has no
  # fast form in a loop.
  dense = options.strides == (1, 1)
  input_gradient = _input_gradient_conv if dense else _input_gradient_dot
  return _backward(input_gradient, options, *operands, outputs_first=True)


def loop_dot(x, kernel, attention, options: forms.Options):
  """One sample after the other as matrix products."""
  operands = x, kernel, attention, options
  return _loop(forms.multiply_one, backward_dot, *operands)


def loop_conv(x, kernel, attention, options: forms.Options):
  """One sample after the other as convolutions."""
  operands = x, kernel, attention, options
  return _loop(forms.convolve_one, backward_conv, *operands)
