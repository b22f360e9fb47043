"""The operation alone: every form of it at the 3x3 convolutions of ResNet-50.

'plain' is the convolution without attention. PyTorch's grouped convolution, by
which its users write kernels of each sample, stands beside its plain one.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
import importlib.util
import itertools
import os
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import errors, options
from awconv_jax.ops.aw_conv import IMPLEMENTATIONS, aw_conv
from benchmarks import timing

# Channels, height = width of the input, and stride, v1.5 at 224x224 pixels.
SHAPES = ((64, 56, 1), (128, 28, 1), (256, 14, 1), (512, 7, 1))
STRIDED = ((128, 56, 2), (256, 28, 2), (512, 14, 2))
# Rounding, relative, on CPU; matrix units elsewhere round float32 as bfloat16.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 3e-2}
FORMS = ('auto', *IMPLEMENTATIONS, 'torch')
PLACES = {
    'fused': ('gpu', 'tpu'),
    'torch': ('cpu',),
}  # Elsewhere they are no measure.
TORCH = {'torch:plain': 'plain', 'torch:grouped': 'vmap'}  # And references.


def run(
    *,
    implementations: Sequence[Annotated[str, options.OneOf(FORMS)]] = (),
    batches: Sequence[options.PositiveInt] = (8, 32),
    expansion: options.PositiveInt = 16,
    strided: bool = False,
    dtype: Annotated[str, options.OneOf(TOLERANCES)] = 'float32',
    seconds: options.NonNegativeFloat = 0.6,
    seed: options.Seed = 0,
) -> Iterator[dict[str, Any]]:
  """Measures, and yields rows as they come.

  Args:
    implementations: forms, or 'torch', besides 'plain' and 'vmap', which are
      measured in any case; if none are given, all that are for this device.
    batches: batch sizes.
    expansion: e, input channels that share a value of the maps.
    strided: whether to measure the convolutions of stride 2, too.
    dtype, seed: of all inputs.
    seconds: time for each measurement.

  Yields:
    The input is [batch, side, side, channels]; 'both' is forward and backward.
    'ratio' is to 'plain', PyTorch's to 'torch:plain'; 'error' to 'vmap', that
    of 'torch:plain' to 'plain'; for other columns see `timing.Program`.
  """
  backend = jax.default_backend()
  here = [n for n in FORMS if backend in PLACES.get(n, (backend,))]
  for name in implementations:
    if name not in here:
      raise errors.InputError(
          f'--implementations: {name!r} is no measure on {backend}, but on '
          f'{" and ".join(PLACES[name])}; leave it out'
      )
  found = importlib.util.find_spec
  chosen = implementations or [n for n in here if n != 'torch' or found(n)]
  reference = {n: 'vmap' for n in chosen if n not in ('vmap', 'torch')}
  if 'torch' in chosen:
    reference |= TORCH
  for direction, batch, (channels, side, stride) in itertools.product(
      ('forward', 'both'), batches, SHAPES + STRIDED * strided
  ):
    shape = (channels, side, stride, batch, expansion)
    inputs = [random_inputs(*shape, dtype, (seed, i)) for i in range(2)]
    programs = {}
    for name in ('plain', 'vmap', *reference):
      make = _torch_program if name in TORCH else _jax_program
      programs[name] = partial(make, name, direction, stride, inputs)
    measured = timing.measure(
        programs,
        reference=reference,
        tolerance=TOLERANCES[dtype if backend == 'cpu' else 'bfloat16'],
        seconds=seconds,
    )
    row = dict(channels=channels, side=side, stride=stride, batch=batch)
    for name, program in measured.items():
      base = measured['torch:plain' if name in TORCH else 'plain']
      row |= dict(direction=direction, implementation=name)
      yield row | program.columns(base)


def input_shapes(channels, side, stride, batch, expansion):
  """Returns the shapes of x, kernel, attention and gradient of the output."""
  out = -(-side // stride)
  return (
      (batch, side, side, channels),
      (3, 3, channels, channels),
      (batch, 3, 3, max(channels // expansion, 1), channels),
      (batch, out, out, channels),
  )


def random_inputs(channels, side, stride, batch, expansion, dtype, seed):
  """Returns random x, kernel, attention and gradient of the output."""
  rng = np.random.default_rng(seed)
  x, kernel, maps, grad = input_shapes(channels, side, stride, batch, expansion)
  arrays = (
      rng.normal(size=x),
      rng.normal(size=kernel) / (3 * channels**0.5),
      rng.uniform(size=maps),
      rng.normal(size=grad),
  )
  return tuple(jnp.asarray(a, dtype) for a in arrays)


def function_of(name: str, direction: str, stride: int) -> Callable[..., Any]:
  """Returns a form of four operands; 'both' gives its gradients, too."""
  strides = (stride, stride)
  form, used = partial(aw_conv, implementation=name, strides=strides), 3
  if name == 'plain':  # It has no maps.
    form, used = jax.lax.conv_general_dilated, 2
    axes = ('NHWC', 'HWIO', 'NHWC')
    how = dict(window_strides=strides, padding='SAME', dimension_numbers=axes)
    form = partial(form, **how)

  def function(*operands):
    if direction == 'forward':
      return form(*operands[:used])
    out, pullback = jax.vjp(form, *operands[:used])
    return out, pullback(operands[3])

  return function


def _jax_program(name, direction, stride, inputs) -> timing.Program:
  return timing.compile_jax(
      jax.jit(function_of(name, direction, stride)), inputs
  )


def _torch_program(name, direction, stride, inputs) -> timing.Program:
  """Returns PyTorch's plain or grouped convolution with all cores.

  Samples become channel groups: x [1, N * C, H, W], kernels [N * D, C, 3, 3].
  """
  import torch

  torch.set_num_threads(os.cpu_count())
  n, height, width, c = inputs[0][0].shape
  g, d = inputs[0][2].shape[3:]
  out = inputs[0][3].shape[1:3]
  grouped = name == 'torch:grouped'
  groups = n if grouped else 1
  # To PyTorch's layout, of x, kernel, maps and output.
  axes = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 4, 3, 1, 2), (0, 3, 1, 2))
  # 'SAME' puts the odd row and column at the end.
  both = [max(3 - (side % stride or stride), 0) for side in (width, height)]
  pads = [part for p in both for part in (p // 2, p - p // 2)]

  def tensor(array, to):
    moved = np.ascontiguousarray(np.asarray(array, np.float32).transpose(to))
    return torch.from_numpy(moved).to(getattr(torch, array.dtype.name))

  def convolve(x, kernel, maps):
    if grouped:
      split = kernel.reshape(1, d, g, c // g, 3, 3)
      kernel = (split * (1 + maps[:, :, :, None])).reshape(n * d, c, 3, 3)
    x = x.reshape(n // groups, groups * c, height, width)
    how = dict(groups=groups, stride=stride, padding=int(stride == 1))
    x = x if stride == 1 else torch.nn.functional.pad(x, pads)
    return torch.nn.functional.conv2d(x, kernel, **how).reshape(n, d, *out)

  operands = [list(map(tensor, arrays, axes)) for arrays in inputs]
  used = 3 if grouped else 2  # The plain one has no maps.

  def once(turn):
    *leaves, grad = operands[turn % len(operands)]
    if direction == 'forward':
      with torch.inference_mode():
        return (convolve(*leaves),)
    for leaf in leaves[:used]:
      leaf.requires_grad_()
    result = convolve(*leaves)
    return result, *torch.autograd.grad(result, leaves[:used], grad)

  def run(turn, calls=1):
    return [once(number) for number in range(turn, turn + calls)][-1]

  def fetch(results):
    arrays = [
        result.detach().float().numpy().transpose(np.argsort(to))
        for result, to in zip(results, axes[3:] + axes, strict=False)
    ]
    return (arrays[0], tuple(arrays[1:])) if arrays[1:] else arrays[0]

  return timing.Program(run, fetch)
