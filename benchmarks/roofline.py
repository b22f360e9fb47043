"""A table on paper: FLOPs and bytes of each form at ResNet-50's convolutions.

Nothing runs on the device; `traffic` says what is counted. Intensity is FLOPs
over bytes. Given a bandwidth and a rate, a call takes at least
max(bytes / bandwidth, FLOPs / rate).
"""

from collections.abc import Iterator, Sequence
import dataclasses

import jax.numpy as jnp

from awconv_jax import errors
from benchmarks import picture, traffic

PICTURE = picture.Picture(
    bars='implementation',
    groups=('channels', 'side', 'stride', 'batch', 'direction'),
    height='bytes_ratio',
    title='bytes moved, ratio to plain',
)
# Of ResNet-50 at 224x224 with the stride in the 3x3 (v1.5).
RESNET50 = (
    traffic.Convolution(64, 56, 1, 3),
    traffic.Convolution(128, 56, 2, 1),
    traffic.Convolution(128, 28, 1, 3),
    traffic.Convolution(256, 28, 2, 1),
    traffic.Convolution(256, 14, 1, 5),
    traffic.Convolution(512, 14, 2, 1),
    traffic.Convolution(512, 7, 1, 2),
)


@dataclasses.dataclass
class Row:
  """One line of the table.

  Attributes:
    channels, side, stride: of the convolution; side is that of its input.
    number: of such convolutions in the network; the line is for one.
    batch: samples.
    direction: 'forward', or 'both' for forward and backward.
    implementation: its name, as in `traffic.FORMS`.
    gflop: 1e9 multiplications and additions of a call.
    moved_mib: what a call reads and writes.
    intensity: FLOPs for each byte.
    bytes_ratio: bytes over those of 'plain'.
    milliseconds: the least time of a call; None without the device's numbers.
    time_ratio: that time over that of 'plain'.
  """

  channels: int
  side: int
  stride: int
  number: int
  batch: int
  direction: str
  implementation: str
  gflop: float
  moved_mib: float
  intensity: float
  bytes_ratio: float
  milliseconds: float | None
  time_ratio: float | None


@dataclasses.dataclass(frozen=True)
class Device:
  """What a device can do at most.

  Attributes:
    bandwidth_gbs: 1e9 bytes a second, to and from its memory.
    tflops: 1e12 multiplications and additions a second.
  """

  bandwidth_gbs: float
  tflops: float

  def milliseconds(self, flops: float, moved: float) -> float:
    """Returns the least time for that many FLOPs and bytes."""
    return max(moved / self.bandwidth_gbs / 1e6, flops / self.tflops / 1e9)


def create_device(
    bandwidth_gbs: float | None, tflops: float | None
) -> Device | None:
  """Returns the device of two flags, None if neither is given.

  Raises:
    InputError: only one is given, or one is not above 0.
  """
  if bandwidth_gbs is None and tflops is None:
    return None
  if not (bandwidth_gbs or 0) > 0 or not (tflops or 0) > 0:
    raise errors.InputError(
        '--bandwidth_gbs and --tflops are needed together, both above 0'
    )
  return Device(bandwidth_gbs, tflops)


def run(
    *,
    implementations: Sequence[str],
    batches: Sequence[int],
    expansion: int,
    dtype: str,
    device: Device | None,
) -> Iterator[Row]:
  """Counts, and yields the rows.

  Args:
    implementations: names in `traffic.FORMS` or 'auto', besides 'plain'.
    batches: batch sizes.
    expansion: e, input channels that share a value of the maps.
    dtype: of everything.
    device: for the times; None for no times.
  """
  names = dict.fromkeys(['plain', *implementations])
  itemsize = jnp.dtype(dtype).itemsize
  options = dict(expansion=expansion, itemsize=itemsize)
  for direction in traffic.PASSES:
    for batch in batches:
      for conv in RESNET50:
        counts = {
            name: (
                traffic.count_flops(name, direction, conv, batch),
                traffic.count_bytes(
                    name, direction, conv, batch=batch, **options
                ),
            )
            for name in names
        }
        for name in names:
          yield _row(name, conv, batch, direction, counts, device)


def _row(name, conv, batch, direction, counts, device):
  """Returns the row of an implementation, given the counts of all by name."""
  (flops, moved), plain = counts[name], counts['plain']
  time = device.milliseconds(flops, moved) if device else None
  return Row(
      channels=conv.channels,
      side=conv.side,
      stride=conv.stride,
      number=conv.number,
      batch=batch,
      direction=direction,
      implementation=name,
      gflop=flops / 1e9,
      moved_mib=moved / 2**20,
      intensity=flops / moved,
      bytes_ratio=moved / plain[1],
      milliseconds=time,
      time_ratio=time / device.milliseconds(*plain) if device else None,
  )


def summarize(rows: Sequence[Row]) -> list[str]:
  """Returns lines with the ratios over all convolutions of the network."""
  totals = {}
  for row in rows:
    key = row.direction, row.batch, row.implementation
    moved, time = totals.get(key, (0, 0))
    totals[key] = (
        moved + row.number * row.moved_mib,
        time + row.number * (row.milliseconds or 0),
    )
  lines = []
  for (direction, batch, name), (moved, time) in totals.items():
    plain_moved, plain_time = totals[direction, batch, 'plain']
    line = (
        f'{direction}, batch {batch}, {name}: over the '
        f'{sum(conv.number for conv in RESNET50)} convolutions '
        f'{moved / plain_moved:.2f} times the bytes of plain'
    )
    if plain_time:
      line += f', {time / plain_time:.2f} times the time'
    lines.append(line)
  return lines
