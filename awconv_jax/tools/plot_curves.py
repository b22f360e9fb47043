r"""Draws the curves of one or more runs, fit for a paper.

  python -m awconv_jax.tools.plot_curves --output=curves.png runs/a runs/b
  python -m awconv_jax.tools.plot_curves --panels=top1 --width=3.3 \
      --output=top1.pdf runs/aw0 runs/aw1 runs/aw2 runs/plain0 runs/plain1

Runs with the same config but for the seed are one curve: their mean, in a band
of one standard deviation to either side; --nobands draws each. One that repeats
a seed is a curve of its own. A loss in training is drawn as it is, pale, and
smoothed.
"""

from collections.abc import Mapping, Sequence
import contextlib
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

from absl import flags
import numpy as np

from awconv_jax import command_line, errors, figures, places
from awconv_jax.options import any_path
from awconv_jax.train import logging, rundir, settings

# Labels of the panels, and the scalars that they show of each run.
PANELS = {
    # That of training is of augmented images, and of labels as they are there.
    'loss': ('loss', ('train/loss', 'eval/loss')),
    'top1': ('top-1 accuracy (%)', ('train/top1', 'eval/top1')),
    'AP': ('AP (%)', ('eval/AP',)),
    'AP50': ('AP50 (%)', ('eval/AP50',)),
    'mIoU': ('mIoU (%)', ('eval/mIoU', 'eval/majority_mIoU')),
    'learning_rate': ('learning rate', ('train/learning_rate',)),
    'speed': ('images/s', ('train/images_per_second',)),
    'mfu': ('model FLOP/s utilization (%)', ('train/mfu',)),
}
# Those that jump from step to step, and are smoothed over this share of a run.
_SMOOTHED, _SHARE = ('train/loss', 'train/top1'), 0.1
# Scalars that are shown in per cent begin so.
_FRACTIONS = 'top', 'AP', 'AR', 'mIoU', 'majority', 'accuracy', 'mfu'
_HEIGHT = 1.75  # Inches of a panel.


class Curve(NamedTuple):
  """One scalar of a group of runs: values [runs, points] at steps [points]."""

  group: int
  name: str
  steps: np.ndarray
  values: np.ndarray


class Group(NamedTuple):
  """Runs of one config: rows of each, a label, and the steps of an epoch."""

  label: str
  runs: list[list[dict[str, float]]]
  steps_per_epoch: float | None


def smoothed(values: np.ndarray) -> np.ndarray:
  """Returns centred moving averages over `_SHARE` of the values, [..., n].

  They are over fewer at the ends: as many before each value as after it, so
  that nothing is shifted.
  """
  count = values.shape[-1]
  radius = round(_SHARE * count / 2)
  sums = np.concatenate(
      [np.zeros((*values.shape[:-1], 1)), values.cumsum(-1)], -1
  )
  index = np.arange(count)
  reach = np.minimum(radius, np.minimum(index, count - 1 - index))
  first, last = index - reach, index + reach + 1
  return (sums[..., last] - sums[..., first]) / (last - first)


def plot(
    workdirs: Sequence[str] | Mapping[str, Sequence[str | os.PathLike]],
    output: str,
    *,
    panels: Sequence[str] = (),
    axis: str = 'epoch',
    width: float = figures.PAGE,
    bands: bool = True,
) -> str:
  """Draws `PANELS` over the epochs, and returns the path of the picture.

  Args:
    workdirs: directories of runs, each with a metrics.jsonl; or several by the
      label of their curve.
    output: path of the picture; its suffix gives the format.
    panels: of `PANELS`, or scalars such as 'eval/top1'; those of `PANELS` there
      is something of if none are named.
    axis: 'epoch', with the steps above where all runs have as many to an epoch,
      or 'step'.
    width: inches; each panel is at least as wide as a column.
    bands: whether runs that differ by the seed alone are one curve.

  Raises:
    InputError: a directory holds no metrics, or the picture cannot be written.
  """
  if not isinstance(workdirs, Mapping):
    workdirs = by_config(workdirs, bands)
  groups = [read_group(label, paths) for label, paths in workdirs.items()]
  chosen = {name: _panel(name) for name in panels or PANELS}
  curves = {
      panel: [
          curve
          for number, group in enumerate(groups)
          for name in names
          if (curve := curve_of(number, group, name))
      ]
      for panel, (_, names) in chosen.items()
  }
  drawn = [panel for panel in chosen if panels or curves[panel]]
  if not any(curves.values()):
    first = next(iter(workdirs.values()))[0]
    raise errors.InputError(
        f'{first}/metrics.jsonl has nothing of {", ".join(chosen)}'
    )
  with figures.style():
    panels = {name: chosen[name] for name in drawn}
    figure = _draw(panels, curves, groups, axis, width)
    return figures.save(figure, output)


def unit(scalar: str) -> tuple[int, str]:
  """Returns what a scalar is to be multiplied by, and then its unit."""
  return (100, ' (%)') if scalar.startswith(_FRACTIONS) else (1, '')


