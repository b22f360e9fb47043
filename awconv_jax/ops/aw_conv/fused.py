"""AW-convolution fused: kernels scaled on their way to the matrix unit.

A platform has a set of kernels in Pallas, which is a module of the functions
that `Kernels` calls. They take images [N, H, W, C] as they are, the kernel as
[taps, C, D] and the maps as [N, taps, G, D'].
"""

import dataclasses
import functools
import importlib
import math
from types import ModuleType
from typing import Any
import warnings

import jax
from jax.extend import core
from jax.interpreters import batching, mlir
import jax.numpy as jnp

from awconv_jax.ops.aw_conv import forms
from awconv_jax.ops.aw_conv.plan import Plan

KERNELS = {
    'cuda': 'awconv_jax.ops.aw_conv.gpu.kernels',
    'tpu': 'awconv_jax.ops.aw_conv.tpu.kernels',
}
# The set that Pallas' interpreter runs on CPU: slow, and there for tests.
INTERPRETED = 'cuda'


@functools.cache
def _primitive() -> core.Primitive:
  """Returns what runs a function on one platform, and gives zeros on others.

  In a program for several platforms `lax.platform_dependent` has each of its
  branches lowered for all of them, and Pallas refuses. And kernels are long:
  they are traced where they are lowered, not wherever a network is traced.
  """
  primitive = core.Primitive('on_platform')
  primitive.multiple_results = True
  primitive.def_abstract_eval(lambda *_, results, **how: list(results))
  primitive.def_impl(lambda *operands, function, **how: function(*operands))

  def lower(here):
    def run(*operands, function, results, platform, precision):
      if platform != here:
        return [jnp.zeros(a.shape, a.dtype) for a in results]
      with jax.default_matmul_precision(precision):  # As where it was bound.
        return function(*operands)

    return mlir.lower_fun(run, multiple_results=True)

  def batch(operands, axes, *, function, results, platform, precision):
    number = next(
        o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None
    )
    every = jax.vmap(function, in_axes=axes)
    shapes = [
        jax.ShapeDtypeStruct((number, *a.shape), a.dtype) for a in results
    ]
    with jax.default_matmul_precision(precision):
      found = _on_platform(platform, every, operands, shapes)
    return found, [0] * len(results)

  mlir.register_lowering(primitive, lower(None))
  for platform in KERNELS:
    mlir.register_lowering(primitive, lower(platform), platform=platform)
  batching.primitive_batchers[primitive] = batch
  return primitive


def _on_platform(platform, function, operands, results):
  """Returns function(*operands), a list like results; on others, anything."""
  return _primitive().bind(
      *operands,
      function=function,
      results=tuple(jax.typeof(r) for r in results),
      platform=platform,
      precision=jax.config.jax_default_matmul_precision,  # pyrefly: ignore
  )


@functools.cache
def _module_of(platform: str) -> ModuleType | None:
  """Returns the kernels of a platform, if JAX has what they are written in."""
  try:
    return importlib.import_module(KERNELS[platform])  # Others need none.
  except ImportError as error:
    if not str(error.name).startswith('jax.'):
      raise
    warnings.warn(
        f'aw_conv: no kernels for {platform!r} with JAX {jax.__version__}, so '
        f'that other forms run there: {error}',
        stacklevel=2,
    )
    return None


@dataclasses.dataclass(frozen=True)
class Kernels:
  """The form that the kernels of a platform are."""

  platform: str
  interpret: bool = False

  @property
  def _module(self) -> Any:
    return _module_of(self.platform)

  def take(self, x, kernel, attention, options: forms.Options) -> bool:
    """Tells whether there are kernels for such operands."""
    if self.platform not in KERNELS:
      return False
    mesh = jax.sharding.get_abstract_mesh()
    # XLA divides no kernel among devices.
    divided = math.prod(
        mesh.shape[a] for a in mesh.axis_names if a not in mesh.manual_axes
    )
    if self._module is None or not (self.interpret or divided == 1):
      return False
    return self._module.has_tiles(x, kernel, attention, options)

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

  def _run(self, function, operands, results):
    def narrow(*operands):
      with jax.enable_x64(False):  # No index needs more.
        return function(*operands)

    if self.interpret:
      return narrow(*operands)
    return _on_platform(self.platform, narrow, operands, results)

  def forward(self, x, kernel, attention, options: forms.Options):
    """Returns the output."""

    def output(x, kernel, attention):
      operands = self._flat(x, kernel, attention, options)
      return [self._module.forward(x, *operands)]

    size = options.output_size(x.shape[1:3], kernel.shape[:2])
    shape = x.shape[0], *size, kernel.shape[3]
    result = jax.ShapeDtypeStruct(shape, x.dtype)
    (out,) = self._run(output, (x, kernel, attention), [result])
    return out

  def backward(self, options: forms.Options, *operands):
    """Returns the gradients of x, kernel and maps, by (these, output's)."""

    def in_kernels(x, kernel, attention, grad):
      # What is made of the maps is so made anew when it is needed, and not kept
      # from the forward pass on beside them.
      maps = attention.reshape(*attention.shape[:3], -1)  # As XLA keeps them.
      maps, grad = jax.lax.optimization_barrier((maps, grad))
      attention = maps.reshape(attention.shape)
      flat, maps, plan = self._flat(x, kernel, attention, options)
      image = self._module.input_gradient(grad, flat, maps, plan)
      both = self._module.kernel_gradient(x, flat, maps, grad, plan)
      shapes = kernel.shape, attention.shape
      return [
          image,
          *(g.reshape(s) for g, s in zip(both, shapes, strict=True)),
      ]

    @jax.custom_vjp
    def gradients(*operands):
      return tuple(self._run(in_kernels, operands, operands[:3]))

    def otherwise(*operands):
      return forms.backward(forms.im2col, options, *operands)

    # Derivatives of the gradients are rarely asked for: those of `im2col`.
    gradients.defvjp(
        lambda *operands: (gradients(*operands), operands),
        lambda saved, along: jax.vjp(otherwise, *saved)[1](along),
    )
    return gradients(*operands)
