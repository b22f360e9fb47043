"""AW-convolution fused: kernels scaled on their way to the matrix unit.

A form for GPU, in three Pallas kernels (`gpu/kernels.py`). What they have no
tiles for, and other devices, take `im2col`; on CPU they run in Pallas'
interpreter, which is slow and there for tests.
"""

import functools

import jax
from jax import lax

from awconv_jax.ops.aw_conv import forms


def _by_platform(in_tiles, otherwise, operands):
  return lax.platform_dependent(
      *operands,
      cpu=functools.partial(in_tiles, interpret=True),
      cuda=functools.partial(in_tiles, interpret=False),
      default=otherwise,
  )


def fused(x, kernel, attention, options: forms.Options):
  """The shared kernel's tiles, scaled for each sample on their way."""
  # Other forms need none of it.
  from awconv_jax.ops.aw_conv.gpu import kernels
  from awconv_jax.ops.aw_conv.plan import Plan

  def otherwise(*operands):
    return forms.im2col(*operands, options)

  if not kernels.has_tiles(x, kernel, attention.shape, options):
    return otherwise(x, kernel, attention)

  def flat(kernel, attention, interpret):
    """Returns kernel and maps with numbered taps, and the plan."""
    plan = Plan(
        size=x.shape[1:3],
        kernel_size=kernel.shape[:2],
        interpret=interpret,
        **vars(options),
    )
    maps = attention.reshape(x.shape[0], -1, *attention.shape[3:])
    return kernel.reshape(-1, *kernel.shape[2:]), maps, plan

  def in_tiles(x, kernel, attention, *, interpret):
    return kernels.forward(x, *flat(kernel, attention, interpret))

  def gradients_in_tiles(x, kernel, attention, grad, *, interpret):
    kernel_flat, maps, plan = flat(kernel, attention, interpret)
    image = kernels.input_gradient(grad, kernel_flat, maps, plan)
    kernel_grad, maps_grad = kernels.kernel_gradient(
        x, kernel_flat, maps, grad, plan
    )
    return (
        image,
        kernel_grad.reshape(kernel.shape),
        maps_grad.reshape(attention.shape),
    )

  def gradients_otherwise(x, kernel, attention, grad):
    return jax.vjp(otherwise, x, kernel, attention)[1](grad)

  @jax.custom_vjp
  def gradients(*operands):
    return _by_platform(gradients_in_tiles, gradients_otherwise, operands)

  @jax.custom_vjp
  def apply(*operands):
    return _by_platform(in_tiles, otherwise, operands)

  # Derivatives of the gradients are rarely asked for: those of `im2col`.
  gradients.defvjp(
      lambda *operands: (gradients(*operands), operands),
      lambda saved, along: jax.vjp(gradients_otherwise, *saved)[1](along),
  )
  apply.defvjp(
      lambda *operands: (apply(*operands), operands),
      lambda saved, grad: gradients(*saved, grad),
  )
  return forms.in_reverse_only(apply, x, kernel, attention)
