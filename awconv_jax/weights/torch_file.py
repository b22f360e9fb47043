"""Reads what torch.save writes, without torch and without running its code.

The file is a zip: `data.pkl` holds the tree, with each tensor as (storage,
offset, size, stride), and `data/<key>` the bytes of a storage. A pickle names
functions to be called; here only the few that rebuild tensors can be named,
and those stand for records. Arrays are made afterwards, of what is asked for.
"""

from collections.abc import Callable, Mapping
import io
import os
import pickle
from typing import Any, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

from awconv_jax import errors
from awconv_jax.weights import unwrap

# What a file begins with that torch before 1.6 wrote.
LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
DTYPES = {
    'DoubleStorage': np.float64,
    'FloatStorage': np.float32,
    'HalfStorage': np.float16,
    'BFloat16Storage': jnp.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}


class _Storage(NamedTuple):
  kind: str
  key: str


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]


class _Dict(dict):
  """What torch keeps beside a dict's items (`_metadata`) is dropped."""

  __slots__ = ()

  def __setstate__(self, state: object) -> None:
    del state


class _MakeDict:
  __slots__ = ()

  def __call__(self, *items):
    return _Dict(*items)


class _RebuildTensor:
  __slots__ = ()

  def __call__(self, storage, offset, size, stride, *autograd):
    return _Tensor(storage, offset, size, stride)


class _RebuildParameter:
  __slots__ = ()

  def __call__(self, tensor, *autograd):
    return tensor


# Everything that a pickle may name. A pickle can set attributes, too (BUILD),
# but these have none: no functions or classes, but instances without a dict,
# and plain strings for storages.
KNOWN = {
    ('collections', 'OrderedDict'): _MakeDict(),
    ('torch._utils', '_rebuild_tensor'): _RebuildTensor(),
    ('torch._utils', '_rebuild_tensor_v2'): _RebuildTensor(),
    ('torch._utils', '_rebuild_parameter'): _RebuildParameter(),
    **{('torch', kind): kind for kind in DTYPES},
}


class _Unpickler(pickle.Unpickler):
  """Builds dicts of records; refuses to name anything else."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in KNOWN:
      raise errors.InputError(
          f'it holds {module}.{name}, which is not run here; in torch, save '
          'model.state_dict() alone'
      )
    return KNOWN[module, name]

  def persistent_load(self, key: tuple) -> _Storage:
    _, kind, name, *_ = key
    return _Storage(kind, name)


def _array(tensor: _Tensor, data: bytes) -> np.ndarray:
  """Returns a view of a storage's bytes; ValueError if it reaches beyond."""
  dtype = np.dtype(DTYPES[tensor.storage.kind])
  strides = [step * dtype.itemsize for step in tensor.stride]
  offset = tensor.offset * dtype.itemsize
  return np.ndarray(tensor.size, dtype, data, offset, strides)


def _read(archive: zipfile.ZipFile, report) -> dict[str, np.ndarray]:
  """Returns the arrays of an archive by name; raises anything if damaged."""
  names = archive.namelist()
  # All of it lies in one folder, of any name.
  root = names[0].partition('/')[0] if names else ''
  order = f'{root}/byteorder'
  if order in names and archive.read(order) != b'little':
    raise errors.InputError('its bytes are big-endian; save it elsewhere')
  pickled = archive.read(f'{root}/data.pkl')
  found = _Unpickler(io.BytesIO(pickled)).load()
  if not isinstance(found, Mapping):
    raise errors.InputError(
        'it holds no dict; in torch, save model.state_dict()'
    )
  tensors = unwrap.take_inner(found, report)
  others = [str(k) for k, v in tensors.items() if not isinstance(v, _Tensor)]
  if others or not tensors:
    raise errors.InputError(
        f'not tensors: {", ".join(others) or "(it is empty)"}; in torch, save '
        'model.state_dict() alone'
    )
  data = {}  # Tensors may share a storage.
  for tensor in tensors.values():
    key = tensor.storage.key
    if key not in data:
      data[key] = archive.read(f'{root}/data/{key}')
  return {
      str(name): _array(tensor, data[tensor.storage.key])
      for name, tensor in tensors.items()
  }


def read(
    path: str | os.PathLike, report: Callable[[str], object]
) -> dict[str, np.ndarray]:
  """Returns the arrays of a state dict, or of the one in a checkpoint, by name.

  Args:
    path: of a file that torch.save wrote.
    report: called with one line for what was taken off around the weights.

  Returns:
    Read-only arrays in torch's layout and dtypes (bfloat16 as ml_dtypes').

  Raises:
    InputError: the file cannot be read, is damaged, of the format before torch
      1.6, or holds more than tensors in dicts.
  """
  try:
    with open(path, 'rb') as file:
      if file.read(len(LEGACY)) == LEGACY:
        raise errors.InputError(
            'it is of the format before torch 1.6; in torch, '
            'torch.save(torch.load(old, weights_only=True), new)'
        )
      with zipfile.ZipFile(file) as archive:
        return _read(archive, report)
  except errors.InputError as error:
    raise errors.InputError(f'{path} cannot be read: {error}') from error
  except MemoryError:
    raise
  except Exception as error:  # Whatever zipfile and pickle say of wrong bytes.
    reason = (str(error) or repr(error)).splitlines()[0][:200]
    raise errors.InputError(
        f'{path} cannot be read: {reason}; it may be cut short or no file of '
        'torch.save: fetch it again'
    ) from error
