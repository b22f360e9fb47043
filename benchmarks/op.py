"""The operation alone: every implementation at the shapes of ResNet-50."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import complexity, errors
from awconv_jax.ops import aw_conv as op
from benchmarks import picture, timing, torch_grouped, traffic
from benchmarks.roofline import RESNET50

# Channels and side of the images at the 3x3 convolutions of ResNet-50; with the
# stride where it is not 1.
SHAPES = tuple((c.channels, c.side) for c in RESNET50 if c.stride == 1)
STRIDED = tuple(
    (c.channels, c.side, c.stride) for c in RESNET50 if c.stride > 1
)
PASSES = traffic.PASSES
# Relative differences between the forms that are rounding, on CPU. Matrix units
# of other devices round what they multiply, so that there float32 is no better.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 3e-2}
# What the time of each is divided by; that of all others is 'plain'.
BASES = {'torch:plain': 'torch:plain', 'torch:grouped': 'torch:plain'}
# The implementation that does the same work; of all others, they themselves.
SAME_WORK = {'torch:plain': 'plain', 'torch:grouped': 'vmap'}
PICTURE = picture.Picture(
    bars='implementation',
    groups=('channels', 'side', 'stride', 'batch', 'direction'),
    height='ratio',
    title='time, ratio to plain',
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
    ratio: time over that of 'plain' in the same run; for PyTorch's over that of
      'torch:plain'.
    temporary_mib: memory asked for besides arguments and results.
    moved_mib: what a call must read and write, by the model in `traffic`:
      counted from the arrays that the implementation makes, not measured.
    gflop: 1e9 multiplications and additions of a call, from the jaxpr:
      convolutions and matrix products, in loops as often as they run; with
      zeros put in where a gradient has a stride.
    gflop_per_second: of the call.
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
  moved_mib: float
  gflop: float
  gflop_per_second: float
  error: float


def plain(x, kernel, attention, *, strides=(1, 1)):
  """Returns the convolution without attention."""
  del attention
  return jax.lax.conv_general_dilated(
      x, kernel, strides, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _inputs(conv, batch, expansion, dtype, seed):
  """Returns random x, kernel, attention and gradient of the output."""
  rng = np.random.default_rng(seed)
  channels = conv.channels
  groups = max(channels // expansion, 1)
  x = rng.normal(size=(batch, conv.side, conv.side, channels))
  kernel = rng.normal(size=(3, 3, channels, channels)) / (3 * channels**0.5)
  attention = rng.uniform(size=(batch, 3, 3, groups, channels))
  out_side = -(-conv.side // conv.stride)
  grad = rng.normal(size=(batch, out_side, out_side, channels))
  return tuple(jnp.asarray(a, dtype) for a in (x, kernel, attention, grad))


def _function(name, direction, stride=1):
  strides = (stride, stride)
  if name == 'plain':
    forward = functools.partial(plain, strides=strides)
  else:
    forward = functools.partial(
        op.aw_conv, implementation=name, strides=strides
    )
  if direction == 'forward':
    return lambda x, kernel, attention, grad: forward(x, kernel, attention)

  def both(x, kernel, attention, grad):
    out, pullback = jax.vjp(forward, x, kernel, attention)
    grads = pullback(grad)
    # The plain convolution has no gradient of the maps.
    return out, grads[:2] if name == 'plain' else grads

  return both


def _check_errors(differences, *, dtype, where):
  """Raises ReportedError if a form computes something else."""
  on_cpu = jax.default_backend() == 'cpu'
  tolerance = TOLERANCES[dtype if on_cpu else 'bfloat16']
  for name, difference in differences.items():
    if not difference <= tolerance:
      raise errors.ReportedError(
          f'{name} differs from what it is compared with, vmap or plain, by '
          f'{difference:.1e} (relative) at {where}: not timed'
      )


def _rows(ready, inputs, measured, conv, direction, expansion) -> Iterator[Row]:
  """Yields a row for everything that was measured at one shape."""
  batch, itemsize = inputs[0].shape[0], inputs[0].dtype.itemsize
  for name, m in measured.items():
    work = SAME_WORK.get(name, name)
    macs = complexity.count_macs(
        _function(work, direction, conv.stride), *inputs
    )
    gflop = 2 * sum(macs.values()) / 1e9
    moved = traffic.count_bytes(
        work,
        direction,
        conv,
        batch=batch,
        expansion=expansion,
        itemsize=itemsize,
    )
    base = measured[BASES.get(name, 'plain')]
    yield Row(
        channels=conv.channels,
        side=conv.side,
        stride=conv.stride,
        batch=batch,
        direction=direction,
        implementation=name,
        milliseconds=m.milliseconds,
        calls=m.calls,
        ratio=m.milliseconds / base.milliseconds,
        temporary_mib=ready[name].temporary_mib,
        moved_mib=moved / 2**20,
        gflop=gflop,
        gflop_per_second=1e3 * gflop / m.milliseconds,
        error=m.error,
    )


def run(
    *,
    implementations: Sequence[str],
    batches: Sequence[int],
    expansion: int,
    dtype: str,
    seconds: float,
    strided: bool = False,
    torch: bool = False,
) -> Iterator[Row]:
  """Measures, and yields rows as they come.

  Args:
    implementations: names of `ops.aw_conv`, besides 'plain'; the vmapped form
      is measured in any case, as the reference.
    batches: batch sizes.
    expansion: e, input channels that share a value of the maps.
    dtype: of everything.
    seconds: time for each measurement.
    strided: whether to measure the convolutions of stride 2, too.
    torch: whether to measure PyTorch's grouped convolution, too.

  Raises:
    InputError: PyTorch is asked for and cannot be had.
    ReportedError: a form does not compute what the vmapped one does, or a
      result is zero or not finite.
  """
  names = ['plain', *dict.fromkeys(['vmap', *implementations])]
  check = {n: 'vmap' for n in names if n not in ('plain', 'vmap')}
  if torch:
    torch_grouped.load()  # Or fail before anything is measured.
    check |= {'torch:plain': 'plain', 'torch:grouped': 'vmap'}
  shapes = SHAPES + STRIDED if strided else SHAPES
  for direction, batch, shape in itertools.product(PASSES, batches, shapes):
    conv = traffic.Convolution(*shape)
    inputs = [_inputs(conv, batch, expansion, dtype, seed) for seed in range(2)]
    programs = {
        n: dict(function=_function(n, direction, conv.stride), inputs=inputs)
        for n in names
    }
    ready = timing.compile_all(programs, check)
    if torch:
      ready |= torch_grouped.prepare(inputs, direction, conv.stride)
    refuse = functools.partial(
        _check_errors,
        dtype=dtype,
        where=f'{shape} (channels, side, stride), batch {batch}',
    )
    measured = timing.measure(
        ready, seconds=seconds, check=check, refuse=refuse
    )
    yield from _rows(ready, inputs[0], measured, conv, direction, expansion)


def summarize(rows: Sequence[Row]) -> list[str]:
  """Returns the median and the worst ratio of each implementation, as lines."""
  ratios = {}
  for row in rows:
    ratios.setdefault((row.direction, row.implementation), []).append(row.ratio)
  return [
      f'{direction}, {name}: ratio {statistics.median(values):.2f} in the '
      f'median, {max(values):.2f} at worst'
      for (direction, name), values in ratios.items()
      if BASES.get(name, 'plain') != name
  ]
