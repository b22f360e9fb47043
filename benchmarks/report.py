"""What a run shows and leaves: rows as they come, a table, JSON, a picture."""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import tempfile
from typing import Any

import flax
import jax
import jaxlib

from awconv_jax import errors, text_table
from benchmarks import picture


def _driver() -> str:
  """Returns the version of NVIDIA's driver; '' where there is none."""
  if not shutil.which('nvidia-smi'):
    return ''
  query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
  found = subprocess.run(query, capture_output=True, text=True, check=False)
  return found.stdout.partition('\n')[0]


def environment() -> dict[str, str]:
  """Returns what the numbers depend on: device, processor and versions."""
  return {
      'device': jax.devices()[0].device_kind,
      'devices': str(jax.device_count()),
      'backend': jax.default_backend(),
      'platform': jax.devices()[0].client.platform_version,
      'driver': _driver(),
      'machine': platform.machine(),
      'cores': str(os.cpu_count()),
      'jax': jax.__version__,
      'jaxlib': jaxlib.__version__,
      'flax': flax.__version__,
      'python': platform.python_version(),
  }


def value_format(value: Any) -> str:
  """Returns a cell's text: three digits, '-' where there is no value."""
  if value is None:
    return '-'
  if isinstance(value, float):
    return f'{value:.3g}' if abs(value) < 100 else f'{value:,.0f}'
  return str(value)


def show(rows: Iterable[Any], shown: list[Any]) -> None:
  """Prints rows as they come, and then all of them as a table.

  Args:
    rows: dataclasses.
    shown: gets the rows; has those that came first if the others fail.
  """
  for row in rows:
    shown.append(row)
    print(*map(value_format, dataclasses.astuple(row)), flush=True)
  print(text_table.make(shown, value_format))


def check_output(output: str) -> None:
  """Raises InputError if no file can be written where `save` would."""
  folder = os.path.dirname(output) or '.'
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise errors.InputError(
        f'--output={output}: cannot write in the folder {folder}: '
        f'{error.strerror}; make it, or give another --output'
    ) from error


def save(
    rows: Sequence[Any],
    summary: Sequence[str],
    what: picture.Picture,
    output: str,
    **settings: Any,
) -> list[str]:
  """Writes the rows as JSON and, where matplotlib is installed, as a picture.

  Args:
    rows: dataclasses.
    summary: lines about them.
    what: to draw.
    output: path of the files, without a suffix.
    **settings: of the run, to be kept with the rows.

  Returns:
    The paths that were written.
  """
  saved = {
      'environment': environment(),
      'settings': settings,
      'rows': [dataclasses.asdict(row) for row in rows],
      'summary': list(summary),
  }
  with open(f'{output}.json', 'w') as file:
    json.dump(saved, file, indent=1)
  try:
    picture.draw(rows, what, f'{output}.png')
  except ImportError as error:
    print(f'no picture: {error}')
    return [f'{output}.json']
  return [f'{output}.json', f'{output}.png']
