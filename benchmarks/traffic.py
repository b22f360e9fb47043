"""What each form of a convolution must compute and move, counted on paper.

The model: a form is a chain of steps, and a step reads each of its operands
from the device's memory once and writes its result there once. What is written
is fixed by the arrays that a form makes in whole: input and output, the shared
kernel, the samples' own kernels K * (1 + A), patches, maps, and the gradients
of all of them, which are as large as they. Elementwise work is done on the way
(of a convolution's operand or result) and moves nothing more. Caches are not
modelled: a loop's arrays count even where one sample's would stay in a cache,
and a library may lay out an array anew, which is not counted either. So the
numbers say which form has how much to do on a device whose memory is the limit;
they are no measurement.

FLOPs are two for each multiply-add of the convolutions, and of the products of
the kernel with the maps.
"""

import dataclasses

import jax

from awconv_jax.ops import aw_conv

PASSES = ('forward', 'both')


@dataclasses.dataclass(frozen=True)
class Convolution:
  """A 3x3 convolution with as many outputs as inputs, padded by one.

  Attributes:
    channels: C = D.
    side: height and width of its input.
    stride: in both directions.
    number: of such convolutions in the network.
  """

  channels: int
  side: int
  stride: int = 1
  number: int = 1

  @property
  def positions(self) -> int:
    """H' * W', positions of the output."""
    return (-(-self.side // self.stride)) ** 2


def sizes(
    conv: Convolution, batch: int, expansion: int, itemsize: int
) -> dict[str, int]:
  """Returns the bytes of every array that a step can read or write.

  Args:
    conv: the convolution.
    batch: samples, N.
    expansion: e, input channels that share a value of the maps.
    itemsize: bytes of an element. Sums over samples or taps are in float32.
  """
  channels, taps = conv.channels, 9
  kernel = taps * channels**2
  groups = max(channels // expansion, 1)
  outputs = batch * conv.positions * channels
  return {
      'x': itemsize * batch * conv.side**2 * channels,
      'y': itemsize * outputs,
      'k': itemsize * kernel,
      'maps': itemsize * batch * taps * groups * channels,
      'own': itemsize * batch * kernel,
      'patches': itemsize * taps * outputs,
      # A loop over samples: the shared kernel in each turn, and the sum.
      'every_k': itemsize * batch * kernel,
      'sums': 4 * batch * kernel,
      # A product for each tap: the output's gradient each time, and the parts.
      'every_y': itemsize * taps * outputs,
      'parts': 4 * taps * outputs,
  }


Steps = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Form:
  """The steps of a form, each as the names of what it reads and writes.

  Attributes:
    forward, backward: steps; a gradient goes by the name of its array.
    modulations: products of kernel and maps, forward and backward.
  """

  forward: Steps
  backward: Steps
  modulations: tuple[int, int]


_MODULATE = ('k maps', 'own')
_MODULATE_IN_LOOP = ('every_k maps', 'own')
_SEE = ('x', 'patches')
_MULTIPLY = ('patches own', 'y')
# Of a convolution with the samples' own kernels.
_CONVOLVE_BACK = (('y own', 'x'), ('x y', 'own'))
_MULTIPLY_BACK = (('y own', 'patches'), ('patches', 'x'), ('patches y', 'own'))
# From the gradient of the own kernels to those of the shared one and the maps.
_SPLIT = (('own maps', 'k'), ('own k', 'maps'))
_SPLIT_IN_LOOP = (('own maps sums', 'sums'), ('own every_k', 'maps'))
_LOOP_BACK = (_MODULATE_IN_LOOP, _SEE, *_MULTIPLY_BACK, *_SPLIT_IN_LOOP)

FORMS = {
    'plain': Form((('x k', 'y'),), (('y k', 'x'), ('x y', 'k')), (0, 0)),
    # The steps of 'plain', with the maps multiplied in on the way, so that no
    # sample's kernel is ever in memory.
    'fused': Form(
        (('x k maps', 'y'),),
        (('y k maps', 'x'), ('x y k maps', 'k maps')),
        (1, 3),
    ),
    'vmap': Form(
        (_MODULATE, ('x own', 'y')), (*_CONVOLVE_BACK, *_SPLIT), (1, 2)
    ),
    'im2col': Form(
        (_MODULATE, _SEE, _MULTIPLY), (*_MULTIPLY_BACK, *_SPLIT), (1, 2)
    ),
    'taps': Form(
        (_MODULATE, ('patches own', 'parts'), ('parts', 'y')),
        (
            ('every_y own', 'patches'),
            ('patches', 'x'),
            ('patches every_y', 'own'),
            *_SPLIT,
        ),
        (1, 2),
    ),
    'map': Form((_MODULATE_IN_LOOP, _SEE, _MULTIPLY), _LOOP_BACK, (1, 3)),
    'loop_dot': Form((_MODULATE_IN_LOOP, _SEE, _MULTIPLY), _LOOP_BACK, (1, 3)),
    'loop_conv': Form(
        (_MODULATE_IN_LOOP, ('x own', 'y')),
        (
            _MODULATE_IN_LOOP,
            ('own', 'own'),  # Flipped and transposed.
            ('y own', 'x'),
            _SEE,
            ('patches y', 'own'),
            *_SPLIT_IN_LOOP,
        ),
        (1, 3),
    ),
}


# With a stride, where the form is another.
STRIDED = {
    'loop_conv': dataclasses.replace(FORMS['loop_conv'], backward=_LOOP_BACK)
}


def form_of(name: str, conv: Convolution) -> Form:
  """Returns the form of a name in `FORMS`, or of 'auto', at a convolution."""
  if name == 'auto':
    kernel_shape = (3, 3, conv.channels, conv.channels)
    backend = jax.default_backend()
    name = aw_conv.choose(kernel_shape, 1, conv.positions, backend)
  if conv.stride > 1 and name in STRIDED:
    return STRIDED[name]
  return FORMS[name]


def count_bytes(
    name: str,
    direction: str,
    conv: Convolution,
    *,
    batch: int,
    expansion: int,
    itemsize: int,
) -> int:
  """Returns the bytes that a form reads and writes in a call.

  Args:
    name: in `FORMS`, or 'auto'.
    direction: 'forward', or 'both' for forward and backward.
    conv: the convolution.
    batch, expansion, itemsize: as of `sizes`.
  """
  form = form_of(name, conv)
  steps = form.forward + (form.backward if direction == 'both' else ())
  size = sizes(conv, batch, expansion, itemsize)
  return sum(
      size[array] for step in steps for side in step for array in side.split()
  )


def count_flops(
    name: str, direction: str, conv: Convolution, batch: int
) -> int:
  """Returns the FLOPs of a form in a call.

  Args:
    name: in `FORMS`, or 'auto'.
    direction: 'forward', or 'both' for forward and backward.
    conv: the convolution.
    batch: samples.
  """
  both = direction == 'both'
  modulations = sum(form_of(name, conv).modulations[: 2 if both else 1])
  products = (3 if both else 1) * conv.positions + modulations
  return 2 * batch * products * 9 * conv.channels**2
