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
from collections.abc import Callable, Sequence
import inspect
import json
import math
import sys
import typing
from typing import Any, NoReturn

import jax
import numpy as np

from awconv_jax import command_line, errors, text_table
from awconv_jax.options import NonNegativeInt, OneOf
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
    try:
      value = kind(text)
      for mark in marks:
        if isinstance(mark, OneOf):
          errors.look_up('name', value, dict.fromkeys(mark.names))
        elif not mark.ge <= value < math.inf:
          raise ValueError(f'{text} must be at least {mark.ge}')
      return value
    except ValueError as error:
      raise argparse.ArgumentTypeError(error) from None

  return read


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Returns what the arguments say; a fault ends the program with one line.

  The flags of a subject are the options of its `run`, whose docstring says what
  they and the columns mean; and `--help` shows it.
  """
  form = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
  parser = _Parser('benchmarks', description=__doc__, **form)
  subjects = parser.add_subparsers(dest='subject', required=True)
  for name, subject in SUBJECTS.items():
    text = inspect.getdoc(subject.run)
    made = subjects.add_parser(
        name, description=text, allow_abbrev=False, **form
    )
    for option in inspect.signature(subject.run).parameters.values():
      how = dict(type=_reader(option.annotation), default=option.default)
      if option.annotation is bool:
        how = dict(action='store_true')
      text = f'default: {option.default}'
      made.add_argument(f'--{option.name}', help=text, **how)
    text = 'path of the files, no suffix'
    made.add_argument('--output', default='benchmark', help=text)
    text = 'run on so many CPU devices; 0 for what JAX finds'
    how = dict(type=_reader(NonNegativeInt), default=0)
    made.add_argument('--cpu_devices', help=text, **how)
  return parser.parse_args(arguments)


def _format(value: Any) -> str:
  """Returns a cell's text: three digits, '-' where there is no value."""
  if isinstance(value, float):
    return f'{value:.3g}' if abs(value) < 100 else f'{value:,.0f}'
  return '-' if value is None else str(value)


def _plot(rows, bar, height, path) -> None:
  """Draws a group of bars for each of what the columns before `bar` name."""
  from matplotlib.figure import Figure

  named = list(rows[0])[: list(rows[0]).index(bar)]
  groups = {}
  for row in rows:
    name = ' '.join(str(row[column]) for column in named)
    groups.setdefault(name, {})[row[bar]] = row[height]
  figure = Figure(figsize=(4 + len(groups), 5), layout='constrained')
  axis = figure.subplots()
  bars = list(dict.fromkeys(row[bar] for row in rows))
  width = 0.8 / len(bars)
  for i, label in enumerate(bars):
    heights = [group.get(label, math.nan) for group in groups.values()]
    shift = (i - (len(bars) - 1) / 2) * width
    axis.bar(np.arange(len(groups)) + shift, heights, width, label=label)
  axis.set_yscale('log' if height == 'ratio' else 'linear')
  axis.set(ylabel=height.replace('_', ' '), xlabel=', '.join(named))
  axis.set_xticks(range(len(groups)), groups, rotation=30, ha='right')
  axis.grid(axis='y', alpha=0.3)
  figure.legend(loc='outside right upper', title=bar)
  figure.savefig(path, dpi=120)


def main(arguments: Sequence[str]) -> None:
  """Measures the subject that is named; shows, writes and draws its rows."""
  flags = _parse(arguments)
  if flags.cpu_devices:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', flags.cpu_devices)
  command_line.check_output(flags.output)
  environment = timing.environment()
  print(json.dumps(environment), flush=True)
  subject, output = SUBJECTS[flags.subject], flags.output
  options = inspect.signature(subject.run).parameters
  rows = []
  for row in subject.run(**{name: getattr(flags, name) for name in options}):
    rows.append(row)
    print(*map(_format, row.values()), flush=True)
    # At once, so that what is measured is kept whatever comes later.
    kept = [vars(flags) | environment | row for row in rows]
    with open(f'{output}.json', 'w') as file:
      json.dump(kept, file, indent=1)
  print(text_table.make(rows, _format))
  try:
    _plot(rows, subject.BAR, subject.HEIGHT, f'{output}.png')
    print(f'written: {output}.json, {output}.png')
  except ImportError as error:
    print(f'written: {output}.json; no plot: {error}')


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except errors.ReportedError as error:
    command_line.fail(error)