def label(metric: str) -> str:
  """Returns a metric of evaluations with its unit, for an axis."""
  return PANELS.get(metric, [metric + unit(metric)[1]])[0]


def _panel(name: str) -> tuple[str, tuple[str, ...]]:
  """Returns the label and the scalars of a panel."""
  split, _, scalar = name.partition('/')
  if scalar:
    return f'{split} {label(scalar)}', (name,)
  return errors.look_up('panel', name, PANELS)


def read_group(label: str, paths: Sequence[str | os.PathLike]) -> Group:
  """Reads the runs of a curve."""
  runs = []
  for path in paths:
    runs.append(logging.read(places.at(path) / 'metrics.jsonl'))
    if not runs[-1]:
      raise errors.InputError(f'{path}/metrics.jsonl has no rows yet')
  seeds = f' ({len(runs)} seeds)' * (len(runs) > 1)
  return Group(f'{label}{seeds}', runs, _steps_per_epoch(runs))


def by_config(
    workdirs: Sequence[str | os.PathLike], bands: bool = True
) -> dict[str, list[pathlib.Path]]:
  """Returns runs by their config but for the seed, or each alone, by a label.

  One that repeats a seed is alone, and that is told.
  """
  paths = {}  # However it is spelled, each counts once.
  for path in map(places.at, map(any_path, workdirs)):
    key = path if places.in_bucket(path) else os.path.realpath(path)
    paths.setdefault(key, path)
  paths = list(paths.values())
  labels, members, seeds = _labels(paths), {}, {}
  for number, path in enumerate(paths):
    config, seed = _config(path)
    key = bands and config or number
    if seed in seeds.setdefault(key, set()):
      print(f'{path} repeats seed {seed} of its config: alone')
      key = number
    seeds.setdefault(key, set()).add(seed)
    members.setdefault(key, []).append(number)
  found = {}
  for numbers in members.values():
    label = labels[numbers[0]]
    if len(numbers) > 1:
      common = os.path.commonprefix([labels[n] for n in numbers])
      name = common.rstrip('0123456789').rstrip('_-./ ')
      name = re.sub('[_/]s(eed)?$', '', name)
      name = name or re.sub(r'[_/]s(eed)?\d+$', '', label)
      label = label if name in found else name
    if label in found:  # As another group was shortened to it.
      label = os.fspath(paths[numbers[0]])
    found[label] = [paths[n] for n in numbers]
  return found


def _config(path: pathlib.Path) -> tuple[str, Any]:
  """Returns a run's config but for the seed, '' if unknown, and the seed."""
  try:
    config = dict(json.loads((path / rundir.CONFIG).read_text()))
  except (OSError, ValueError, TypeError):
    return '', None
  with contextlib.suppress(errors.InputError):  # Older ones lack what is new.
    config = settings.complete(config).to_dict()
  seed = config.pop('seed', None)
  return json.dumps(config, sort_keys=True), seed


def _steps_per_epoch(runs) -> float | None:
  rows = (row for rows in runs for row in rows)
  found = (
      row['step'] / row['train/epoch'] for row in rows if row.get('train/epoch')
  )
  return next(found, None)


def curve_of(number: int, group: Group, name: str) -> Curve | None:
  """Returns a scalar at the steps that all runs of the group have it of."""
  found = []
  for rows in group.runs:
    points = {row['step']: row[name] for row in rows if name in row}
    if 'eval/AP' in name:  # It is -1 of a split without any object.
      points = {step: value for step, value in points.items() if value != -1}
    found.append(points)
  steps = sorted(set.intersection(*map(set, found)))
  if not steps:
    return None
  values = [[points[step] for step in steps] for points in found]
  return Curve(number, name, np.array(steps, float), np.array(values, float))


