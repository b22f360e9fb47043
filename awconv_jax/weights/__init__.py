"""Weights in files, under the names and in the layout torch has for them.

  variables = weights.load('resnet50.pth', shapes)
  weights.save('resnet50.safetensors', variables)

Nothing of torch is needed, and no code in a file is run.
"""

from collections.abc import Callable, Mapping
import json
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from awconv_jax import memory, places
from awconv_jax.errors import (
    InputError,
    first_line,
    look_up,
    of_the_system,
    unknown_name,
)
from awconv_jax.options import any_path
from awconv_jax.weights import (
    described,
    names,
    origin,
    state_dict,
    torch_file,
)
from awconv_jax.weights.described import describe
from awconv_jax.weights.located import locate, shipped
from awconv_jax.weights.names import in_aw_branch

__all__ = [
    'READERS',
    'WRITERS',
    'describe',
    'in_aw_branch',
    'load',
    'locate',
    'read',
    'save',
    'shipped',
]


def _read_safetensors(path, entry, report):
  import ml_collections
  import safetensors

  del report
  if entry:
    raise ValueError(f'it has no {entry!r}, nor any other dict in it')
  with safetensors.safe_open(path, 'numpy') as file:
    said = file.metadata() or {}
    arrays = {name: file.get_tensor(name) for name in file.keys()}
    told = described.parsed(said)
    described.check(told, arrays)
    if 'config' in told:
      told = origin.untold(ml_collections.ConfigDict(told['config']).model)
    return arrays, [said], told


# Torch's example writes model.pth.tar.
READERS = dict.fromkeys(('.pth', '.pt', '.bin', '.tar'), torch_file.read)
READERS['.safetensors'] = _read_safetensors
WRITERS = ('.safetensors',)


def read(
    path: str | os.PathLike,
    *,
    entry: str | None = None,
    network: Any = None,
    report: Callable[[str], object] = print,
) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by the names that torch has for them now.

  They are in torch's layout, of the file's dtypes.

  Args:
    path: a .safetensors file, or .pth, .pt, .bin or .tar of torch.save; or
      what else `locate` takes, but no run.
    entry: key of the weights in a checkpoint of torch.save, such as
      'state_dict_ema'; None for 'state_dict', 'model' or 'model_state_dict',
      where there is one.
    network: what the arrays are for, or its options. Names that tell of other
      values of options without arrays are then an error; see `origin`.
    report: called with one line for each change: a checkpoint's dict is taken
      out, a prefix such as 'module.' off, former names renewed.

  Raises:
    InputError: the suffix is unknown, or the file not there, a directory,
      damaged, holding more than arrays, or by its names of another network.
  """
  path = places.at(locate(path))
  if not path.is_file():
    kind = 'neither a file nor a run'
    if path.is_dir():
      kind = 'a directory; make a file of a run by awconv_jax.tools.convert'
    raise InputError(f'{path} is {kind}')
  reader = look_up(f'format of {path}:', path.suffix.lower(), READERS)
  try:
    if places.stamp(path)[0] > memory.limit():
      raise MemoryError
    with places.for_reading(path) as file:
      arrays, said, told = reader(file, entry, report)
  except MemoryError as error:
    raise InputError(f'{path} is more than the memory can hold') from error
  except Exception as error:  # Whatever the libraries say of wrong bytes.
    if of_the_system(error):
      raise
    reason = f'{path} cannot be read: {first_line(error)}'
    remedy = 'fetch it again, or save float tensors alone, as of state_dict()'
    raise InputError(f'{reason}; {remedy}') from error
  arrays = names.without_prefix(arrays, report)
  origin.check(path, said, told, arrays, network)
  return names.renew(arrays, report)


def load(
    path: str | os.PathLike,
    variables: Any,
    *,
    allow_missing: Callable[[str], bool] | None = None,
    **options: Any,
) -> Any:
  """Returns a network's variables with the values of a file.

  Args:
    path: as in `read`.
    variables, allow_missing: as in `state_dict.from_state_dict`, which this
      returns. With `in_aw_branch` an AW network starts from the plain one's
      weights.
    **options: entry, network and report, as in `read`.

  Raises:
    InputError: as in `read` and `state_dict.from_state_dict`.
  """
  arrays = read(path, **options)
  return state_dict.from_state_dict(
      arrays, variables, allow_missing=allow_missing, source=str(path)
  )


def save(
    path: str | os.PathLike,
    variables: Any,
    network: Any = None,
    *,
    description: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> None:
  """Writes a network's variables for torch: names, layout, and our dtypes.

  Args:
    path: a .safetensors file; replaced as a whole if it is there.
    variables: tree of arrays: 'params' and 'batch_stats'.
    network: of them, or its options: those without arrays are then written,
      too, and a network with others is not given these weights.
    description: in its place, all that loads the network; see `described`.
    dtype: of matrices and kernels, such as 'bfloat16', to halve the file; norms
      and biases stay as they are.

  Raises:
    InputError: the suffix is another, or the file cannot be written.
  """
  from safetensors import SafetensorError
  from safetensors import numpy as safetensors

  path = places.at(any_path(path))
  if path.suffix.lower() not in WRITERS:
    raise unknown_name(f'format of {path}:', path.suffix, WRITERS)
  arrays = state_dict.to_state_dict(variables)
  if dtype:
    kinds = {n: jnp.dtype(dtype) for n, a in arrays.items() if a.ndim > 1}
    arrays |= {name: arrays[name].astype(kinds[name]) for name in kinds}
  temporary = path.with_name(f'{path.name}.tmp')
  try:
    # The metadata is what some readers want to see before they load torch's.
    said = {'format': 'pt'}
    told = origin.untold(network) if network is not None else None
    if description is not None:
      told = described.sealed(description, arrays)
    if told is not None:
      said[described.KEY] = json.dumps(told, indent=2)
    if places.in_bucket(path):
      with places.for_writing(path) as file:
        safetensors.save_file(arrays, file, metadata=said)
      return
    safetensors.save_file(arrays, temporary, metadata=said)
    # As readable as its folder; safetensors keeps it to the user.
    temporary.chmod(path.parent.stat().st_mode & 0o666)
    temporary.replace(path)
  except (OSError, SafetensorError) as error:
    if not places.in_bucket(path) and temporary.exists():
      temporary.unlink()
    raise InputError(f'cannot write {path}: {error}') from error
