"""Scalars on disk: `metrics.jsonl` and TensorBoard, without TensorFlow."""

from collections.abc import Mapping
import json
import os
import pathlib

from awconv_jax import errors


def read(path: str | os.PathLike) -> list[dict[str, float]]:
  """Returns the rows of a `metrics.jsonl`.

  Args:
    path: the file.

  Returns:
    One dict per row: 'step' and the scalars by name. A last row that a killed
    run left half-written is skipped.

  Raises:
    InputError: there is no such file, or a row in its midst is not JSON.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.InputError(f'{path} does not exist; is it a run that began?')
  rows = []
  lines = path.read_text().splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      if number < len(lines):
        raise errors.InputError(
            f'{path}, line {number} is not JSON: {line[:40]!r}; remove it'
        ) from error
  return rows


class MetricWriter:
  """Appends scalars to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`.

  Args:
    workdir: directory of the run.
    step: where the run stands. Rows after it, left by a run that was killed
      after its last checkpoint, are removed: they will be written again.
  """

  def __init__(self, workdir: str | os.PathLike, *, step: int):
    from tensorboardX import SummaryWriter  # Slow to import.

    workdir = pathlib.Path(workdir)
    self.path = workdir / 'metrics.jsonl'
    kept = []
    if self.path.exists():
      kept = [row for row in read(self.path) if row['step'] <= step]
    # Replaced in one go: a kill in here must not cost the rows already there.
    temporary = self.path.with_suffix('.tmp')
    temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    temporary.replace(self.path)
    self._file = self.path.open('a')
    self._board = SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=step + 1
    )

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes one row: the step and scalars such as 'train/loss'."""
    scalars = {name: float(value) for name, value in scalars.items()}
    self._file.write(json.dumps({'step': step} | scalars) + '\n')
    self._file.flush()
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)
    self._board.flush()  # A kill must not cost what was shown.

  def close(self) -> None:
    """Writes out what is buffered."""
    self._file.close()
    self._board.close()
