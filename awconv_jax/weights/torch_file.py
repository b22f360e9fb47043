"""Reads what torch.save writes, without torch and without running its code.

A pickle holds the tree, with each tensor as (storage, offset, size, stride). In
a zip it is `data.pkl`, and `data/<key>` are the bytes of a storage; before
torch 1.6 it lay between two more pickles, and the storages behind. A pickle
names functions to be called; here only the few that rebuild tensors can be
named, and those stand for records. Arrays are made afterwards, of what is asked
for.
"""

from collections.abc import Callable, Mapping
import io
import os
import pickle
import struct
from typing import Any, BinaryIO, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import InputError

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
# Where scripts keep the weights beside epoch, optimizer and the like.
WRAPPINGS = ('state_dict', 'model')
_ALONE = 'in torch, save model.state_dict() alone'


class _Tensor(NamedTuple):
  storage: str
  dtype: np.dtype
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]

  def over(self, data: bytes) -> np.ndarray:
    """Returns a view of a storage's bytes; ValueError if it reaches beyond."""
    width = self.dtype.itemsize
    strides = [step * width for step in self.stride]
    return np.ndarray(self.size, self.dtype, data, self.offset * width, strides)


class _Dict(dict):
  """What torch keeps beside a dict's items (`_metadata`) is dropped."""

  __slots__ = ()

  def __setstate__(self, state: object) -> None:
    del state


class _Function(NamedTuple):
  """A function that a pickle can call, and of which it can change nothing.

  A pickle can set attributes (BUILD), but a tuple has none to be set.
  """

  call: Callable[..., Any]

  def __call__(self, *arguments: Any) -> Any:
    return self.call(*arguments)


# Of (storage, offset, size, stride, ...); what follows is of the gradient.
_rebuild = _Function(lambda storage, *rest: _Tensor(*storage, *rest[:3]))
# Everything that a pickle may name; plain strings stand for kinds of storages.
KNOWN = {
    ('collections', 'OrderedDict'): _Function(lambda *items: _Dict(*items)),
    ('torch._utils', '_rebuild_tensor'): _rebuild,
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild,
    ('torch._utils', '_rebuild_parameter'): _Function(lambda t, *autograd: t),
    **{('torch', kind): kind for kind in DTYPES},
}


class _Unpickler(pickle.Unpickler):
  """Builds dicts of records; refuses to name anything else."""

  def __init__(self, file: BinaryIO):
    super().__init__(file)
    self.dtypes = {}  # Of the storages, by key.

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in KNOWN:
      return KNOWN[module, name]
    raise InputError(f'it holds {module}.{name}, which is not run; {_ALONE}')

  def persistent_load(self, key: tuple) -> tuple[str, np.dtype]:
    _, kind, name, _, _, *view = key
    if any(view):  # Of a part of another storage; before torch 0.4.
      raise InputError(f'it has storages within others; {_ALONE}')
    self.dtypes[name] = np.dtype(DTYPES[kind])
    return name, self.dtypes[name]


def _tensors(tree: Any, report: Callable[[str], object]) -> dict[str, _Tensor]:
  """Returns the dict of weights in what a file holds."""
  if not isinstance(tree, Mapping):
    raise InputError(f'it holds no dict; {_ALONE}')
  for key in WRAPPINGS:
    if isinstance(tree.get(key), Mapping):
      beside = ', '.join(str(k) for k in tree if k != key)
      without = f', without {beside}' if beside else ''
      report(f'took the weights under {key!r}{without}')
      return _tensors(tree[key], report)
  others = [str(k) for k, v in tree.items() if not isinstance(v, _Tensor)]
  if others or not tree:
    others = ', '.join(others) or '(it is empty)'
    raise InputError(f'not tensors: {others}; {_ALONE}')
  return {str(name): tensor for name, tensor in tree.items()}


def _read_zip(file: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
  """Returns the tree, and what reads a storage; raises anything if damaged."""
  archive = zipfile.ZipFile(file)
  names = archive.namelist()
  # All of it lies in one folder, of any name.
  root = names[0].partition('/')[0] if names else ''
  order = f'{root}/byteorder'
  if order in names and archive.read(order) != b'little':
    raise InputError('its bytes are big-endian; save it elsewhere')
  pickled = archive.read(f'{root}/data.pkl')
  tree = _Unpickler(io.BytesIO(pickled)).load()
  return tree, lambda key: archive.read(f'{root}/data/{key}')


def _read_legacy(file: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
  """Returns the same of a file that torch before 1.6 wrote."""
  _, _, system = (_Unpickler(file).load() for _ in range(3))
  if not system['little_endian']:
    raise InputError('its bytes are big-endian; save it elsewhere')
  unpickler = _Unpickler(file)
  tree, storages = unpickler.load(), {}
  for key in _Unpickler(file).load():
    (count,) = struct.unpack('<q', file.read(8))
    storages[key] = file.read(count * unpickler.dtypes[key].itemsize)
  return tree, storages.__getitem__


def read(
    path: str | os.PathLike, report: Callable[[str], object]
) -> dict[str, np.ndarray]:
  """Returns the arrays of a state dict, or of the one in a checkpoint, by name.

  They are read-only, in torch's layout and dtypes (bfloat16 as ml_dtypes').

  Args:
    path: of a file that torch.save wrote.
    report: called with one line for what was taken off around the weights.

  Raises:
    InputError: it cannot be read, or holds more than tensors in dicts.
  """
  try:
    with open(path, 'rb') as file:
      legacy = file.read(len(LEGACY)) == LEGACY
      file.seek(0)
      tree, storage = (_read_legacy if legacy else _read_zip)(file)
      tensors = _tensors(tree, report)
      data = {}  # Tensors may share a storage.
      for key in dict.fromkeys(t.storage for t in tensors.values()):
        data[key] = storage(key)
    return {name: t.over(data[t.storage]) for name, t in tensors.items()}
  except InputError as error:
    raise InputError(f'{path} cannot be read: {error}') from error
  except MemoryError:
    raise
  except Exception as error:  # Whatever zipfile and pickle say of wrong bytes.
    reason = (str(error) or repr(error)).splitlines()[0][:200]
    raise InputError(
        f'{path} cannot be read: {reason}; it may be cut short or no file of '
        'torch.save: fetch it again'
    ) from error
