"""Figures of what a network looks at; each is drawn on a figure, or a part.

with figures.style():
  figure = figures.new(figures.PAGE, 2.0)
  draw.maps(figure, explain.attention_maps(model, images))
figures.save(figure, 'maps.pdf')
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from awconv_jax import figures
from awconv_jax.errors import one_line
from awconv_jax.explain.by_class import ByClass
from awconv_jax.explain.cam import Cam
from awconv_jax.explain.maps import KernelNorms

# Tiles in a row of a page, and inches that a row of these takes.
TILES, ROW = 8, 1.05
# Photos are drawn of so many pixels at most: more would take memory and time.
_SIDE = 1000


def short(path: str) -> str:
  """Returns a layer's path on two lines, as there is little room above it."""
  block, _, slot = path.rpartition('/')
  return f'{block.removeprefix("backbone/")}\n{slot}'


def rows_of(count: int) -> int:
  """Returns how many rows so many tiles take."""
  return -(-count // TILES)


def _tiles(figure: Any, names: Sequence[str]) -> list[Any]:
  """Returns an axis for each of these layers, titled; the others are off."""
  columns = min(len(names), TILES)
  grid = figure.subplots(rows_of(len(names)), columns, squeeze=False)
  for axis in grid.flat:
    axis.set_axis_off()
  axes = [*grid.flat][: len(names)]
  for axis, name in zip(axes, names, strict=True):
    axis.set_title(short(name), fontsize=5.5, pad=2)
  return axes


def _shared(figure: Any, axes: Sequence[Any], values: Any, **options: Any):
  """Shows an image on each axis, by one scale, with its bar of colours."""
  label = options.pop('label')
  lows, highs = zip(
      *((np.nanmin(v), np.nanmax(v)) for v in values), strict=True
  )
  limits = dict(vmin=min(lows), vmax=max(highs)) | options
  shown = [
      axis.imshow(value, **limits)
      for axis, value in zip(axes, values, strict=True)
  ]
  bar = figure.colorbar(shown[0], ax=[*figure.axes], label=label, fraction=0.02)
  bar.outline.set_linewidth(0.4)


def maps(figure: Any, found: Mapping[str, np.ndarray]) -> None:
  """Draws A at each tap: its mean over images, inputs and outputs.

  Args:
    figure: or a part of one.
    found: of `attention_maps`, by layer.
  """
  axes = _tiles(figure, [*found])
  means = [array.mean((0, 3, 4)) for array in found.values()]
  options = dict(cmap=figures.SEQUENTIAL, label='mean A')
  _shared(figure, axes, means, **options)


def groups(figure: Any, found: Mapping[str, np.ndarray]) -> None:
  """Draws A by tap (down, row by row) and by group of inputs (across)."""
  axes = _tiles(figure, [*found])
  means = [
      array.mean((0, 4)).reshape(-1, array.shape[3]) for array in found.values()
  ]
  options = dict(cmap=figures.SEQUENTIAL, aspect='auto')
  label = 'mean A by tap (down)\nand group of inputs (across)'
  _shared(figure, axes, means, label=label, **options)


def deviation(figure: Any, found: Mapping[str, np.ndarray]) -> None:
  """Draws how far A differs from image to image, at each tap.

  It is the standard deviation over images: the root of the mean over inputs and
  outputs of the variance of a value of A.
  """
  axes = _tiles(figure, [*found])
  spread = [np.sqrt(array.var(0).mean((2, 3))) for array in found.values()]
  options = dict(cmap=figures.SEQUENTIAL, vmin=0)
  _shared(figure, axes, spread, label='A: std over images', **options)


def kernels(figure: Any, norms: Mapping[str, KernelNorms]) -> None:
  """Draws by how much A changes the norm of the kernel of every output."""
  axis = figure.subplots()
  for place, found in enumerate(norms.values()):
    ratio = (found.recalibrated / np.maximum(found.plain, 1e-12)).mean(0)
    # Side by side where they would hide each other.
    across = place + 0.6 * (np.argsort(np.argsort(ratio)) / len(ratio) - 0.5)
    color = figures.COLORS[0]
    axis.plot(across, ratio, '.', ms=1.2, alpha=0.6, color=color)
    median = np.median(ratio)
    axis.plot([place - 0.35, place + 0.35], [median] * 2, color='black')
  labels = [name.removeprefix('backbone/') for name in norms]
  axis.set_xticks(range(len(norms)), labels, rotation=45, ha='right')
  axis.tick_params(axis='x', labelsize=5)
  axis.set_ylabel('‖K·(1 + A)‖ / ‖K‖\nof each output channel')
  axis.grid(axis='y')


def cams(
    figure: Any, images: Sequence[np.ndarray], found: Sequence[Cam | None]
):
  """Draws each image beside itself with its Grad-CAM, if any, laid over it."""
  pairs = min(len(found), 3)
  grid = figure.subplots(-(-len(found) // pairs), 2 * pairs, squeeze=False)
  for axis in grid.flat:
    axis.set_axis_off()
  for n, (image, cam) in enumerate(zip(images, found, strict=True)):
    plain, laid = grid.flat[2 * n : 2 * n + 2]
    # Pixels of the image, in which boxes are.
    extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
    for axis in (plain, laid):
      grey = image.shape[2] == 1
      pixels = _small(image[..., 0] if grey else image)
      axis.imshow(pixels, cmap='gray', vmax=255, extent=extent)
      if cam is not None and cam.box is not None:
        _outline(axis, cam.box)
    options = dict(cmap='inferno', vmin=0, vmax=1, alpha=0.6)
    values = np.full((1, 1), np.nan) if cam is None else _small(cam.map)
    values = np.ma.masked_invalid(values)
    shown = laid.imshow(values, extent=extent, **options)
    if cam is None:
      plain.set_title('nothing found')
      continue
    plain.set_title(f'{one_line(cam.name)}: {cam.score:.1%}')
    laid.set_title(f'Grad-CAM, {cam.layer}')
    figures.plain_text(plain)
  label = 'Grad-CAM\n(share of its maximum)'
  bar = figure.colorbar(shown, ax=[*figure.axes], label=label, fraction=0.02)
  bar.outline.set_linewidth(0.4)
  bar.solids.set_alpha(1)


def _small(values: np.ndarray) -> np.ndarray:
  """Returns an image of no more pixels than a page shows."""
  share = _SIDE / max(values.shape[:2])
  if share >= 1:
    return values
  height, width = (max(round(share * n), 1) for n in values.shape[:2])
  return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA)


def _outline(axis: Any, box: np.ndarray) -> None:
  from matplotlib.patches import Rectangle

  x1, y1, x2, y2 = box - 0.5  # The middle of a pixel is at whole numbers.
  for color, width in (('black', 1.6), ('white', 0.8)):
    where = dict(fill=False, edgecolor=color, linewidth=width)
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **where))


