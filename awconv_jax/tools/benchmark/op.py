"""The operation alone: every implementation at the shapes of ResNet-50."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import complexity, errors
from awconv_jax.ops import aw_conv as op
from awconv_jax.tools.benchmark import timing

# Channels and side of the images at the 3x3 convolutions of ResNet-50.
SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
PASSES = ('forward', 'both')
# Relative differences between the forms that are rounding.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 3e-2}


@dataclasses.dataclass
class Row:
  """One line of the table.

  Attributes:
    channels, side, batch: of the input, [batch, side, side, channels].
    direction: 'forward', or 'both' for forward and backward.
    implementation: its name; 'plain' is the convolution without attention.
    milliseconds: median time.
    ratio: time over that of 'plain' in the same run.
    temporary_mib: temporary memory in MiB.
    gflops: 1e9 multiplications and additions a second, from the jaxpr.
    error: relative to the vmapped form in the same run.
  """

  channels: int
  side: int
  batch: int
  direction: str
  implementation: str
  milliseconds: float
  ratio: float
  temporary_mib: float
  gflops: float
  error: float


def plain(x, kernel, attention):
  """Returns the convolution without attention."""
  del attention
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _inputs(channels, side, batch, expansion, dtype, seed):
  """Returns random x, kernel, attention and gradient of the output."""
  rng = np.random.default_rng(seed)
  groups = max(channels // expansion, 1)
  x = rng.normal(size=(batch, side, side, channels))
  kernel = rng.normal(size=(3, 3, channels, channels)) / (3 * channels**0.5)
  attention = rng.uniform(size=(batch, 3, 3, groups, channels))
  grad = rng.normal(size=x.shape)
  return tuple(jnp.asarray(a, dtype) for a in (x, kernel, attention, grad))


def _function(name, direction):
  if name == 'plain':
    forward = plain
  else:
    forward = functools.partial(op.aw_conv, implementation=name)
  if direction == 'forward':
    return lambda x, kernel, attention, grad: forward(x, kernel, attention)

  def both(x, kernel, attention, grad):
    out, pullback = jax.vjp(forward, x, kernel, attention)
    return out, pullback(grad)

  return both


def run(
    *,
    implementations: Sequence[str],
    batches: Sequence[int],
    expansion: int,
    dtype: str,
    seconds: float,
) -> Iterator[Row]:
  """Measures, and yields rows as they come.

  Args:
    implementations: names of `ops.aw_conv`, besides 'plain'; the vmapped form
      is measured in any case, as the reference.
    batches: batch sizes.
    expansion: e, input channels that share a value of the maps.
    dtype: of everything.
    seconds: time for each measurement.

  Raises:
    ReportedError: a form does not compute what the vmapped one does.
  """
  names = ['plain', *dict.fromkeys(['vmap', *implementations])]
  for direction in PASSES:
    for batch in batches:
      for channels, side in SHAPES:
        inputs = [
            _inputs(channels, side, batch, expansion, dtype, seed)
            for seed in range(2)
        ]
        functions = {n: _function(n, direction) for n in names}
        measured = timing.measure(
            functions,
            dict.fromkeys(names, inputs),
            seconds=seconds,
            check={n: 'vmap' for n in names if n not in ('plain', 'vmap')},
        )
        for name, m in measured.items():
          if not m.error <= TOLERANCES[dtype]:
            raise errors.ReportedError(
                f'{name} differs from vmap by {m.error:.1e} (relative) at '
                f'{channels} channels, {side}x{side}, batch {batch}: not timed'
            )
          macs = complexity.count_macs(functions[name], *inputs[0])
          yield Row(
              channels=channels,
              side=side,
              batch=batch,
              direction=direction,
              implementation=name,
              milliseconds=m.milliseconds,
              ratio=m.milliseconds / measured['plain'].milliseconds,
              temporary_mib=m.temporary_mib,
              gflops=2 * sum(macs.values()) / m.milliseconds / 1e6,
              error=m.error,
          )
