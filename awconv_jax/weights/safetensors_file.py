"""Reads and writes .safetensors, https://github.com/huggingface/safetensors."""

from collections.abc import Callable, Mapping
import os
import pathlib

import numpy as np

from awconv_jax import errors


def read(
    path: str | os.PathLike, report: Callable[[str], object]
) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by name; there is nothing to `report`.

  Raises:
    InputError: it cannot be read, or is not of this format, or cut short.
  """
  import safetensors
  from safetensors import numpy as safetensors_numpy

  del report
  try:
    return safetensors_numpy.load_file(path)
  # The last is what the library says of 8-bit floats.
  except (OSError, safetensors.SafetensorError, AttributeError) as error:
    raise errors.InputError(
        f'{path} cannot be read as .safetensors: {error}; it may be cut short: '
        'fetch it again; or save it as float32'
    ) from error


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes contiguous arrays; the file is there whole or not at all.

  Raises:
    InputError: it cannot be written.
  """
  import safetensors
  from safetensors import numpy as safetensors_numpy

  path = pathlib.Path(path)
  temporary = path.with_name(f'{path.name}.tmp')
  try:
    # The metadata is what some readers want to see before they load torch's.
    safetensors_numpy.save_file(
        dict(arrays), temporary, metadata={'format': 'pt'}
    )
    temporary.replace(path)
  except (OSError, safetensors.SafetensorError) as error:
    temporary.unlink(missing_ok=True)
    raise errors.InputError(f'cannot write {path}: {error}') from error
