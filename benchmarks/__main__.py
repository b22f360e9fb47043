"""Measures AW-convolution beside the plain one, reading and evaluation.

  python -m benchmarks check
  python -m benchmarks op --batches=8
  python -m benchmarks network --cpu_devices=8
  python -m benchmarks data
  python -m benchmarks evaluator
  python -m benchmarks static --chips=v5e,h100  # Without a device.

Times are medians of calls in turn, after results were compared. Rows go to the
screen, to <output>.json with what they depend on, and as bars to <output>.png,
or .pdf or .svg with --format.
"""

import argparse
from collections.abc import Callable, Sequence
import inspect
import json
import re
import sys
import textwrap
import typing
from typing import Any

import jax

from awconv_jax import command_line, errors, text_table
from awconv_jax.options import NonNegativeInt, OneOf, local_path
from benchmarks import check, data, evaluator, network, op, static, timing

# What measures, the column that it compares, and the one that is drawn.
SUBJECTS = {
    'check': (check.run, 'implementation', 'largest'),
    'op': (op.run, 'implementation', 'ratio'),
    'network': (network.run, 'variant', 'images_per_second'),
    'static': (static.run, 'implementation', 'ratio'),
    'data': (data.run, 'pipeline', 'images_per_second'),
    'evaluator': (evaluator.run, 'evaluator', 'images_per_second'),
}


def _reader(annotation: Any) -> Callable[[str], Any]:
  """Returns what reads the text of a flag, by the annotation of an option."""
  if typing.get_origin(annotation) is Sequence:
    one = _reader(*typing.get_args(annotation))
    return lambda text: [one(part) for part in text.split(',') if part]
  kind, *marks = typing.get_args(annotation) or (annotation,)

  def read(text):
    try:
      value = kind(text)
      for mark in marks:
        if isinstance(mark, OneOf):
          errors.look_up('name', value, dict.fromkeys(mark.names))
        elif not mark.ge <= value <= (mark.le or sys.float_info.max):
          raise ValueError(f'{text!r} must be from {mark.ge} to {mark.le}')
      return value
    except ValueError as error:
      raise argparse.ArgumentTypeError(error) from None

  return read


def _path(text: str) -> str:
  try:
    return local_path(text)
  except errors.InputError as error:
    raise argparse.ArgumentTypeError(str(error)) from None


def _texts(run: Any) -> dict[str, str]:
  """Returns what the docstring of a `run` says of its options."""
  _, _, text = str(inspect.getdoc(run)).partition('Args:\n')
  found = re.findall(r'^  (\w[\w, ]*): (.*(?:\n    .*)*)', text, re.M)
  return {
      name: ' '.join(line.split()).replace('%', '%%')
      for names, line in found
      for name in names.split(', ')
  }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Returns what the arguments say; the flags are the options of a `run`."""
  form = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
  parser = argparse.ArgumentParser('benchmarks', description=__doc__, **form)
  parser.error = command_line.fail
  subjects = parser.add_subparsers(dest='subject', required=True)
  form['allow_abbrev'] = False
  for name, (run, *_) in SUBJECTS.items():
    made = subjects.add_parser(name, description=inspect.getdoc(run), **form)
    made.error = command_line.fail
    texts = _texts(run)
    for option in inspect.signature(run).parameters.values():
      how = dict(type=_reader(option.annotation), default=option.default)
      if option.annotation is bool:
        how = dict(action='store_true')
      how['help'] = f'{texts[option.name]} (default: {option.default})'
      made.add_argument(f'--{option.name}', **how)
    made.add_argument(
        '--output', default='benchmark', type=_path, help='path, no suffix'
    )
    how = dict(choices=('png', 'pdf', 'svg'), default='png')
    made.add_argument('--format', **how, help='of the picture')
    how = dict(type=_reader(NonNegativeInt), default=0, help='0: as JAX finds')
    made.add_argument('--cpu_devices', **how)
  flags, unknown = parser.parse_known_args(arguments)
  if unknown:
    known = (f'--{name}' for name in vars(flags) if name != 'subject')
    raise errors.unknown_name('flag', unknown[0].partition('=')[0], known)
  return flags


def _format(value: Any) -> str:
  """Returns a cell's text: three digits, '-' where there is no value."""
  if isinstance(value, float):
    return f'{value:.3g}' if abs(value) < 100 else f'{value:,.0f}'
  return '-' if value is None else str(value)


