"""Writes a comparison: tables for people, papers and programs, and a figure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import csv
import io
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

from awconv_jax import figures, text_table
from awconv_jax.tools import comparison, plot_curves
from awconv_jax.train import rundir

_LATEX = {c: f'\\{c}' for c in '&%$#_{}'} | {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
}
_TEX = """\
% {note}
\\begin{{tabular}}{{l{columns}}}
  \\toprule
  {head} \\\\
  \\midrule
{body}
  \\bottomrule
\\end{{tabular}}
"""


def cells(
    rows: Sequence[Mapping[str, Any]], metric: str, baseline: str
) -> list[dict[str, str | None]]:
  """Returns the rows of `comparison.table` as text, of the metric in its unit.

  A column without any value is left out.
  """
  factor, unit = plot_curves.unit(metric)

  def number(value, sign=''):
    return f'{value * factor:{sign}.{2 if factor > 1 else 4}f}'

  def one(row):
    mean = apart = None
    if row['n']:
      mean = number(row['mean'])
      mean += f' ± {number(row["std"])}' if row['n'] > 1 else ''
    if row['pairs']:
      apart = number(row['difference'], '+')
      if row['pairs'] > 1:
        ends = row['difference_low'], row['difference_high']
        apart += f' [{", ".join(number(end, "+") for end in ends)}]'
      if row['pairs'] < row['n']:
        apart += f' ({row["pairs"]} pairs)'
    size, macs = row['parameters'], row['multiply_adds']
    time, ratio = row['step_ms'], row['step_ratio']
    return {
        'variant': row['variant'],
        'n': str(row['n']),
        f'{metric}{unit}': mean or '-',
        f'against {baseline}{" (points)" * bool(unit)}': apart or '-',
        'parameters': size and f'{size:,}',
        'MMACs': macs and f'{macs / 1e6:,.2f}',
        'step (ms)': time and f'{time:,.{0 if time >= 100 else 1}f}',
        f'x {baseline}': ratio and f'{ratio:.2f}',
    }

  texts = [one(row) for row in rows]
  there = [name for name in texts[0] if any(text[name] for text in texts)]
  return [{name: text[name] or '-' for name in there} for text in texts]


def notes(
    rows: Sequence[Mapping[str, Any]],
    variants: Mapping[str, Sequence[comparison.Outcome]],
    metric: str,
    baseline: str,
    times: Mapping[str, Any] | None = None,
) -> list[str]:
  """Returns what has to be said beside the rows, a sentence or two each."""
  found = [
      f'{metric} of the last evaluation of each run, not of its best: mean ± '
      'standard deviation (n - 1) over n seeds.'
  ]
  if any(row['pairs'] for row in rows):
    found.append(
        f'Against {baseline}: the mean difference over the seeds that both '
        'have, pair by pair.'
    )
  if count := sum((row['pairs'] or 0) > 1 for row in rows):
    found.append(
        f"In brackets: its {comparison.LEVEL:.0%} interval of Student's t"
        + f'; none of the {count} is widened for their number.' * (count > 1)
        + '.' * (count == 1)
    )
  every = [one for outcomes in variants.values() for one in outcomes]
  out = {}
  for one in every:
    if one.value is None:
      out.setdefault(one.why, []).append(one.path)
  if out:
    count = sum(map(len, out.values()))
    lines = (f'{", ".join(paths)}: {why}' for why, paths in out.items())
    found.append(f'Not counted, {count} of {len(every)}: {"; ".join(lines)}.')
  counted = [one for one in every if one.value is not None]
  unknown = [one.path for one in counted if not one.facts]
  if unknown:
    found.append(
        f'Without {rundir.FINISHED}, so that it is not known whether they came '
        f'to their end: {", ".join(unknown)}.'
    )
  makers = Counter(_makers(one.facts) for one in counted)
  for maker, count in makers.most_common():
    found.append(f'{count} run{"s" * (count > 1)} by {maker}.')
  if times and times['variants']:
    found.append(
        f'Steps: medians over turns on {_place(times["made_by"])}, batches of '
        f'{times["batch_size"]}.'
    )
  return found


def _makers(facts: Mapping[str, Any]) -> str:
  """Returns what made a run, start by start where there were several."""
  if not facts:
    return 'what is not recorded'
  host = facts['host']
  where = f' ({host["cores"]} cores, {host["platform"]})'
  return ', then '.join(_place(start) for start in facts['starts']) + where


def _place(start: Mapping[str, Any]) -> str:
  whole, dirty, _ = (start['commit'] or 'unknown').partition('-')
  commit = f'{whole[:12]}{dirty and "-dirty"}'
  several = f'{start["devices"]} x ' * (start['devices'] > 1)
  return (
      f'commit {commit} (code {start["code"]}) on {several}{start["device"]}, '
      f'jax {start["jax"]}, Python {start["python"]}'
  )


def markdown(
    texts: Sequence[Mapping[str, str]], said: Sequence[str], title: str
) -> str:
  """Returns the table with its notes."""
  lines = '\n'.join(f'- {note}' for note in said)
  return f'# {title}\n\n{text_table.make(texts, str)}\n\n{lines}\n'


def latex(texts: Sequence[Mapping[str, str]], said: Sequence[str]) -> str:
  """Returns a table of booktabs."""

  def line(words):
    return ' & '.join(map(escaped, words))

  def escaped(text):
    text = ''.join(_LATEX.get(c, c) for c in text).replace('±', r'$\pm$')
    text = re.sub(r'^x ', r'$\\times$ ', text)
    # A minus, of a number.
    return re.sub(r'(?<![\w.-])([+-])(?=\d)', r'$\1$', text)

  return _TEX.format(
      note=said[0],
      columns='r' * (len(texts[0]) - 1),
      head=line(texts[0]),
      body='\n'.join(f'  {line(text.values())} \\\\' for text in texts),
  )


def plain_csv(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the numbers as they are: fractions, and not per cent."""
  file = io.StringIO()
  writer = csv.DictWriter(file, rows[0], lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def figure(
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
  shown, late = {}, []
  for number, axis in enumerate(axes.flat):
    if number >= len(others):
      axis.set_axis_off()
      continue
    axis.set_title(others[number])
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
      late += [end[one.steps >= one.steps[-1] / 2] for end in ends]
    if number + columns >= len(others):  # Nothing is below it.
      axis.set_xlabel('step' if over_steps else 'epoch')
      axis.tick_params(labelbottom=True)
    figures.plain_text(axis)
  late = np.concatenate([*late, []])
  if (late := late[np.isfinite(late)]).size:
    low, high = late.min(), late.max()
    margin = 0.05 * (high - low) or 0.005 * factor
    axes[0, 0].set_ylim(low - margin, high + margin)
  axes[0, 0].yaxis.get_major_formatter().set_useOffset(False)
  drawn.supylabel(plot_curves.label(metric), size='medium')
  note = drawn.legend(
      handles=shown.values(),
      labels=[f'{what}, mean ± std' for what in shown],
      loc='outside lower center',
      ncols=2,
  )
  figures.plain_text(note)
  return drawn


def write(
    folder: pathlib.Path,
    variants: Mapping[str, Sequence[comparison.Outcome]],
    metric: str,
    baseline: str,
    *,
    title: str,
    times: Mapping[str, Any] | None = None,
    by_mean: bool = False,
) -> Iterator[str]:
  """Writes results.{md,csv,tex,json} and figures; yields where they are.

  Args:
    folder: that gets them.
    variants: outcomes by name, with paths from there on, or whole ones.
    metric: of them.
    baseline: one of the names.
    title: of the table.
    times: see `step_times`.
    by_mean: whether the best is the first, or all are as they were given.
  """
  measured = times and times['variants']
  rows = comparison.table(variants, baseline, measured)
  if by_mean:
    sign = 1 if metric.startswith('loss') else -1
    rows.sort(key=lambda row: sign * row['mean'] if row['n'] else math.inf)
  texts = cells(rows, metric, baseline)
  said = notes(rows, variants, metric, baseline, times)
  told = dict(
      title=title,
      metric=metric,
      baseline=baseline,
      level=comparison.LEVEL,
      rows=rows,
      notes=said,
      runs=[
          dict(variant=name, **{**o._asdict(), 'facts': _facts(o)})
          for name, outcomes in variants.items()
          for o in outcomes
      ],
      # But for the seed they are the same for all runs of a variant.
      configs={
          name: next((o.facts['config'] for o in found if o.facts), None)
          for name, found in variants.items()
      },
      times=times,
  )
  for suffix, text in {
      'md': markdown(texts, said, title),
      'csv': plain_csv(rows),
      'tex': latex(texts, said),
      'json': json.dumps(told, indent=1, allow_nan=False) + '\n',
  }.items():
    path = folder / f'results.{suffix}'
    rundir.write(path, text)
    yield str(path)
  groups = {}
  for name in (row['variant'] for row in rows if row['n']):
    # A run whose rows were lost counts by its finished.json, but has no curve.
    found = [o for o in variants[name] if o.value is not None and o.step]
    if found:
      groups[name] = [folder / one.path for one in found]
  with figures.style():
    for name, drawn in {
        'results': figure(rows, variants, metric, baseline),
        'curves': curves(groups, metric, baseline),
    }.items():
      for suffix in ('png', 'pdf'):
        yield figures.save(drawn, str(folder / f'{name}.{suffix}'))


def _facts(found: comparison.Outcome) -> dict[str, Any]:
  """Returns those that stand nowhere else; metrics may be no JSON, as NaN."""
  return {
      k: v for k, v in found.facts.items() if k not in ('config', 'metrics')
  }
