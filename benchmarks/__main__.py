"""Measures AW-convolution beside the plain one, and reading, in one run.

  python -m benchmarks op --batches=8
  python -m benchmarks network --cpu_devices=8
  python -m benchmarks data

op: every form at the shapes of ResNet-50. network: a training step. data:
images a second of the pipeline, beside tf.data where there is a TensorFlow.
What is compared is measured in turn in one run, after its results were
compared; times are medians. Rows go to the screen, to <output>.json with what
they depend on (device, versions, seed), and as bars to <output>.png.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import inspect
import json
import math
import re
import sys
import typing
from typing import Any, NoReturn

import jax

from awconv_jax import command_line, errors, text_table
from awconv_jax.options import Bound, NonNegativeInt
from benchmarks import data, network, op, timing

SUBJECTS = {'op': op, 'network': network, 'data': data}


class _Parser(argparse.ArgumentParser):
  """Says what is wrong in one line, as the other commands do."""

  def error(self, message: str) -> NoReturn:
    command_line.fail(message)


def _reader(annotation: Any) -> Callable[[str], Any]:
  """Returns what reads the text of a flag, by the annotation of an option."""
  if typing.get_origin(annotation) is Sequence:
    one = _reader(*typing.get_args(annotation))
    return lambda text: [one(part) for part in text.split(',') if part]
  kind, *marks = typing.get_args(annotation) or (annotation,)

  def read(text):
    value = fault = None
    try:
      value = kind(text)
      for mark in marks:
        if not isinstance(mark, Bound):
          errors.look_up('name', value, dict.fromkeys(mark.names))
        elif not mark.ge <= value < math.inf:
          fault = f'{text} must be at least {mark.ge}'
    except errors.InputError as error:
      fault = error
    except ValueError:
      fault = f'{text!r} is no number'
    if fault:
      raise argparse.ArgumentTypeError(fault)
    return value

  return read


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Returns what the arguments say; a fault ends the program with one line.

  The flags of a subject are the options of its `run`.
  """
  form = argparse.RawDescriptionHelpFormatter
  parser = _Parser('benchmarks', description=__doc__, formatter_class=form)
  subjects = parser.add_subparsers(dest='subject', required=True)
  for name, subject in SUBJECTS.items():
    made = subjects.add_parser(name, allow_abbrev=False)
    # Python 3.13 takes the indentation away by itself.
    text = inspect.cleandoc(subject.run.__doc__ or '')
    texts = re.findall(r'^  (\w+): (.*(?:\n    .*)*)', text, re.M)
    texts = {name: ' '.join(text.split()) for name, text in texts}
    for option in inspect.signature(subject.run).parameters.values():
      text = f'{texts[option.name]} Default: {option.default}.'
      how = dict(type=_reader(option.annotation), default=option.default)
      if option.annotation is bool:
        how = dict(action='store_true')
      made.add_argument(f'--{option.name}', help=text, **how)
    text = 'Path of the files, no suffix.'
    made.add_argument('--output', default='benchmark', help=text)
    text = 'Run on so many CPU devices; 0 for what JAX finds.'
    how = dict(type=_reader(NonNegativeInt), default=0)
    made.add_argument('--cpu_devices', help=text, **how)
  return parser.parse_args(arguments)


def _settle_device(flags: argparse.Namespace) -> None:
  """Sets the devices, and refuses what would be no measure on them."""
  if flags.cpu_devices:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', flags.cpu_devices)
  backend = jax.default_backend()
  for name in getattr(flags, 'implementations', ()):
    place = op.PLACES.get(name, backend)
    if place != backend:
      raise errors.InputError(
          f'--implementations: {name!r} is no measure on {backend}, it is for '
          f'{place}; leave it out'
      )


def _format(value: Any) -> str:
  """Returns a cell's text: three digits, '-' where there is no value."""
  if isinstance(value, float):
    return f'{value:.3g}' if abs(value) < 100 else f'{value:,.0f}'
  return '-' if value is None else str(value)


def plot(
    rows: Sequence[Mapping[str, Any]], bar: str, height: str, path: str
) -> None:
  """Draws bars into a PNG file, a group for each shape.

  Args:
    rows: what names a group stands before the column `bar`.
    bar: by which the bars of a group differ.
    height: what is drawn of each.
    path: of the file.
  """
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  named = list(rows[0])[: list(rows[0]).index(bar)]
  groups = {}
  for row in rows:
    name = ' '.join(str(row[column]) for column in named)
    groups.setdefault(name, {})[row[bar]] = row[height]
  bars = list(dict.fromkeys(row[bar] for row in rows))
  size = (4 + len(groups), 5)
  figure, axis = pyplot.subplots(figsize=size, layout='constrained')
  width = 0.8 / len(bars)
  for i, label in enumerate(bars):
    heights = [group.get(label, math.nan) for group in groups.values()]
    places = [p + (i - (len(bars) - 1) / 2) * width for p in range(len(groups))]
    axis.bar(places, heights, width, label=label)
  axis.set_yscale('log' if height == 'ratio' else 'linear')
  axis.set(ylabel=height.replace('_', ' '), xlabel=', '.join(named))
  axis.set_xticks(range(len(groups)), groups, rotation=30, ha='right')
  axis.grid(axis='y', alpha=0.3)
  figure.legend(loc='outside right upper', title=bar)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
  """Measures the subject that is named; shows, writes and draws its rows."""
  flags = _parse(arguments)
  _settle_device(flags)
  command_line.check_output(flags.output)
  environment = timing.environment()
  print(json.dumps(environment), flush=True)
  options = dict(vars(flags))
  subject, output = SUBJECTS[options.pop('subject')], options.pop('output')
  del options['cpu_devices']
  rows = []
  for row in subject.run(**options):
    rows.append(row)
    print(*map(_format, row.values()), flush=True)
    # At once, so that what is measured is kept whatever comes later.
    kept = [vars(flags) | environment | row for row in rows]
    with open(f'{output}.json', 'w') as file:
      json.dump(kept, file, indent=1)
  print(text_table.make(rows, _format))
  try:
    plot(rows, subject.BAR, subject.HEIGHT, f'{output}.png')
    print(f'written: {output}.json, {output}.png')
  except ImportError as error:
    print(f'written: {output}.json; no plot: {error}')


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except errors.ReportedError as error:
    command_line.fail(error)
