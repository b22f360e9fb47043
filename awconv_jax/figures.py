"""One style for all figures, in the widths of a paper's columns, and vectors.

  figure = figures.new(figures.COLUMN, 2.2)
  axis = figure.subplots()
  ...
  figures.save(figure, 'loss.pdf')

Figures need no screen, and leave the settings of a notebook alone.
"""

import contextlib
import pathlib
from typing import Any
import warnings

from awconv_jax import errors, places

# Widths in inches: of a column, and of a page with two of them and a gap.
COLUMN, PAGE = 3.3, 6.8
# By Okabe and Ito: told apart by those who do not see all colours.
COLORS = (
    *('#0072b2', '#d55e00', '#009e73', '#cc79a7'),
    *('#e69f00', '#56b4e9', '#000000', '#8c6d1f'),
)
# Of what has a least and a greatest value, and of differences from zero.
SEQUENTIAL, DIVERGING = 'viridis', 'RdBu_r'
# Sizes are in points, as they are on paper.
STYLE = {
    'figure.dpi': 200,
    'savefig.dpi': 300,
    'font.size': 7,
    'axes.titlesize': 7,
    'axes.labelsize': 7,
    'xtick.labelsize': 6,
    'ytick.labelsize': 6,
    'legend.fontsize': 6,
    'legend.frameon': False,
    'lines.linewidth': 1.0,
    'lines.markersize': 3,
    'axes.linewidth': 0.5,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'xtick.major.width': 0.5,
    'ytick.major.width': 0.5,
    'grid.linewidth': 0.4,
    'grid.alpha': 0.3,
    'image.interpolation': 'nearest',
    'pdf.fonttype': 42,  # Type 3, the default, is refused by some journals.
    'svg.hashsalt': 'awconv_jax',  # The same figure has the same bytes.
}


def style() -> contextlib.AbstractContextManager:
  """Returns a context whose figures have the style."""
  from matplotlib import rc_context, rcsetup

  return rc_context(STYLE | {'axes.prop_cycle': rcsetup.cycler(color=COLORS)})


def new(width: float, height: float) -> Any:
  """Returns a figure of that size in inches, to be drawn on within `style`."""
  from matplotlib.figure import Figure  # Takes its time to import.

  return Figure(figsize=(width, height), layout='constrained')


def plain_text(artist: Any) -> None:
  """Has names of others, below an artist, drawn as they are: a $ is one."""
  from matplotlib.text import Text

  for text in artist.findobj(Text):
    text.set_parse_math(False)


def plain_ticks(axis: Any) -> None:
  """Has a logarithmic x- or y-axis say 0.5 and 2, rather than 5 x 10^-1."""
  from matplotlib import ticker

  axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  axis.set_minor_locator(ticker.NullLocator())


def check_format(output: str) -> None:
  """Raises InputError if a path ends in no format of figures."""
  from matplotlib.backend_bases import FigureCanvasBase

  suffix = pathlib.Path(output).suffix[1:].lower()
  errors.look_up('suffix of --output:', suffix, FigureCanvasBase.filetypes)


def save(figure: Any, output: str) -> str:
  """Writes a figure, and returns the path; its suffix gives the format.

  Raises:
    InputError: it cannot be written there, or in that format.
  """
  suffix = pathlib.Path(output).suffix[1:]
  # Without the time of day, so that the same figure has the same bytes.
  dated = {'pdf': 'CreationDate', 'svg': 'Date'}.get(suffix.lower())
  try:
    with warnings.catch_warnings(), style():
      # A name may have letters that the font has not.
      warnings.filterwarnings('ignore', 'Glyph')
      with places.for_writing(output) as file:
        # Named, or a suffix would be added, and that file replaced.
        metadata = {dated: None} if dated else None
        figure.savefig(file, format=suffix, metadata=metadata)
  except (OSError, ValueError) as error:
    reason = f'cannot write --output={output!r}: {error}'
    raise errors.InputError(reason) from error
  return output
