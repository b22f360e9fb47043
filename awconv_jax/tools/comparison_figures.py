"""Figures of a comparison: means with intervals, and curves."""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any

import numpy as np

from awconv_jax import figures
from awconv_jax.tools import comparison, plot_curves


def bars(
    rows: Sequence[Mapping[str, Any]],
    variants: Mapping[str, Sequence[comparison.Outcome]],
    metric: str,
    baseline: str,
) -> Any:
  """Draws each variant: its seeds, mean and interval; and the differences.

  Above lies the first row; to be called within `figures.style`.
  """
  factor, _ = plot_curves.unit(metric)
  label = plot_curves.label(metric)
  drawn = figures.new(figures.PAGE, 0.55 + 0.19 * len(rows))
  compared = any(row['pairs'] for row in rows)
  axes = drawn.subplots(1, 1 + compared, sharey=True, squeeze=False)[0]
  left = axes[0]
  places = range(len(rows))
  seeds = dict(ls='', marker='|', ms=4, alpha=0.6)  # Equal ones are darker.
  for place, row in zip(places, rows, strict=True):
    color = 'C1' if row['variant'] == baseline else 'C0'
    values = [o.value for o in variants[row['variant']] if o.value is not None]
    values = [value * factor for value in values]
    left.plot(values, [place + 0.3] * len(values), color=color, **seeds)
    _bar(left, place, row['mean'], row['low'], row['high'], factor, color)
  known = {  # In gray, as the marks are of two colors.
      'a seed': left.plot([], [], color='0.4', **seeds)[0],
      f'mean, {comparison.LEVEL:.0%} interval': _bar(
          left, 0, *[math.nan] * 3, factor, '0.4'
      ),
  }
  base = next(row for row in rows if row['variant'] == baseline)
  level = dict(color='C1', lw=0.6, ls='--', zorder=0)
  if base['n']:
    line = left.axvline(base['mean'] * factor, **level)
    known[f'mean of {baseline}'] = line
  names = [f'{row["variant"]} ({row["n"]})' for row in rows]
  left.set_yticks(places, names)
  left.set_ylim(len(rows) - 0.4, -0.6)
  left.set_xlabel(label)
  if compared:
    right = axes[1]
    for place, row in zip(places, rows, strict=True):
      ends = row['difference_low'], row['difference_high']
      _bar(right, place, row['difference'], *ends, factor, 'C0')
    right.axvline(0, **level)
    unit = label.rpartition('(')[2].rstrip(')') if '(' in label else ''
    points = f' ({"points" if unit == "%" else unit})' * bool(unit)
    right.set_xlabel(f'difference to {baseline}{points}')
  for axis in axes:
    axis.grid(axis='x')
    axis.tick_params(axis='y', length=0)
    figures.plain_text(axis)
  note = drawn.legend(
      handles=known.values(),
      labels=known,
      loc='outside lower center',
      ncols=len(known),
  )
  figures.plain_text(note)
  return drawn


def _bar(axis, place, mean, low, high, factor, color) -> Any:
  if mean is None:
    return None
  reach = None
  if low is not None:
    reach = [[(mean - low) * factor], [(high - mean) * factor]]
  return axis.errorbar(
      *([mean * factor], [place], None, reach),
      fmt='o',
      color=color,
      capsize=1.5,
      elinewidth=0.8,
  )


def curves(
    groups: Mapping[str, Sequence[pathlib.Path]],
    metric: str,
    baseline: str,
) -> Any:
  """Draws the metric of each variant over the epochs, beside the baseline.

  A panel each, as many bands would hide each other; what comes before half
  of the steps may lie outside. To be called within `figures.style`.

  Args:
    groups: directories of runs by variant, the baseline's among them.
    metric: of the evaluations.
    baseline: one of the variants.
  """
  name, (factor, _) = f'eval/{metric}', plot_curves.unit(metric)
  read = {n: plot_curves.read_group(n, paths) for n, paths in groups.items()}
  found = {n: plot_curves.curve_of(0, group, name) for n, group in read.items()}
  per_epoch = {group.steps_per_epoch for group in read.values()}
  over_steps = None in per_epoch
  others = [name for name in found if name != baseline] or [baseline]
  columns = min(4, len(others))
  rows = -(-len(others) // columns)
  width = min(figures.PAGE, max(1.7 * columns, figures.COLUMN))
  drawn = figures.new(width, 1.2 * rows + 0.7)
  options = dict(sharex=True, sharey=True, squeeze=False)
  axes = drawn.subplots(rows, columns, **options)
  shown, late, every = {}, [], []
  for number, axis in enumerate(axes.flat):
    if number >= len(others):
      axis.set_axis_off()
      continue
    axis.set_title(others[number])
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid()
    for key in dict.fromkeys((baseline, others[number])):
      one = found.get(key)
      if one is None:  # Its runs have no common step.
        continue
      color, what = ('C1', key) if key == baseline else ('C0', 'the variant')
      scale = 1 if over_steps else read[key].steps_per_epoch
      shown[what], ends = plot_curves.band(
          axis, one.steps / scale, one.values * factor, color=color
      )
      every.extend(ends)
      late += [end[one.steps >= one.steps[-1] / 2] for end in ends]
    if number + columns >= len(others):  # Nothing is below it.
      axis.set_xlabel('step' if over_steps else 'epoch')
      axis.tick_params(labelbottom=True)
    figures.plain_text(axis)
  label = plot_curves.label(metric)
  late, every = (np.concatenate([*ends, []]) for ends in (late, every))
  if (late := late[np.isfinite(late)]).size:
    low, high = late.min(), late.max()
    margin = 0.05 * (high - low) or 0.005 * factor
    axes[0, 0].set_ylim(low - margin, high + margin)
    if np.any((every < low - margin) | (every > high + margin)):
      label += ', cut'
  axes[0, 0].yaxis.get_major_formatter().set_useOffset(False)
  drawn.supylabel(label, size='medium')
  note = drawn.legend(
      handles=shown.values(),
      labels=[f'{what}, mean ± std' for what in shown],
      loc='outside lower center',
      ncols=2,
  )
  figures.plain_text(note)
  return drawn
