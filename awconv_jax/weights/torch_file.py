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
    if (module, name) not in KNOWN:
      raise ValueError(f'it holds {module}.{name}, which is not run')
    return KNOWN[module, name]

  def persistent_load(self, key: tuple) -> tuple[str, np.dtype]:
    _, kind, name, _, _, *view = key
    if any(view):  # Of a part of another storage; before torch 0.4.
      raise ValueError('it has storages within others')
    self.dtypes[name] = np.dtype(DTYPES[kind])
    return name, self.dtypes[name]


def _tensors(tree: Any, report: Callable[[str], object]) -> dict[str, _Tensor]:
  """Returns the dict of weights in what a file holds."""
  if not isinstance(tree, Mapping):
    raise ValueError('it holds no dict')
  for key in WRAPPINGS:
    if isinstance(tree.get(key), Mapping):
      beside = ', '.join(str(k) for k in tree if k != key)
      without = f', without {beside}' if beside else ''
      report(f'took the weights under {key!r}{without}')
      return _tensors(tree[key], report)
  others = [str(k) for k, v in tree.items() if not isinstance(v, _Tensor)]
  if others or not tree:
    raise ValueError(f'not tensors: {", ".join(others) or "(it is empty)"}')
  return {str(name): tensor for name, tensor in tree.items()}


def _read_zip(file: BinaryIO) -> tuple[Any, Callable[[str], bytes], bool]:
  """Returns the tree, what reads a storage, and if that is little-endian."""
  archive = zipfile.ZipFile(file)
  names = archive.namelist()
  # All of it lies in one folder, of any name.
  root = names[0].partition('/')[0] if names else ''
  order = f'{root}/byteorder'
  little = order not in names or archive.read(order) == b'little'
  pickled = archive.read(f'{root}/data.pkl')
  tree = _Unpickler(io.BytesIO(pickled)).load()
  return tree, lambda key: archive.read(f'{root}/data/{key}'), little


def _read_legacy(file: BinaryIO) -> tuple[Any, Callable[[str], bytes], bool]:
  """Returns the same of a file that torch before 1.6 wrote."""
  _, _, system = (_Unpickler(file).load() for _ in range(3))
  unpickler = _Unpickler(file)
  tree, storages = unpickler.load(), {}
  for key in _Unpickler(file).load():
    (count,) = struct.unpack('<q', file.read(8))
    storages[key] = file.read(count * unpickler.dtypes[key].itemsize)
  return tree, storages.__getitem__, system['little_endian']


def read(
    path: str | os.PathLike, report: Callable[[str], object]
) -> dict[str, np.ndarray]:
  """Returns the arrays of a state dict, or of the one in a checkpoint, by name.

  They are read-only, in torch's layout and dtypes (bfloat16 as ml_dtypes').

  Args:
    path: of a file that torch.save wrote.
    report: called with one line for what was taken off around the weights.

  Raises:
    Exception: of any type and with one line, from zipfile, pickle or here: it
      is damaged, or holds more than tensors in dicts.
  """
  with open(path, 'rb') as file:
    legacy = file.read(len(LEGACY)) == LEGACY
    file.seek(0)
    tree, storage, little = (_read_legacy if legacy else _read_zip)(file)
    if not little:
      raise ValueError('its bytes are big-endian; save it elsewhere')
    tensors = _tensors(tree, report)
    # Tensors may share a storage.
    data = {key: storage(key) for key in {t.storage for t in tensors.values()}}
  return {name: t.over(data[t.storage]) for name, t in tensors.items()}
