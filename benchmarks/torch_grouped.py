"""PyTorch's grouped convolution: per-sample kernels as its users write them.

The batch becomes channel groups: x as [1, N * C, H, W], the kernels K * (1 + A)
as [N * D, C, 3, 3], groups=N. PyTorch is imported when it is asked for, and
runs on the CPU with as many threads as there are cores. What comes in is
brought into PyTorch's layout beforehand, so that no call copies it.
"""

from collections.abc import Sequence
import functools
import os

import jax
import numpy as np

from awconv_jax import errors
from benchmarks import timing


def load():
  """Returns the module torch, set to use all cores.

  Raises:
    InputError: it is not installed, or JAX does not run on the CPU.
  """
  if jax.default_backend() != 'cpu':
    raise errors.InputError(
        f'--torch is for the CPU; this run is on {jax.default_backend()}: '
        'leave it out'
    )
  try:
    import torch
  except ImportError as error:
    raise errors.InputError(
        '--torch needs PyTorch, which is not installed: pip install torch'
    ) from error
  torch.set_num_threads(os.cpu_count())
  return torch


def _to_torch(torch, array, axes, shape):
  """Returns a JAX array as a contiguous tensor with its axes moved."""
  wide = np.asarray(array, np.float32).transpose(axes).reshape(shape)
  dtype = getattr(torch, array.dtype.name)
  return torch.from_numpy(np.ascontiguousarray(wide)).to(dtype)


def _operands(torch, name, inputs):
  """Returns x, kernel, maps and gradient of the output for one of the forms."""
  x, kernel, maps, grad = inputs
  n, height, width, c = x.shape
  kh, kw, g, d = maps.shape[1:]
  # Images are those of one sample with N * C channels in the grouped form.
  one, rest = (1, n) if name == 'torch:grouped' else (n, 1)
  to_nchw = (0, 3, 1, 2)
  return (
      _to_torch(torch, x, to_nchw, (one, rest * c, height, width)),
      _to_torch(torch, kernel, (3, 2, 0, 1), (d, c, kh, kw)),
      _to_torch(torch, maps, (0, 4, 3, 1, 2), (n, d, g, 1, kh, kw)),
      _to_torch(torch, grad, to_nchw, (one, rest * d, height, width)),
  )


def _convolve(torch, x, kernel, stride, groups=1):
  """Returns a 3x3 convolution padded as 'SAME' is."""
  if stride == 1:
    return torch.nn.functional.conv2d(x, kernel, padding=1, groups=groups)
  # 'SAME' puts the odd row and column at the end.
  below = [max(3 - (n % stride or stride), 0) for n in reversed(x.shape[2:])]
  pads = [part for n in below for part in (n // 2, n - n // 2)]
  x = torch.nn.functional.pad(x, pads)
  return torch.nn.functional.conv2d(x, kernel, stride=stride, groups=groups)


def _plain(torch, x, kernel, maps, stride):
  del maps
  return _convolve(torch, x, kernel, stride)


def _grouped(torch, x, kernel, maps, stride):
  n, d, g, _, kh, kw = maps.shape
  c = kernel.shape[1]
  split = kernel.reshape(1, d, g, c // g, kh, kw)
  own = (split * (1 + maps)).reshape(n * d, c, kh, kw)
  return _convolve(torch, x, own, stride, groups=n)


FORMS = {'torch:plain': _plain, 'torch:grouped': _grouped}


def _back(inputs, results):
  """Returns results in the shapes and layouts of JAX's, as float32 arrays."""
  x, kernel, maps, grad = inputs
  kh, kw, g, d = maps.shape[1:]
  batch, c = x.shape[0], x.shape[3]
  moves = (
      ((batch, d, *grad.shape[1:3]), (0, 2, 3, 1)),
      ((batch, c, *x.shape[1:3]), (0, 2, 3, 1)),
      ((d, c, kh, kw), (2, 3, 1, 0)),
      ((batch, d, g, kh, kw), (0, 3, 4, 2, 1)),
  )
  back = [
      r.detach().float().numpy().reshape(shape).transpose(axes)
      for r, (shape, axes) in zip(results, moves, strict=False)
  ]
  return back[0] if len(back) == 1 else (back[0], tuple(back[1:]))


def _ready(torch, name, inputs, direction, stride):
  """Returns one of the forms, ready to be timed."""
  operands = [_operands(torch, name, own) for own in inputs]
  used = slice(2) if name == 'torch:plain' else slice(3)  # Without maps: two.
  form = functools.partial(FORMS[name], stride=stride)

  def forward(turn):
    with torch.inference_mode():
      return (form(torch, *operands[turn % len(operands)][:3]),)

  def both(turn):
    *leaves, grad = operands[turn % len(operands)]
    out = form(torch, *leaves)
    return out, *torch.autograd.grad(out, leaves[used], grad)

  if direction == 'both':
    for leaves in operands:
      for leaf in leaves[:3][used]:
        leaf.requires_grad_()
  return timing.Ready(
      run=both if direction == 'both' else forward,
      fetch=lambda results: _back(inputs[0], results),
  )


def prepare(
    inputs: Sequence[tuple[jax.Array, ...]], direction: str, stride: int = 1
) -> dict[str, timing.Ready]:
  """Returns PyTorch's plain and grouped convolution, ready to be timed.

  Args:
    inputs: sets of x [N, H, W, C], kernel [3, 3, C, D], maps [N, 3, 3, G, D]
      and gradient of the output [N, H', W', D].
    direction: 'forward', or 'both' for values and all gradients.
    stride: in both directions.

  Raises:
    InputError: there is no PyTorch, or this is not the CPU.
  """
  torch = load()
  return {
      name: _ready(torch, name, inputs, direction, stride) for name in FORMS
  }