def _draw(
    panels: Mapping[str, tuple[str, Sequence[str]]],
    curves: Mapping[str, Sequence[Curve]],
    groups: Sequence[Group],
    axis: str,
    width: float,
) -> Any:
  per_epoch = {group.steps_per_epoch for group in groups}
  if None in per_epoch:
    axis = 'step'
  names = list(panels)
  columns = min(max(int(width / figures.COLUMN), 1), len(names))
  rows = -(-len(names) // columns)
  # The legend, below all, has a line for each group and two kinds.
  legend = 0.15 * (len(groups) + 2)
  width = width if columns > 1 else min(width, figures.COLUMN)
  figure = figures.new(width, _HEIGHT * rows + legend)
  grid = figure.subplots(rows, columns, squeeze=False).flat
  entries: dict[str, Any] = {}
  for number, plot_axis in enumerate(grid):
    if number >= len(names):
      plot_axis.set_axis_off()
      continue
    name = names[number]
    title, scalars = panels[name]
    for curve in curves[name]:
      group = groups[curve.group]
      scale = group.steps_per_epoch if axis == 'epoch' else 1.0
      both = len({scalar.partition('/')[0] for scalar in scalars}) > 1
      entries |= _lines(plot_axis, curve, group, scale, both)
    if name == 'loss':
      plot_axis.set_yscale('log')
      figures.plain_ticks(plot_axis.yaxis)
    if name in ('speed', 'mfu'):
      plot_axis.set_ylim(bottom=0)
    plot_axis.set(xlabel=axis, ylabel=title)
    plot_axis.xaxis.get_major_locator().set_params(integer=True)
    plot_axis.grid()
    if axis == 'epoch' and len(per_epoch) == 1:
      (steps,) = per_epoch
      above = plot_axis.secondary_xaxis(
          'top', (lambda e, n=steps: e * n, lambda s, n=steps: s / n)
      )
      above.set_xlabel('step')
  # Where a smoothed one is explained, others of its kind look like that.
  shown = {
      label: line
      for label, line in entries.items()
      if f'{label}, smoothed' not in entries
  }
  found = figure.legend(
      handles=shown.values(),
      labels=list(shown),
      loc='outside lower center',
      ncols=1 if width <= figures.COLUMN else 2,
  )
  figures.plain_text(found)
  return figure


def _lines(
    axis: Any, curve: Curve, group: Group, scale: float, both: bool
) -> dict[str, Any]:
  """Draws a curve; returns what the legend has of it, by its label."""
  split, _, scalar = curve.name.partition('/')
  factor, _ = unit(scalar)
  where, values = curve.steps / scale, curve.values * factor
  color = f'C{curve.group}'
  label = f'{group.label}, {split}'
  found = {}
  smooth = curve.name in _SMOOTHED and round(_SHARE * len(where) / 2) > 0
  middle = values.mean(0)
  if scalar.startswith('majority_'):  # What needs no learning: one for all.
    line = axis.axhline(middle[-1], color='0.4', ls=':', label='majority class')
    return {line.get_label(): line}
  if smooth:
    options = dict(color=color, lw=0.6, alpha=0.35)
    (line,) = axis.plot(where, middle, **options, label=f'{label}, as it is')
    found[line.get_label()] = line
    values, label = smoothed(values), f'{label}, smoothed'
  options = dict(color=color, label=label + ', mean ± std' * (len(values) > 1))
  if split == 'eval':
    options |= dict(marker='o', linestyle='--' if both else '-')
  line, _ = band(axis, where, values, **options)
  return found | {line.get_label(): line}


def band(
    axis: Any, where: np.ndarray, values: np.ndarray, **options: Any
) -> tuple[Any, np.ndarray]:
  """Draws the mean of runs [runs, n], and one standard deviation around it.

  Args:
    axis: of Matplotlib.
    where: [n].
    values: [runs, n]; a single run has no deviation.
    **options: of the line.

  Returns:
    The line, and the lower and the upper end of the band, [2, n].
  """
  if len(where) == 1:  # A line of a single point is not to be seen.
    options.setdefault('marker', '.')
  middle = values.mean(0)
  (line,) = axis.plot(where, middle, **options)
  spread = values.std(0, ddof=1) if len(values) > 1 else 0.0
  ends = np.stack([middle - spread, middle + spread])
  if len(values) > 1:
    axis.fill_between(where, *ends, color=line.get_color(), alpha=0.2, lw=0)
  return line, ends


def _labels(paths: Sequence[pathlib.Path]) -> list[str]:
  """Returns the ends of paths that tell them apart."""
  parts = [path.absolute().parts for path in paths]
  for length in range(1, max(map(len, parts)) + 1):
    labels = ['/'.join(names[-length:]) for names in parts]
    if len(set(labels)) == len(set(parts)):
      break
  # Longer ones would leave no room for the curves.
  short = [n if len(n) < 40 else f'{n[:18]}...{n[-18:]}' for n in labels]
  labels = short if len(set(short)) == len(set(labels)) else labels
  # Matplotlib leaves out what begins with _.
  return [f'./{label}' if label[:1] == '_' else label for label in labels]


def main(workdirs: Sequence[str]) -> None:
  """Draws the runs that are named."""
  if not workdirs:
    raise errors.InputError('name at least one directory of a run')
  options = command_line.given('panels', 'axis', 'width', 'bands')
  print(plot(workdirs, flags.FLAGS.output, **options))


if __name__ == '__main__':
  text = 'Path of the picture: .png, .pdf, .svg.'
  command_line.define_path('output', text, 'curves.png')
  text = (
      f'Panels to draw, of {",".join(PANELS)}, or eval/top1; those there are.'
  )
  flags.DEFINE_list('panels', None, text)
  flags.DEFINE_enum(
      'axis', 'epoch', ['epoch', 'step'], 'What the curves are drawn over.'
  )
  text = f'Inches; a column of a paper has {figures.COLUMN}.'
  flags.DEFINE_float('width', figures.PAGE, text, 1.0, 100.0)
  text = 'Whether runs that differ by the seed alone are one curve.'
  flags.DEFINE_bool('bands', True, text)
  command_line.run(main, positional=True)
