"""Measures AW-convolution beside the plain one, and reading, in one run.

  python -m benchmarks check
  python -m benchmarks op --batches=8
  python -m benchmarks network --cpu_devices=8
  python -m benchmarks data
  python -m benchmarks static --chips=v5e,h100  # Without a device.

Times are medians of calls in turn, after results were compared. Rows go to the
screen, to <output>.json with what they depend on, and as bars to <output>.png.
"""

import argparse
from collections.abc import Callable, Sequence
import inspect
import json
import re
import sys
import typing
from typing import Any

import jax

from awconv_jax import command_line, errors, text_table
from awconv_jax.options import NonNegativeInt, OneOf, local_path
from benchmarks import check, data, network, op, static, timing

# What measures, the column that it compares, and the one that is drawn.
SUBJECTS = {
    'check': (check.run, 'implementation', 'largest'),
    'op': (op.run, 'implementation', 'ratio'),
    'network': (network.run, 'variant', 'images_per_second'),
    'static': (static.run, 'implementation', 'ratio'),
    'data': (data.run, 'pipeline', 'images_per_second'),
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


def _plot(rows, bar, length, path) -> None:
  """Draws a bar for each row, which the columns up to `bar` name."""
  from matplotlib.figure import Figure

  named = list(rows[0])[: list(rows[0]).index(bar) + 1]
  labels = [' '.join(str(row[column]) for column in named) for row in rows]
  bars = list(dict.fromkeys(row[bar] for row in rows))
  colors = [f'C{bars.index(row[bar])}' for row in rows]
  figure = Figure(figsize=(8, 1 + len(rows) / 4), layout='constrained')
  axis = figure.subplots()
  lengths = [row[length] or 0 for row in rows]
  axis.barh(range(len(rows)), lengths, color=colors, tick_label=labels)
  axis.invert_yaxis()
  if length == 'ratio' and any(lengths):
    axis.set_xscale('log')
  axis.set(xlabel=length.replace('_', ' '), ylabel=', '.join(named))
  axis.grid(axis='x', alpha=0.3)
  figure.savefig(path, dpi=120)


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
    _plot(rows, bar, length, f'{output}.png')
    print(f'written: {output}.json, {output}.png')
  except ImportError as error:
    print(f'written: {output}.json; no plot: {error}')


if __name__ == '__main__':
  with command_line.reported():
    main(sys.argv[1:])
