"""AW-convolution fused: kernels scaled on their way to the matrix unit.

A platform has a set of kernels in Pallas, which is a module of the functions
that `Kernels` calls. They take images [N, H, W, C] as they are, the kernel as
[taps, C, D] and the maps as [N, taps, G, D'].
"""

import dataclasses
import functools
import importlib
from types import ModuleType

import jax
from jax.extend import core
from jax.interpreters import batching, mlir
import jax.numpy as jnp

from awconv_jax.ops.aw_conv import forms
from awconv_jax.ops.aw_conv.plan import Plan

KERNELS = {'cuda': 'awconv_jax.ops.aw_conv.gpu.kernels'}
# The set that Pallas' interpreter runs on CPU: slow, and there for tests.
INTERPRETED = 'cuda'


@functools.cache
def _primitive() -> core.Primitive:
  """Returns what runs a jaxpr on one platform, and gives zeros on others.

  In a program for several platforms `lax.platform_dependent` has each of its
  branches lowered for all of them, and Pallas refuses.
  """
  primitive = core.Primitive('on_platform')
  primitive.multiple_results = True
  primitive.def_abstract_eval(lambda *_, jaxpr, platform: jaxpr.out_avals)
  primitive.def_impl(
      lambda *operands, jaxpr, platform: core.jaxpr_as_fun(jaxpr)(*operands)
  )

  def lower(here):
    def run(*operands, jaxpr, platform):
      if platform == here:
        return core.jaxpr_as_fun(jaxpr)(*operands)
      return [jnp.zeros(a.shape, a.dtype) for a in jaxpr.out_avals]

    return mlir.lower_fun(run, multiple_results=True)

  def batch(operands, axes, *, jaxpr, platform):
    every = jax.vmap(core.jaxpr_as_fun(jaxpr), in_axes=axes)
    results = _on_platform(platform, every, *operands)
    return results, [0] * len(results)

  mlir.register_lowering(primitive, lower(None))
  for platform in KERNELS:
    mlir.register_lowering(primitive, lower(platform), platform=platform)
  batching.primitive_batchers[primitive] = batch
  return primitive


def _on_platform(platform, function, *operands):
  """Returns function(*operands) on that platform; anything on others."""
  jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*operands)
  results = _primitive().bind(*operands, jaxpr=jaxpr, platform=platform)
  return jax.tree.unflatten(jax.tree.structure(shapes), results)


@dataclasses.dataclass(frozen=True)
class Kernels:
  """The form that the kernels of a platform are."""

  platform: str
  interpret: bool = False

  @property
  def _module(self) -> ModuleType:
    return importlib.import_module(KERNELS[self.platform])  # Others need none.

  def take(self, x, kernel, attention, options: forms.Options) -> bool:
    """Tells whether there are kernels for such operands."""
    known = self.platform in KERNELS
    operands = x, kernel, attention.shape, options
    return known and self._module.has_tiles(*operands)

  def _flat(self, x, kernel, attention, options):
    """Returns kernel and maps with numbered taps, and the plan."""
    plan = Plan(
        size=x.shape[1:3],
        kernel_size=kernel.shape[:2],
        interpret=self.interpret,
        **vars(options),
    )
    maps = attention.reshape(x.shape[0], -1, *attention.shape[3:])
    return kernel.reshape(-1, *kernel.shape[2:]), maps, plan

  def _run(self, function, *operands):
    if self.interpret:
      return function(*operands)
    return _on_platform(self.platform, function, *operands)

  def forward(self, x, kernel, attention, options: forms.Options):
    """Returns the output."""

    def output(x, kernel, attention):
      operands = self._flat(x, kernel, attention, options)
      return self._module.forward(x, *operands)

    return self._run(output, x, kernel, attention)

  def backward(self, options: forms.Options, *operands):
    """Returns the gradients of x, kernel and maps, by (these, output's)."""

    def in_kernels(x, kernel, attention, grad):
      flat, maps, plan = self._flat(x, kernel, attention, options)
      image = self._module.input_gradient(grad, flat, maps, plan)
      both = self._module.kernel_gradient(x, flat, maps, grad, plan)
      shapes = kernel.shape, attention.shape
      return image, *(g.reshape(s) for g, s in zip(both, shapes, strict=True))

    @jax.custom_vjp
    def gradients(*operands):
      return self._run(in_kernels, *operands)

    def otherwise(*operands):
      return forms.backward(forms.im2col, options, *operands)

    # Derivatives of the gradients are rarely asked for: those of `im2col`.
    gradients.defvjp(
        lambda *operands: (gradients(*operands), operands),
        lambda saved, along: jax.vjp(otherwise, *saved)[1](along),
    )
    return gradients(*operands)
