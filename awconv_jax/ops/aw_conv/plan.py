"""What a set of kernels is told of an AW-convolution, besides the arrays."""

import dataclasses
import math

from awconv_jax.ops.aw_conv.forms import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Options):
  """The options, of whose strides and dilation one is 1 on each axis."""

  size: tuple[int, int]  # (H, W) of the input.
  kernel_size: tuple[int, int]
  interpret: bool  # Whether in Pallas' interpreter, on any device.

  @property
  def output(self) -> tuple[int, int]:
    """(H', W')."""
    return self.output_size(self.size, self.kernel_size)

  @property
  def before(self) -> tuple[int, int]:
    """Zeros before the first row and column."""
    return self.padding[0][0], self.padding[1][0]

  @property
  def positions_of_phase(self) -> int:
    """The most that leave the same remainders by the strides."""
    return math.prod(-(-n // s) for n, s in zip(self.size, self.strides))  # noqa: B905