# What the bars are of, with units.
UNITS = {
    'largest': 'largest difference from float64',
    'ratio': 'ratio to the plain convolution',
    'images_per_second': 'images/s',
}


def _plot(rows, bar, length, path) -> None:
  """Draws a bar for each row, grouped by the columns before `bar`.

  Those that are the same in all rows are named above.
  """
  from awconv_jax import figures

  columns = list(rows[0])[: list(rows[0]).index(bar)]
  same = [c for c in columns if len({str(row[c]) for row in rows}) == 1]
  varied = [column for column in columns if column not in same]
  groups: dict[str, list[Any]] = {}
  for row in rows:
    name = ', '.join(str(row[column]) for column in varied)
    groups.setdefault(name, []).append(row)
  bars = list(dict.fromkeys(str(row[bar]) for row in rows))
  title = [', '.join(f'{c} {rows[0][c]}' for c in same), ', '.join(varied)]
  title = '\n'.join(textwrap.fill(line, 60) for line in title if line)
  lines = len(rows) + len(groups) + len(bars) / 2 + title.count('\n')
  with figures.style():
    figure = figures.new(figures.COLUMN, 0.9 + 0.13 * lines)
    axis, place, ticks = figure.subplots(), 0.0, []
    for members in groups.values():
      ticks.append(place + (len(members) - 1) / 2)
      for row in members:
        value = row[length] or 0
        color = figures.COLORS[bars.index(str(row[bar])) % len(figures.COLORS)]
        axis.barh(place, value, 0.9, color=color, label=str(row[bar]))
        where = dict(va='center', size=5, xytext=(2, 0))
        where['textcoords'] = 'offset points'
        axis.annotate(_format(row[length]), (value, place), **where)
        place += 1
      place += 0.8
    axis.set_yticks(ticks, list(groups))
    axis.set_ylim(place - 0.8, -1)
    axis.margins(x=0.12)
    if length == 'ratio' and any(row[length] for row in rows):
      axis.set_xscale('log')
      figures.plain_ticks(axis.xaxis)
      axis.axvline(1, color='black', lw=0.6, zorder=0)
    axis.set_xlabel(UNITS[length])
    axis.grid(axis='x')
    figure.suptitle(title, fontsize=5.5, ha='left', x=0.02)
    handles, labels = axis.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    figure.legend(
        handles=entries.values(),
        labels=list(entries),
        title=bar,
        loc='outside lower center',
        ncols=2,
    )
    figures.save(figure, path)


def main(arguments: Sequence[str]) -> None:
  """Measures the subject that is named; shows, writes and draws its rows.

  Raises ReportedError: a flag does not fit, or something computes wrongly.
  """
  flags = _parse(arguments)
  if flags.cpu_devices or flags.subject == 'static':  # It needs no device.
    jax.config.update('jax_platforms', 'cpu')
  if flags.cpu_devices:
    jax.config.update('jax_num_cpu_devices', flags.cpu_devices)
  command_line.check_output(f'{flags.output}.json')
  environment = timing.environment()
  print(json.dumps(environment), flush=True)
  (run, bar, length), output = SUBJECTS[flags.subject], flags.output
  options = inspect.signature(run).parameters
  rows = []
  for row in run(**{name: getattr(flags, name) for name in options}):
    rows.append(row)
    print(*map(_format, row.values()), flush=True)
    # At once, so that what is measured is kept whatever comes later.
    kept = [vars(flags) | environment | row for row in rows]
    with open(f'{output}.json', 'w') as file:
      json.dump(kept, file, indent=1)
  if not rows:
    raise errors.ReportedError('nothing could be measured; see above')
  print(text_table.make(rows, _format))
  try:
    picture = f'{output}.{flags.format}'
    _plot(rows, bar, length, picture)
    print(f'written: {output}.json, {picture}')
  except ImportError as error:
    print(f'written: {output}.json; no plot: {error}')


if __name__ == '__main__':
  with command_line.reported():
    main(sys.argv[1:])
