"""Weights in files, under the names and in the layout torch has for them.

  variables = weights.load('resnet50.pth', shapes)
  weights.save('resnet50.safetensors', variables)

Nothing of torch is needed, and no code in a file is run.
"""

from collections.abc import Callable
import os
import pathlib
from typing import Any

import numpy as np

from awconv_jax.errors import InputError, look_up
from awconv_jax.weights import names, safetensors_file, state_dict, torch_file
from awconv_jax.weights.names import in_aw_branch

__all__ = ['READERS', 'WRITERS', 'in_aw_branch', 'load', 'read', 'save']

# Torch's example writes model.pth.tar.
READERS = dict.fromkeys(('.pth', '.pt', '.bin', '.tar'), torch_file.read)
READERS['.safetensors'] = safetensors_file.read
WRITERS = {'.safetensors': safetensors_file.write}


def read(
    path: str | os.PathLike, *, report: Callable[[str], object] = print
) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by the names that torch has for them now.

  They are in torch's layout, of the file's dtypes.

  Args:
    path: a .safetensors file, or .pth, .pt, .bin or .tar of torch.save.
    report: called with one line for each change: a checkpoint's 'state_dict' or
      'model' is taken out, the prefix 'module.' off, former names renewed.

  Raises:
    InputError: the suffix is unknown, or the file not there, a directory,
      damaged, or holding more than arrays.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    raise InputError(
        f'{path} is a directory, want a file of weights; if that is a run, '
        f'convert it first: python -m awconv_jax.tools.convert --input={path} '
        '--output=x.safetensors'
    )
  if not path.is_file():
    raise InputError(f'there is no file and no run {path}')
  reader = look_up(f'format of {path}:', path.suffix, READERS)
  return names.renew(reader(path, report), report)


def load(
    path: str | os.PathLike,
    variables: Any,
    *,
    allow_missing: Callable[[str], bool] | None = None,
    report: Callable[[str], object] = print,
) -> Any:
  """Returns a network's variables with the values of a file.

  Args:
    path: as in `read`.
    variables: tree of arrays or shapes: 'params' and 'batch_stats'.
    allow_missing: as in `state_dict.from_state_dict`, which this returns. With
      `in_aw_branch` an AW network starts from the plain one's weights.
    report: as in `read`.

  Raises:
    InputError: as in `read` and `state_dict.from_state_dict`.
  """
  arrays = read(path, report=report)
  return state_dict.from_state_dict(
      arrays, variables, allow_missing=allow_missing, source=str(path)
  )


def save(path: str | os.PathLike, variables: Any) -> None:
  """Writes a network's variables for torch: names, layout, and our dtypes.

  Args:
    path: a .safetensors file; replaced if it is there.
    variables: tree of arrays: 'params' and 'batch_stats'.

  Raises:
    InputError: the suffix is another, or the file cannot be written.
  """
  suffix = pathlib.Path(path).suffix
  write = look_up(f'format of {path}:', suffix, WRITERS)
  write(path, state_dict.to_state_dict(variables))
