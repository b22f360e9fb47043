"""The operation alone: every form of it at the 3x3 convolutions of ResNet-50.

'plain' is the convolution without attention; where PyTorch is installed, its
grouped convolution is measured beside its plain one on the CPU, since that is
how PyTorch's users write kernels of each sample.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import importlib.util
import itertools
import os
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax.ops.aw_conv import IMPLEMENTATIONS, aw_conv
from awconv_jax.options import (
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveInt,
)
from benchmarks import timing

# Channels, height = width of the input, and stride, v1.5 at 224x224 pixels.
SHAPES = ((64, 56, 1), (128, 28, 1), (256, 14, 1), (512, 7, 1))
STRIDED = ((128, 56, 2), (256, 28, 2), (512, 14, 2))
PASSES = ('forward', 'both')
# Relative differences between the forms that are rounding, on CPU. Matrix units
# of other devices round what they multiply, so that there float32 is no better.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 3e-2}
FORMS = ('auto', 'torch', *IMPLEMENTATIONS)
TORCH = ('torch:plain', 'torch:grouped')
PLOT = dict(
    bar='implementation',
    groups=('channels', 'side', 'stride', 'batch', 'direction'),
    height='ratio',
    label='time / time of plain',
    scale='log',
)


@dataclasses.dataclass
class Row:
  """One line of the table.

  Attributes:
    channels, side, batch: of the input, [batch, side, side, channels].
    stride: in both directions.
    direction: 'forward', or 'both' for forward and backward.
    implementation: its name; 'plain' is the convolution without attention.
    milliseconds: median time of a call.
    calls: how many were timed.
    ratio: time over that of 'plain' in the same run; of PyTorch's, over that of
      'torch:plain'.
    temporary_mib: memory asked for besides arguments and results.
    error: relative to the vmapped form (torch:plain: to plain) in this run.
  """

  channels: int
  side: int
  stride: int
  batch: int
  direction: str
  implementation: str
  milliseconds: float
  calls: int
  ratio: float
  temporary_mib: float | None
  error: float


def run(
    *,
    implementations: Sequence[Annotated[str, OneOf(FORMS)]] = (),
    batches: Sequence[PositiveInt] = (8, 32),
    expansion: PositiveInt = 16,
    strided: bool = False,
    dtype: Annotated[str, OneOf(TOLERANCES)] = 'float32',
    seconds: NonNegativeFloat = 0.6,
    seed: NonNegativeInt = 0,
) -> Iterator[Row]:
  """Measures, and yields rows as they come.

  Args:
    implementations: forms, or 'torch', besides 'plain' and 'vmap', which are
      measured in any case; if none are given, all that are for this device.
    batches: batch sizes.
    expansion: e, input channels that share a value of the maps.
    strided: whether to measure the convolutions of stride 2, too.
    dtype: of everything.
    seconds: time for each measurement.
    seed: of the inputs.

  Raises:
    ReportedError: a form does not compute what the vmapped one does.
  """
  names = dict.fromkeys(['vmap', *(implementations or _implementations())])
  torch = names.pop('torch', TORCH) is None
  reference = {name: 'vmap' for name in names if name != 'vmap'}
  if torch:
    reference |= dict(zip(TORCH, ('plain', 'vmap'), strict=True))
  on_cpu = jax.default_backend() == 'cpu'
  for direction, batch, (channels, side, stride) in itertools.product(
      PASSES, batches, SHAPES + STRIDED * strided
  ):
    inputs = [
        _inputs(channels, side, stride, batch, expansion, dtype, (seed, i))
        for i in range(2)
    ]
    programs = {
        name: functools.partial(
            timing.compile_jax, _function(name, direction, stride), inputs
        )
        for name in ('plain', *names)
    }
    for name in TORCH if torch else ():
      programs[name] = functools.partial(
          _torch_program, name, direction, stride, inputs
      )
    measured = timing.measure(
        programs,
        reference=reference,
        tolerance=TOLERANCES[dtype if on_cpu else 'bfloat16'],
        seconds=seconds,
    )
    for name, found in measured.items():
      base = measured['torch:plain' if name in TORCH else 'plain']
      shape = (channels, side, stride, batch)
      yield Row(*shape, direction, name, **found.columns(base))


def _implementations() -> list[str]:
  """Returns what is a measure on this device, and can be had."""
  names = ['auto', *(n for n in IMPLEMENTATIONS if n not in ('vmap', 'fused'))]
  if jax.default_backend() == 'gpu':
    names.append('fused')
  if jax.default_backend() == 'cpu' and importlib.util.find_spec('torch'):
    names.append('torch')
  return names


def _inputs(channels, side, stride, batch, expansion, dtype, seed):
  """Returns random x, kernel, attention and gradient of the output."""
  rng = np.random.default_rng(seed)
  out = -(-side // stride)
  arrays = (
      rng.normal(size=(batch, side, side, channels)),
      rng.normal(size=(3, 3, channels, channels)) / (3 * channels**0.5),
      rng.uniform(size=(batch, 3, 3, max(channels // expansion, 1), channels)),
      rng.normal(size=(batch, out, out, channels)),
  )
  return tuple(jnp.asarray(a, dtype) for a in arrays)


def _plain(x, kernel, attention, *, strides):
  del attention
  return jax.lax.conv_general_dilated(
      x, kernel, strides, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _function(name, direction, stride):
  """Returns a form, or its output with all gradients, to be compiled."""
  form = functools.partial(aw_conv, implementation=name)
  form = functools.partial(
      _plain if name == 'plain' else form, strides=(stride, stride)
  )

  def both(x, kernel, attention, grad):
    out, pullback = jax.vjp(form, x, kernel, attention)
    grads = pullback(grad)
    # The plain convolution has no gradient of the maps.
    return out, grads[:2] if name == 'plain' else grads

  if direction == 'both':
    return jax.jit(both)
  return jax.jit(lambda x, kernel, attention, grad: form(x, kernel, attention))


def _torch_program(name, direction, stride, inputs) -> timing.Program:
  """Returns PyTorch's plain or grouped convolution with all cores.

  The batch becomes channel groups: x as [1, N * C, H, W], the kernels
  K * (1 + A) as [N * D, C, 3, 3], groups=N. What comes in is brought into
  PyTorch's layout beforehand, so that no call copies it.
  """
  import torch

  torch.set_num_threads(os.cpu_count())
  n, height, width, c = inputs[0][0].shape
  g, d = inputs[0][2].shape[3:]
  out = inputs[0][3].shape[1:3]
  groups = n if name == 'torch:grouped' else 1
  # Shapes in PyTorch's layout, and the axes that lead to them and back.
  layouts = (
      ((n, c, height, width), (0, 3, 1, 2), (0, 2, 3, 1)),
      ((d, c, 3, 3), (3, 2, 0, 1), (2, 3, 1, 0)),
      ((n, d, g, 3, 3), (0, 4, 3, 1, 2), (0, 3, 4, 2, 1)),
      ((n, d, *out), (0, 3, 1, 2), (0, 2, 3, 1)),
  )
  # 'SAME' puts the odd row and column at the end.
  below = [max(3 - (side % stride or stride), 0) for side in (width, height)]
  pads = [part for p in below for part in (p // 2, p - p // 2)]

  def tensor(array, to):
    moved = np.ascontiguousarray(np.asarray(array, np.float32).transpose(to))
    return torch.from_numpy(moved).to(getattr(torch, array.dtype.name))

  def convolve(x, kernel, maps):
    if groups > 1:
      split = kernel.reshape(1, d, g, c // g, 3, 3)
      kernel = (split * (1 + maps[:, :, :, None])).reshape(n * d, c, 3, 3)
    x = x.reshape(n // groups, groups * c, height, width)
    if stride == 1:
      return torch.nn.functional.conv2d(x, kernel, padding=1, groups=groups)
    x = torch.nn.functional.pad(x, pads)
    return torch.nn.functional.conv2d(x, kernel, stride=stride, groups=groups)

  operands = [
      [tensor(a, to) for a, (_, to, _) in zip(arrays, layouts, strict=True)]
      for arrays in inputs
  ]
  used = 3 if name == 'torch:grouped' else 2  # The plain one has no maps.

  def once(turn):
    *leaves, grad = operands[turn % len(operands)]
    if direction == 'forward':
      with torch.inference_mode():
        return (convolve(*leaves),)
    for leaf in leaves[:used]:
      leaf.requires_grad_()
    result = convolve(*leaves)
    grads = torch.autograd.grad(
        result, leaves[:used], grad.reshape(result.shape)
    )
    return result, *grads

  def run(turn, calls=1):
    results = None
    for number in range(turn, turn + calls):
      results = once(number)
    return results

  def fetch(results):
    arrays = [
        r.detach().float().numpy().reshape(shape).transpose(back)
        for r, (shape, _, back) in zip(
            results, (layouts[-1], *layouts[:used]), strict=False
        )
    ]
    return (arrays[0], tuple(arrays[1:])) if arrays[1:] else arrays[0]

  return timing.Program(run=run, fetch=fetch)
