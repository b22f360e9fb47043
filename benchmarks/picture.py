"""The tables as bars, on a logarithmic scale."""

from collections.abc import Sequence
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Picture:
  """Which fields of the rows are drawn.

  Attributes:
    bars: field by which the bars of a group differ.
    groups: fields that name a group.
    height: field that is drawn, a ratio.
    title: of the axis.
  """

  bars: str
  groups: Sequence[str]
  height: str
  title: str


def draw(rows: Sequence[Any], what: Picture, path: str) -> None:
  """Draws a group of bars for each shape.

  Args:
    rows: dataclasses.
    what: the fields to draw.
    path: of the PNG file.

  Raises:
    ImportError: there is no matplotlib.
  """
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  groups = {}
  for row in rows:
    label = ' '.join(str(getattr(row, field)) for field in what.groups)
    bar = getattr(row, what.bars)
    groups.setdefault(label, {})[bar] = getattr(row, what.height)
  names = list(dict.fromkeys(n for group in groups.values() for n in group))
  figure, axis = pyplot.subplots(figsize=(3 + len(groups), 5))
  width = 0.8 / len(names)
  for i, name in enumerate(names):
    heights = [group.get(name, float('nan')) for group in groups.values()]
    places = [p + i * width for p in range(len(groups))]
    axis.bar(places, heights, width, label=name)
  axis.axhline(1, color='black', linewidth=0.8)
  axis.set_yscale('log')
  axis.set_ylabel(what.title)
  axis.set_xticks(range(len(groups)), groups, rotation=30, ha='right')
  axis.legend(loc='upper left', bbox_to_anchor=(1, 1))
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
