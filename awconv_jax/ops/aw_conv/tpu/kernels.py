"""The set of kernels for TPU, and which operands it takes.

They take images as XLA keeps them on a TPU, [H, W, N, C], for which the
transpositions in here are a change of name.
"""

import functools
import math
import numbers

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from awconv_jax.ops.aw_conv.forms import Options
from awconv_jax.ops.aw_conv.plan import Plan
from awconv_jax.ops.aw_conv.tpu import maps as maps_lib
from awconv_jax.ops.aw_conv.tpu import pairs, views
from awconv_jax.ops.aw_conv.tpu.convolve import convolve
from awconv_jax.ops.aw_conv.tpu.kernel_gradient import (
    kernel_gradient as dense_gradient,
)
from awconv_jax.ops.aw_conv.tpu.planes import LANES, MEMORY, RUN, SAMPLES


def has_tiles(x, kernel, attention, options: Options) -> bool:
  """Tells whether the kernels take operands of `ops.aw_conv.aw_conv`."""
  c, d = kernel.shape[2:]
  # A size may be symbolic, in what is exported.
  known = all(isinstance(size, numbers.Integral) for size in x.shape)
  if not known or options.groups > 1 or x.dtype != jnp.bfloat16:
    return False
  if c // attention.shape[3] % RUN:
    return False
  sizes = dict(size=x.shape[1:3], kernel_size=kernel.shape[:2])
  plan = Plan(**sizes, **vars(options), interpret=False)
  if _in_pairs(kernel.shape, plan):
    return pairs.needed(*plan.size) <= _memory()
  seen = [views.forward(plan), views.backward(plan)]
  return (
      c % LANES == d % LANES == 0
      and any(part.views for part in seen[1].parts)  # Not the padding alone.
      and _needed(plan, seen, kernel, attention) <= _memory()
  )


def _in_pairs(kernel_shape, plan):
  """Tells whether two pixels of 64 channels fill the lanes."""
  return (
      tuple(kernel_shape) == (3, 3, pairs.CHANNELS, pairs.CHANNELS)
      and plan.strides == plan.dilation == (1, 1)
      and plan.padding == ((1, 1), (1, 1))
  )


def _memory():
  """Returns how many bytes a kernel may take, of the TPU if there is one."""
  try:
    device, *_ = jax.local_devices(backend='tpu')
  except RuntimeError:
    return MEMORY
  with jax.default_device(device):
    return min(MEMORY, pltpu.get_tpu_info().vmem_capacity_bytes * 7 // 8)


def _needed(plan, seen, kernel, attention):
  """Returns how many bytes the largest of the dense kernels takes, or more."""
  c, d = kernel.shape[2:]
  images = math.prod(plan.size) * c + math.prod(plan.output) * d
  places = [v.copies * v.places for v in seen]
  runs = [v.run(part) + LANES for v in seen for part in v.parts]
  itemsize = 4 if _are_shared(attention, kernel) else attention.dtype.itemsize
  return (
      # Two blocks of the images, and their words.
      3 * 2 * SAMPLES * images
      # Of two samples the planes, their sums, and the transposed image.
      + 4 * max(places) * max(c, d)
      + 12 * sum(runs) * max(c, d)
      # K and dK, also in float32; two blocks of the maps and of their gradient.
      + 2 * (2 + 4) * kernel.size
      + 4 * itemsize * kernel.size * SAMPLES // RUN
  )


def _are_shared(attention, kernel):
  """Tells whether maps [..., G, D'] are shared by more than runs of inputs."""
  return RUN * math.prod(attention.shape[-2:]) < math.prod(kernel.shape[-2:])


def _as_kept(images):
  """Returns images [N, H, W, C] as [H, W, N, C], filled up to whole blocks."""
  missing = -images.shape[0] % SAMPLES
  images = jnp.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
  return images.transpose(1, 2, 0, 3)


def _spread(maps, kernel):
  """Returns maps with a value for every run of 16 inputs and every output.

  They are filled up to whole blocks of samples.
  """
  _, c, d = kernel.shape
  maps = maps.repeat(c // RUN // maps.shape[2], 2).repeat(d // maps.shape[3], 3)
  return jnp.pad(maps, ((0, -maps.shape[0] % SAMPLES), (0, 0), (0, 0), (0, 0)))


def _how(plan):
  return dict(residual=plan.residual, interpret=plan.interpret)


def _convolved(images, kernel, maps, plan, *, transpose):
  """Returns O of x or, where transposed, dI of the output's gradient."""
  maps = maps_lib.for_kernels(_spread(maps, kernel), interpret=plan.interpret)
  operands = _as_kept(images), kernel, maps
  how = dict(transpose=transpose, **_how(plan))
  if kernel.shape[1] == pairs.CHANNELS:
    out = pairs.convolve(*operands, **how)
  else:
    see, size = views.forward, plan.output
    if transpose:
      see, size = views.backward, plan.size
    out = convolve(*operands, see(plan), size, **how)
  return out.transpose(2, 0, 1, 3)[: images.shape[0]]


def forward(x, kernel, maps, plan: Plan):
  """Returns O, [N, H', W', D]."""
  return _convolved(x, kernel, maps, plan, transpose=False)


def input_gradient(grad, kernel, maps, plan: Plan):
  """Returns dI, [N, H, W, C]."""
  return _convolved(grad, kernel, maps, plan, transpose=True)


def kernel_gradient(x, kernel, maps, grad, plan: Plan):
  """Returns dK [taps, C, D] and dA [N, taps, G, D'], in their dtypes."""
  # The gradients that are summed for shared maps are not rounded before.
  wide = maps.astype(jnp.float32) if _are_shared(maps, kernel) else maps
  spread, back = jax.vjp(functools.partial(_spread, kernel=kernel), wide)
  spread = maps_lib.for_kernels(spread, interpret=plan.interpret)
  operands = *map(_as_kept, (x, grad)), kernel, spread
  if kernel.shape[1] == pairs.CHANNELS:
    both = pairs.kernel_gradient(*operands, **_how(plan))
  else:
    seen = views.backward(plan)
    both = dense_gradient(*operands, seen, **_how(plan))
  kernel_grad, spread_grad = both
  spread_grad = spread_grad.astype(spread.dtype)
  (maps_grad,) = back(maps_lib.for_xla(spread_grad, interpret=plan.interpret))
  return kernel_grad.astype(kernel.dtype), maps_grad.astype(maps.dtype)
