"""Which form runs, by the platform that a program is lowered for.

That need not be the one it is traced on: a program may be compiled without a
device, or exported for several platforms at once.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import numbers

import jax
from jax import lax

from awconv_jax.ops.aw_conv import forms, loops
from awconv_jax.ops.aw_conv.forms import Options
from awconv_jax.ops.aw_conv.fused import INTERPRETED, Kernels


@dataclasses.dataclass(frozen=True)
class Form:
  """A way to compute the operation.

  Attributes:
    forward: of x, kernel, attention and `Options`, gives the output.
    backward: of `Options`, x, kernel, attention and the gradient of the output,
      gives those of the first three; None where JAX derives it.
    batched: whether it holds the kernels of all samples, or of a chunk.
  """

  forward: Callable[..., jax.Array]
  backward: Callable[..., tuple[jax.Array, ...]] | None = None
  batched: bool = False


FORMS = {
    'vmap': Form(forms.vmap, batched=True),
    'map': Form(forms.map_samples),
    'im2col': Form(forms.im2col, batched=True),
    'taps': Form(forms.taps, batched=True),
    'loop_dot': Form(loops.loop_dot, loops.backward_dot),
    'loop_conv': Form(loops.loop_conv, loops.backward_conv),
}
# What 'auto' lets the kernels and patches of a chunk take: in bfloat16 it is
# all of 128 samples at every 3x3 convolution of ResNet-50.
_CHUNK_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Choice:
  """What 'auto' takes, and what that stands on."""

  names: Sequence[str]  # The first that takes the operands; the last does.
  evidence: str


# What 'few' positions of the output of a dense kernel are.
_FEW = 400
_CPU = 'measured on AMD EPYC: '
_H100 = 'measured on an H100, N = 128: '
_H200 = 'measured on an H200, N = 128, forward alone: '
_V5E = 'estimated by libtpu 0.0.42.1 for v5e, N = 64: '
# Numbers are times, forward and backward, as ratios to a plain convolution.
TABLE: Mapping[str, Mapping[str, Choice]] = {
    'cpu': {
        'many': Choice(['loop_conv'], _CPU + '0.6 to 1.05'),
        'few': Choice(['loop_dot'], _CPU + '1.0 to 1.4'),
        '1x1': Choice(['map'], _CPU + '0.3 to 1.05'),
        'grouped': Choice(['map'], _CPU + '0.01'),
        'depthwise': Choice(['taps'], _CPU + '0.07 to 0.3'),
    },
    'cuda': {
        'many': Choice(
            ['fused', 'vmap', 'im2col'],
            _H100 + 'fused 1.0 to 1.9, vmap 1.9 to 2.3, im2col 4.5 to 5.4',
        ),
        'few': Choice(
            ['fused', 'im2col'],
            _H100 + 'fused 1.5 to 2.8, im2col 5.8 to 9.4, vmap 15 to 55',
        ),
        '1x1': Choice(['im2col'], _H200 + '0.85 to 4.2, vmap 27 to 43'),
        'grouped': Choice(
            ['vmap', 'im2col'], _H200 + '1.6 to 1.7, im2col 13 to 18'
        ),
        'depthwise': Choice(['taps'], _H200 + '0.5 to 2.2, vmap 1.2 to 2.7'),
    },
    'tpu': {
        'many': Choice(
            ['fused', 'vmap', 'im2col'],
            _V5E + 'fused 0.7 to 1.2, vmap 6.0 to 11, im2col 9.5 to 14',
        ),
        'few': Choice(
            ['fused', 'im2col'],
            _V5E + 'fused 1.2 to 2.1, im2col 11 to 33, vmap 11 to 51',
        ),
        '1x1': Choice(
            ['im2col'], _V5E + '0.9 to 24, vmap 7 to 29, map 4 to 32'
        ),
        'grouped': Choice(
            ['map'], _V5E + '7 to 17, im2col 7 to 13 but up to 1.8 GiB'
        ),
        'depthwise': Choice(['taps'], _V5E + '4 to 6, vmap 3 to 9'),
    },
    # Such as 'rocm'.
    'default': {
        'many': Choice(['vmap', 'im2col'], 'reasoned: as on CUDA'),
        'few': Choice(['im2col'], 'reasoned: as on CUDA'),
        '1x1': Choice(['im2col'], 'reasoned: as on CUDA'),
        'grouped': Choice(['vmap', 'im2col'], 'reasoned: as on CUDA'),
        'depthwise': Choice(['taps'], 'reasoned: as on CUDA'),
    },
}


def kind_of(kernel_shape: Sequence[int], groups: int, positions: int) -> str:
  """Returns what kind of convolution it is, in the rows of `TABLE`.

  Args:
    kernel_shape: [kh, kw, C/groups, D].
    groups: number of channel groups.
    positions: H' * W', positions of the output.
  """
  if groups > 1:
    return 'depthwise' if kernel_shape[2] == 1 else 'grouped'
  if tuple(kernel_shape[:2]) == (1, 1):
    return '1x1'
  return 'few' if positions <= _FEW else 'many'


@dataclasses.dataclass(frozen=True)
class _Branch:
  """What runs on a platform."""

  form: Form | Kernels
  options: Options


# With a cache: what is traced, is traced for all platforms, and networks have
# many convolutions of few shapes.
@functools.partial(jax.jit, static_argnums=0)
def _forward(branch, x, kernel, attention):
  return branch.form.forward(x, kernel, attention, branch.options)


@functools.partial(jax.jit, static_argnums=0)
def _backward(branch, *operands):
  """Returns the gradients of x, kernel and attention."""
  form, options = branch.form, branch.options
  if form.backward is None:
    return forms.backward(form.forward, options, *operands)
  return form.backward(options, *operands)


def _forward_again(branch, *operands):
  """As `_forward`, but no kernels and patches are kept for its derivatives."""
  run = functools.partial(_forward, branch)
  return (jax.checkpoint(run) if branch.form.batched else run)(*operands)


def _by_platform(function, branches, operands):
  """Returns function(branch, *operands), with the branch of the platform."""
  # JAX joins branches that are one object.
  made = {b: functools.partial(function, b) for b in branches.values()}
  by_platform = {platform: made[b] for platform, b in branches.items()}
  return lax.platform_dependent(*operands, **by_platform)


def _with_chunk(name, options, x, kernel, positions):
  """Returns options whose chunk bounds the memory of a batched form."""
  number = x.shape[0]
  if options.chunk or not isinstance(number, numbers.Integral):
    return options
  # The other forms have no patches.
  patches = positions * kernel[..., 0].size * options.groups
  values = kernel.size + (patches if name == 'im2col' else 0)
  chunk = max(1, _CHUNK_BYTES // (values * kernel.dtype.itemsize))
  return dataclasses.replace(options, chunk=None if number <= chunk else chunk)


def _branch(platform, names, operands, options, positions):
  """Returns what a platform runs: of the first name that takes the operands."""
  x, kernel, _ = operands
  fused = Kernels(platform)
  if platform == 'cpu':
    fused = Kernels(INTERPRETED, interpret=True)
  for name in names:
    if name == 'fused':
      if fused.take(*operands, options):
        return _Branch(fused, options)
    # A convolution cannot have a symbolic number of groups.
    elif name != 'vmap' or isinstance(x.shape[0], numbers.Integral):
      form = FORMS[name]
      if form.batched:
        options = _with_chunk(name, options, x, kernel, positions)
      return _Branch(form, options)
  raise AssertionError(f'{platform}: {names}')


def auto(x, kernel, attention, options: Options, preferred: Sequence[str] = ()):
  """What `TABLE` has for the platform, after what is preferred to that."""
  positions = math.prod(options.output_size(x.shape[1:3], kernel.shape[:2]))
  kind = kind_of(kernel.shape, options.groups, positions)
  operands = x, kernel, attention
  branches = {
      platform: _branch(
          platform, [*preferred, *row[kind].names], operands, options, positions
      )
      for platform, row in TABLE.items()
  }
  different = {*branches.values()}
  if all(branch.form.backward is None for branch in different):
    if len(different) == 1:
      (branch,) = different
      return branch.form.forward(*operands, branch.options)
    return _by_platform(_forward_again, branches, operands)

  @jax.custom_vjp
  def apply(*operands):
    return _by_platform(_forward, branches, operands)

  apply.defvjp(
      lambda *operands: (apply(*operands), operands),
      lambda saved, grad: _by_platform(_backward, branches, (*saved, grad)),
  )
  return forms.in_reverse_only(apply, *operands)


# The shared kernel's tiles, scaled for each sample on their way.
fused = functools.partial(auto, preferred=('fused',))
