"""Writes a comparison: tables for people, papers and programs, and figures."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import csv
import io
import json
import math
import pathlib
import re
from typing import Any

from awconv_jax import figures, text_table
from awconv_jax.errors import some
from awconv_jax.tools import comparison, comparison_figures, plot_curves
from awconv_jax.train import rundir

_LATEX = {c: f'\\{c}' for c in '&%$#_{}'} | {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
}
_TEX = """\
{notes}
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
      if row['difference_low'] is not None:
        ends = row['difference_low'], row['difference_high']
        apart += f' [{", ".join(number(end, "+") for end in ends)}]'
      if row['pairs'] < row['n']:
        apart += f' ({row["pairs"]} pairs)'
    size, macs = row['parameters'], row['multiply_adds']
    time, ratio = row['step_ms'], row['step_ratio']
    ratio = ratio and f'{ratio:.2f}'
    if ratio and row['variant'] != baseline:
      ends = row['step_ratio_low'], row['step_ratio_high']
      ratio += f' [{", ".join(f"{end:.2f}" for end in ends)}]'
    return {
        'variant': row['variant'],
        'n': str(row['n']),
        f'{metric}{unit}': mean or '-',
        f'against {baseline}{" (points)" * bool(unit)}': apart or '-',
        'parameters': size and f'{size:,}',
        'MMACs': macs and f'{macs / 1e6:,.2f}',
        'step (ms)': time and f'{time:,.{0 if time >= 100 else 1}f}',
        f'x {baseline}': ratio,
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
  if count := sum(row['difference_low'] is not None for row in rows):
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
    lines = (f'{some(paths)}: {why}' for why, paths in out.items())
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
        f'{times["batch_size"]}; in brackets the quartiles of the ratio.'
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
    # A minus, of a number.
    return re.sub(r'(?<![\w.-])([+-])(?=\d)', r'$\1$', text)

  head = re.sub(r'(?<=& )x ', r'$\\times$ ', line(texts[0]))
  return _TEX.format(
      notes='\n'.join(f'% {note}' for note in said),
      columns='r' * (len(texts[0]) - 1),
      head=head,
      body='\n'.join(f'  {line(text.values())} \\\\' for text in texts),
  )


def plain_csv(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the numbers as they are: fractions, and not per cent."""
  file = io.StringIO()
  writer = csv.DictWriter(file, rows[0], lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


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
        'results': comparison_figures.bars(rows, variants, metric, baseline),
        'curves': comparison_figures.curves(groups, metric, baseline),
    }.items():
      for suffix in ('png', 'pdf'):
        yield figures.save(drawn, str(folder / f'{name}.{suffix}'))


def _facts(found: comparison.Outcome) -> dict[str, Any]:
  """Returns those that stand nowhere else; metrics may be no JSON, as NaN."""
  return {
      k: v for k, v in found.facts.items() if k not in ('config', 'metrics')
  }
