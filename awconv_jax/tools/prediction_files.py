"""Files of what is found on images, written as it comes, whatever the number.

A record is `{'file': name, 'found': [{'label': 7, 'name': 'gull', ...}]}`, best
first, with 'truth' where it is known; or 'error' in the place of both.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import csv
import json
import pathlib
from typing import Any

from awconv_jax import places
from awconv_jax.results import Found, Prediction

Record = Mapping[str, Any]
Write = Callable[[Record], None]


def classes(prediction: Prediction, top: int) -> list[dict[str, Any]]:
  """Returns the most probable classes, for a record."""
  return [
      dict(
          label=label,
          name=prediction.classes[label],
          probability=_short(prediction.probabilities[label]),
      )
      for label in prediction.best(top)
  ]


def boxes(found: Found) -> list[dict[str, Any]]:
  """Returns objects for a record; x1, y1, x2 and y2 are in pixels."""
  rows = zip(found.labels, found.names, found.scores, found.boxes, strict=True)
  return [
      dict(label=int(label), name=name, score=_short(score))
      | dict(zip(('x1', 'y1', 'x2', 'y2'), map(_short, box), strict=True))
      for label, name, score, box in rows
  ]


def _short(value: Any) -> float:
  """Returns the six digits that are worth writing."""
  return float(f'{value:.6g}')


@contextlib.contextmanager
def _text(path: pathlib.Path, newline: str | None = None) -> Iterator[Any]:
  with places.for_writing(path, replaces=False) as local:
    # Names of files are any bytes.
    how = dict(encoding='utf-8', errors='surrogateescape', newline=newline)
    # What is stopped leaves this, and an older file as it was.
    partial = local.with_name(f'{local.name}.partial')
    with open(partial, 'w', **how) as file:
      yield file
    partial.replace(local)


@contextlib.contextmanager
def json_lines(path: pathlib.Path, columns: Sequence[str]) -> Iterator[Write]:
  """Gives what writes a record as one line."""
  del columns
  with _text(path) as file:
    yield lambda record: print(json.dumps(record), file=file, flush=True)


@contextlib.contextmanager
def csv_rows(path: pathlib.Path, columns: Sequence[str]) -> Iterator[Write]:
  """Gives what writes a record as a row for each that is found, from rank 1 on.

  One with nothing found, or an error, is one row.

  Args:
    path: of the file.
    columns: keys of what is found.
  """
  with _text(path, newline='') as file:
    header = ['file', 'rank', *columns, 'truth', 'error']
    table = csv.DictWriter(file, header)
    table.writeheader()

    def write(record):
      common = {k: v for k, v in record.items() if k != 'found'}
      found = enumerate(record.get('found', ()), 1)
      rows = [common | {'rank': n} | one for n, one in found]
      table.writerows(rows or [common])
      file.flush()

    yield write


@contextlib.contextmanager
def json_array(
    path: pathlib.Path, head: str = '[', tail: str = ']'
) -> Iterator[Callable[[Any], None]]:
  """Gives what writes an entry of an array, between a head and a tail."""
  with _text(path) as file:
    file.write(head)
    separator = ''

    def write(entry):
      nonlocal separator
      file.write(separator + json.dumps(entry))
      separator = ',\n'

    yield write
    file.write(tail)
