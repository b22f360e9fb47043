"""What the labels of a trained detector stand for."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from awconv_jax import errors
from awconv_jax.data import sources
from awconv_jax.tools import evaluate
from awconv_jax.train import rundir


def find(
    config: Any, num_classes: int, workdir: str
) -> tuple[Sequence[int], Sequence[str]]:
  """Returns ids and names of the categories that a run was trained on.

  The run itself says them; one that does not is asked for its data set, and
  where that is not to be had they are numbered from 1, which is printed.

  Args:
    config: of the run.
    num_classes: of its network.
    workdir: of the run; or a file of weights.

  Raises:
    InputError: the run's own list is damaged.
  """
  kept = _read(pathlib.Path(workdir) / rundir.CATEGORIES)
  if len(kept) == num_classes:
    return [row['id'] for row in kept], [row['name'] for row in kept]
  section = config.data
  try:
    source = sources.open_source(section.name, section.dir, section.eval_split)
    if source.num_classes == num_classes:
      return source.category_ids, source.class_names
    reason = f'{section.name} has {source.num_classes}'
  except errors.InputError as error:
    reason = str(error)
  print(f'the {num_classes} categories are numbered from 1: {reason}')
  numbers = range(1, num_classes + 1)
  names = evaluate.class_names(workdir) or ()
  if len(names) != num_classes:
    names = [str(number) for number in numbers]
  return numbers, names


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns what `rundir.write_classes` wrote; nothing if it did not."""
  if not path.is_file():
    return []
  try:
    return [
        {'id': int(row['id']), 'name': str(row['name'])}
        for row in json.loads(path.read_text())
    ]
  except (KeyError, TypeError, ValueError) as error:
    raise errors.InputError(
        f'{path} is no list of {{"id": 1, "name": "heron"}}; mend it, or '
        'remove it to take the categories from the data set'
    ) from error
