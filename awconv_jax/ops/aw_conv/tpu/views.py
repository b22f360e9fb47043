"""Where the taps of a convolution look, on planes whose positions are a row.

An image is held as planes: with strides one for each pair of remainders of row
and column by them, else one. A plane's rows follow each other at a pitch, with
zeros before, behind and between them, so that what a tap sees of a plane, for
all positions of a target at that pitch, is one run of its places.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools

from awconv_jax.ops.aw_conv.plan import Plan

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class View:
  """What a tap sees: position (y, x) of a part sees (y + row, x + column)."""

  tap: int
  plane: Pair  # Remainders of row and column.
  row: int
  column: int


@dataclasses.dataclass(frozen=True)
class Part:
  """Positions of the target that see by the same taps."""

  first: Pair  # The first position, and `Views.step` from each to the next.
  size: Pair
  views: tuple[View, ...]


@dataclasses.dataclass(frozen=True)
class Views:
  """All that the taps see of an image.

  Attributes:
    size: rows and columns of the image that is seen.
    strides: by which it is in planes.
    step: from a position of a part to the next, in the target.
    parts: of the target.
  """

  size: Pair
  strides: Pair
  step: Pair
  parts: tuple[Part, ...]

  @property
  def _all(self) -> list[tuple[Part, View]]:
    return [(part, view) for part in self.parts for view in part.views]

  def plane_size(self, plane: Pair) -> Pair:
    """Returns rows and columns of a plane."""
    rows, columns = (
        max(0, -(-(n - first) // s))
        for n, first, s in zip(self.size, plane, self.strides, strict=True)
    )
    return rows, columns

  @functools.cached_property
  def _left(self) -> int:
    return max([0, *(-view.column for _, view in self._all)])

  @functools.cached_property
  def pitch(self) -> int:
    """From a row to the next: even, as a word holds two positions."""
    # A word that begins left of a row holds the last place of the row before,
    # which has to be zero.
    widths = [
        self.plane_size(view.plane)[1] + max(self._left, view.column % 2)
        for _, view in self._all
    ]
    ends = [part.size[1] + max(0, view.column) for part, view in self._all]
    return -(-max([1, *widths, *ends]) // 2) * 2

  @functools.cached_property
  def origin(self) -> int:
    """The place of a plane's position (0, 0): an even number."""
    above = max([0, *(-view.row for _, view in self._all)])
    return above * self.pitch + self._left // 2 * 2

  def _start(self, view: View) -> int:
    """Returns the place that a part's first position sees, -1 or more."""
    return self.origin + view.row * self.pitch + view.column

  @functools.cached_property
  def slots(self) -> Mapping[Pair, Mapping[int, int]]:
    """For each plane and shift, 0 or 1, that is seen, the number of a copy.

    A word of a copy holds the places 2r - shift and 2r - shift + 1.
    """
    seen = sorted({(v.plane, self._start(v) % 2) for _, v in self._all})
    slots = {plane: {} for plane, _ in seen}
    for number, (plane, shift) in enumerate(seen):
      slots[plane][shift] = number
    return slots

  @property
  def copies(self) -> int:
    """How many copies of planes there are."""
    return sum(map(len, self.slots.values()))

  def place(self, view: View) -> Pair:
    """Returns the copy, and the word of it, at which a view starts."""
    start = self._start(view)
    return self.slots[view.plane][start % 2], (start + 1) // 2

  def run(self, part: Part) -> int:
    """Returns how many places a part's positions take, at the pitch."""
    return part.size[0] * self.pitch

  @property
  def places(self) -> int:
    """How many places hold a plane and all zeros that are seen."""
    seen = [self._start(view) + self.run(part) for part, view in self._all]
    rows = [self.plane_size(plane)[0] for plane in self.slots]
    return max([1, *seen, self.origin + max([0, *rows]) * self.pitch])


def _moves(tap: Sequence[int], plan: Plan) -> list[int]:
  """Returns how far a tap looks from where its strides land."""
  parts = zip(tap, plan.dilation, plan.before, strict=True)
  return [index * gap - before for index, gap, before in parts]


def _taps(plan: Plan):
  return enumerate(itertools.product(*map(range, plan.kernel_size)))


def forward(plan: Plan) -> Views:
  """Returns what the output's positions see of the image."""
  views = []
  for tap, place in _taps(plan):
    moves = zip(_moves(place, plan), plan.strides, strict=True)
    (row, down), (column, along) = (divmod(m, s) for m, s in moves)
    views.append(View(tap, (down, along), row, column))
  part = Part((0, 0), plan.output, tuple(views))
  return Views(plan.size, plan.strides, (1, 1), (part,))


def backward(plan: Plan) -> Views:
  """Returns what the image's positions see of the output's gradient."""
  parts = []
  for first in itertools.product(*map(range, plan.strides)):
    views = []
    for tap, place in _taps(plan):
      moves = zip(first, _moves(place, plan), plan.strides, strict=True)
      (row, down), (column, along) = (divmod(f - m, s) for f, m, s in moves)
      if not (down or along):
        views.append(View(tap, (0, 0), row, column))
    rows, columns = (
        -(-(n - f) // s)
        for n, f, s in zip(plan.size, first, plan.strides, strict=True)
    )
    if rows > 0 and columns > 0:
      parts.append(Part(first, (rows, columns), tuple(views)))
  return Views(plan.output, (1, 1), plan.strides, tuple(parts))