def classes(
    figure: Any, found: Mapping[str, ByClass], names: Sequence[str]
) -> None:
  """Draws the mean map of each class (across), less that of all classes.

  Args:
    figure: or a part of one.
    found: of `maps_by_class`; of few layers, one for each row.
    names: of the classes.
  """
  grid = figure.subplots(len(found), len(names), squeeze=False)
  for row, (path, of) in zip(grid, found.items(), strict=True):
    taps = of.means.mean((3, 4))
    apart = taps - np.nanmean(taps, 0)
    limit = np.nanmax(np.abs(apart)) or 1.0
    for axis, values in zip(row, apart, strict=True):
      shown = axis.imshow(
          values, cmap=figures.DIVERGING, vmin=-limit, vmax=limit
      )
      axis.set(xticks=[], yticks=[])
      axis.spines[:].set_visible(False)
    block, _, slot = path.removeprefix('backbone/').rpartition('/')
    row[0].set_ylabel(f'{block}\n{slot}', fontsize=5.5)
    bar = figure.colorbar(shown, ax=[*row], fraction=0.03)
    bar.ax.tick_params(labelsize=5)
    bar.outline.set_linewidth(0.4)
  for axis, name, count in zip(grid[0], names, of.counts, strict=True):
    axis.set_title(f'{one_line(name)[:12]}\n{count:,} images', fontsize=5.5)
    figures.plain_text(axis)
  figure.supxlabel('mean A of a class, minus that of all', fontsize=7)


def variances(figure: Any, found: Mapping[str, ByClass]) -> None:
  """Draws the variance of A within classes, and between them, by layer."""
  axis = figure.subplots()
  places = np.arange(len(found))
  start = np.zeros(len(found))
  for name in ('within', 'between'):
    values = np.array([getattr(of, name).mean() for of in found.values()])
    label = f'{name} classes'
    axis.bar(places, values, 0.7, bottom=start, label=label)
    start = start + values
  for place, of in zip(places, found.values(), strict=True):
    part = of.between.mean() / max(of.between.mean() + of.within.mean(), 1e-30)
    text = f'{part:.0%}'
    axis.annotate(text, (place, start[place]), ha='center', va='bottom', size=5)
  labels = [name.removeprefix('backbone/') for name in found]
  axis.set_xticks(places, labels, rotation=45, ha='right')
  axis.tick_params(axis='x', labelsize=5)
  axis.set_ylabel('variance of A over images\n(with the share between classes)')
  axis.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=2)
