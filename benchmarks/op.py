"""The operation alone: every form of it at convolutions of well-known networks.

'plain' is the convolution without attention. PyTorch's grouped convolution, by
which its users write kernels of each sample, stands beside its plain one.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
import importlib.util
import itertools
import math
import os
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import errors, options
from awconv_jax.ops.aw_conv import IMPLEMENTATIONS, aw_conv
from benchmarks import timing


class Shape(NamedTuple):
  """A convolution of an input [batch, side, side, channels]."""

  channels: int
  features: int  # Channels of the output.
  side: int
  stride: int = 1
  taps: int = 3  # Rows and columns of the kernel.
  groups: int = 1


# By kind, the convolutions of networks at 224 x 224 pixels: ResNet-50 v1.5,
# ResNeXt-50 32x4d, and depthwise ones of ConvNeXt-T and MobileNetV2.
SHAPES = {
    'dense': (
        Shape(64, 64, 56),
        Shape(128, 128, 28),
        Shape(256, 256, 14),
        Shape(512, 512, 7),
    ),
    'strided': (
        Shape(128, 128, 56, stride=2),
        Shape(256, 256, 28, stride=2),
        Shape(512, 512, 14, stride=2),
    ),
    '1x1': (
        Shape(256, 64, 56, taps=1),
        Shape(256, 1024, 14, taps=1),
        Shape(2048, 512, 7, taps=1),
    ),
    'grouped': (
        Shape(128, 128, 56, groups=32),
        Shape(512, 512, 14, groups=32),
    ),
    'depthwise': (
        Shape(96, 96, 56, groups=96),
        Shape(384, 384, 14, groups=384),
        Shape(144, 144, 56, stride=2, groups=144),
    ),
}
# Rounding, relative, on CPU; matrix units elsewhere round float32 as bfloat16.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 3e-2}
FORMS = (*IMPLEMENTATIONS, 'torch')
# Types of options.
Form = Annotated[str, options.OneOf(IMPLEMENTATIONS)]
Kind = Annotated[str, options.OneOf(SHAPES)]


def shapes_of(kinds: Sequence[str]) -> list[Shape]:
  """Returns the shapes of several kinds."""
  return [shape for kind in kinds for shape in SHAPES[kind]]


PLACES = {
    'fused': ('gpu', 'tpu'),
    'torch': ('cpu',),
}  # Elsewhere they are no measure.
TORCH = ('torch:plain', 'torch:grouped')


def run(
    *,
    implementations: Sequence[Annotated[str, options.OneOf(FORMS)]] = (),
    batches: Sequence[options.PositiveInt] = (8, 32),
    expansion: options.PositiveInt = 16,
    kinds: Sequence[Kind] = ('dense',),
    dtype: Annotated[str, options.OneOf(TOLERANCES)] = 'float32',
    seconds: options.NonNegativeFloat = 0.6,
    seed: options.Seed = 0,
) -> Iterator[dict[str, Any]]:
  """Measures, and yields rows as they come.

  Args:
    implementations: forms, or 'torch', besides 'plain'; if none are given, all
      that are for this device. They are compared with 'vmap' or 'map', which
      runs untimed if neither is here.
    batches: batch sizes.
    expansion: e, input channels that share a value of the maps.
    kinds: of convolutions, see `SHAPES`.
    dtype, seed: of all inputs.
    seconds: time for each measurement.

  Yields:
    For the convolution see `Shape`; 'both' is forward and backward. 'ratio' is
    to 'plain', PyTorch's to 'torch:plain'; so is 'error' of 'torch:plain', that
    of others to 'vmap' or 'map'. For other columns see `timing.Program`.
  """
  backend = jax.default_backend()
  here = [n for n in FORMS if backend in PLACES.get(n, (backend,))]
  for name in implementations:
    if name not in here:
      raise errors.InputError(
          f'--implementations: {name!r} is no measure on {backend}, but on '
          f'{" and ".join(PLACES[name])}; leave it out'
      )
  if 'torch' in here and not importlib.util.find_spec('torch'):
    if 'torch' in implementations:
      raise errors.InputError('--implementations: torch is not installed')
    here.remove('torch')
  chosen = implementations or here
  first = 'vmap' if 'vmap' in chosen else 'map'
  timed = ['plain', *(name for name in chosen if name != 'torch')]
  if 'torch' in chosen:
    timed += TORCH
  reference = {name: first for name in timed if name not in ('plain', first)}
  if 'torch' in chosen:
    reference['torch:plain'] = 'plain'
  for direction, batch, shape in itertools.product(
      ('forward', 'both'), batches, shapes_of(kinds)
  ):
    make_inputs = partial(random_inputs, shape, batch, expansion, dtype)
    inputs = [make_inputs((seed, i)) for i in range(2)]
    programs = {}
    for name in dict.fromkeys((*timed, first)):
      make = _torch_program if name in TORCH else _jax_program
      programs[name] = partial(make, name, direction, shape, inputs)
    measured = timing.measure(
        programs,
        reference=reference,
        tolerance=TOLERANCES[dtype if backend == 'cpu' else 'bfloat16'],
        seconds=seconds,
        untimed={first} - {*timed},
    )
    row = shape._asdict() | dict(batch=batch)
    for name, program in measured.items():
      base = measured['torch:plain' if name in TORCH else 'plain']
      row |= dict(direction=direction, implementation=name)
      yield row | program.columns(base)


def input_shapes(shape: Shape, batch: int, expansion: int):
  """Returns the shapes of x, kernel, attention and gradient of the output."""
  channels, features, side, stride, taps, groups = shape
  inputs, out = channels // groups, -(-side // stride)
  return (
      (batch, side, side, channels),
      (taps, taps, inputs, features),
      (batch, taps, taps, max(inputs // expansion, 1), features),
      (batch, out, out, features),
  )


def random_inputs(shape: Shape, batch: int, expansion: int, dtype, seed):
  """Returns random x, kernel, attention and gradient of the output."""
  rng = np.random.default_rng(seed)
  x, kernel, maps, grad = input_shapes(shape, batch, expansion)
  arrays = (
      rng.normal(size=x),
      rng.normal(size=kernel) / math.prod(kernel[:3]) ** 0.5,
      rng.uniform(size=maps),
      rng.normal(size=grad),
  )
  return tuple(jnp.asarray(a, dtype) for a in arrays)


def function_of(name: str, direction: str, shape: Shape) -> Callable[..., Any]:
  """Returns a form of four operands; 'both' gives its gradients, too."""
  strides, groups = (shape.stride,) * 2, shape.groups
  form = partial(aw_conv, implementation=name, strides=strides, groups=groups)
  used = 3
  if name == 'plain':  # It has no maps.
    form, used = jax.lax.conv_general_dilated, 2
    axes = ('NHWC', 'HWIO', 'NHWC')
    how = dict(window_strides=strides, padding='SAME', dimension_numbers=axes)
    form = partial(form, feature_group_count=groups, **how)

  def function(*operands):
    if direction == 'forward':
      return form(*operands[:used])
    out, pullback = jax.vjp(form, *operands[:used])
    return out, pullback(operands[3])

  return function


def _jax_program(name, direction, shape, inputs) -> timing.Program:
  function = jax.jit(function_of(name, direction, shape))
  return timing.compile_jax(function, inputs)


def _torch_program(name, direction, shape, inputs) -> timing.Program:
  """Returns PyTorch's plain or grouped convolution with all cores.

  Samples become channel groups: x [1, N * C, H, W], kernels [N * D, C, kh, kw].
  """
  import torch

  torch.set_num_threads(os.cpu_count())
  n, height, width, c = inputs[0][0].shape
  g, d = inputs[0][2].shape[3:]
  out = inputs[0][3].shape[1:3]
  grouped, stride, taps = name == 'torch:grouped', shape.stride, shape.taps
  together = n if grouped else 1
  # To PyTorch's layout, of x, kernel, maps and output.
  axes = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 4, 3, 1, 2), (0, 3, 1, 2))
  # 'SAME' puts the odd row and column at the end.
  both = [max(taps - (side % stride or stride), 0) for side in (width, height)]
  pads = [part for p in both for part in (p // 2, p - p // 2)]

  def tensor(array, to):
    moved = np.ascontiguousarray(np.asarray(array, np.float32).transpose(to))
    return torch.from_numpy(moved).to(getattr(torch, array.dtype.name))

  def convolve(x, kernel, maps):
    if grouped:
      split = kernel.reshape(1, d, g, -1, taps, taps)
      own = split * (1 + maps[:, :, :, None])
      kernel = own.reshape(n * d, -1, taps, taps)
    x = x.reshape(n // together, together * c, height, width)
    how = dict(groups=together * shape.groups, stride=stride)
    how['padding'] = taps // 2 if stride == 1 else 0
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
