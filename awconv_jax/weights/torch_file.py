"""Reads what torch.save writes, without torch and without running its code.

A pickle holds the tree, with each tensor as (storage, offset, size, stride). In
a zip it is `data.pkl`, and `data/<key>` are the bytes of a storage; before
torch 1.6 it lay between two more pickles, and the storages behind. A pickle is
a program, of which only what builds trees is carried out here: what it names is
never called, but stands for records, and arrays are made afterwards, of what is
asked for. Nothing takes more memory or time than a file of that size can need.
"""

from collections.abc import Callable, Iterable
import io
import os
import pickle
import struct
from typing import Any, BinaryIO, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import one_line, some

# What a file begins with that torch before 1.6 wrote.
LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
# Of a pickle, which has some hundred bytes for each tensor.
MAX_PICKLE = 4 << 20
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
WRAPPINGS = ('state_dict', 'model', 'model_state_dict')


class _Storage(NamedTuple):
  key: str
  dtype: np.dtype


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]

  def over(self, data: bytes) -> np.ndarray:
    """Returns a view of a storage's bytes; ValueError if it reaches beyond."""
    dtype = self.storage.dtype
    strides = [step * dtype.itemsize for step in self.stride]
    offset = self.offset * dtype.itemsize
    return np.ndarray(self.size, dtype, data, offset, strides)


class _Named(NamedTuple):
  """A function or class that a pickle names, or what a call of it would make.

  The state is what the pickle would have made its attributes.
  """

  name: str
  state: Any = None


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_) -> _Tensor:
  axes = len(size) + len(stride)
  integers = axes < 99 and {*map(type, (offset, *size, *stride))} == {int}
  if not integers or not isinstance(storage, _Storage):
    raise ValueError('it has a tensor that is not made as torch makes them')
  return _Tensor(storage, offset, size, stride)


def _update(target: Any, items: Iterable[tuple[Any, Any]]) -> Any:
  """Sets items of a dict, and of nothing else; returns it."""
  if isinstance(target, dict):
    for key, value in items:
      # To hash tuples of tuples could take for ever, and large integers may all
      # have the same hash.
      name = isinstance(key, str | float | None)
      if not name and not (isinstance(key, int) and abs(key) < 1 << 60):
        raise ValueError('it has a dict by other keys than names')
      target[key] = value
  return target


def _ordered(items: Any = ()) -> dict[Any, Any]:
  made = _update({}, items)
  if items:
    items.clear()  # Once taken, they make no second dict as large.
  return made


# What some calls make; of others, the name stands for it. What follows the
# arguments that are named here is of the gradient.
CALLS = {
    'collections.OrderedDict': _ordered,
    'torch._utils._rebuild_tensor': _rebuild,
    'torch._utils._rebuild_tensor_v2': _rebuild,
    'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
}


_Python: Any = pickle._Unpickler


class _Unpickler(_Python):
  """Calls nothing: what is named is a record, and no record can be called.

  That of the library in C hashes any key of a dict, which this one lets check.
  """

  def __init__(self, file: BinaryIO):
    super().__init__(file, encoding='latin1')
    self.storages = {}

  def find_class(self, module: str, name: str) -> _Named:
    return _Named(f'{module[:99]}.{name[:99]}')

  def persistent_load(self, pid: Any) -> _Storage:
    _, kind, key, _, _, *view = pid
    if any(part is not None for part in view):  # Before torch 0.4.
      raise ValueError('it has storages within others')
    if not isinstance(key, str):
      raise ValueError('it has a storage without a name')
    dtype = np.dtype(DTYPES[kind.name.removeprefix('torch.')])
    return self.storages.setdefault(key, _Storage(key, dtype))

  def _reduce(self):
    arguments, function = self.stack.pop(), self.stack.pop()
    make = CALLS.get(function.name)
    self.append(make(*arguments) if make else function)

  def _build(self):
    state, target = self.stack.pop(), self.stack.pop()
    # What torch keeps beside a dict's items (`_metadata`) is dropped.
    named = isinstance(target, _Named)
    self.append(_Named(target.name, state) if named else target)

  def _set_items(self):
    items = self.pop_mark()
    _update(self.stack[-1], zip(items[::2], items[1::2], strict=True))

  def _set_item(self):
    value, key = self.stack.pop(), self.stack.pop()
    _update(self.stack[-1], [(key, value)])

  def _refuse(self):
    raise ValueError('it has sets or the like, which no weights need')

  dispatch = _Python.dispatch | {
      **dict.fromkeys(pickle.REDUCE + pickle.NEWOBJ, _reduce),
      **dict.fromkeys(pickle.BUILD, _build),
      **dict.fromkeys(pickle.SETITEM, _set_item),
      **dict.fromkeys(pickle.SETITEMS, _set_items),
      # These hash, or take memory for what is not there.
      **dict.fromkeys(pickle.EMPTY_SET + pickle.FROZENSET, _refuse),
      **dict.fromkeys(pickle.DICT + pickle.BYTEARRAY8, _refuse),
  }


def _load(file: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
  """Returns the tree of the pickle at a file's position, and its storages."""
  unpickler = _Unpickler(file)
  try:
    return unpickler.load(), unpickler.storages
  except EOFError as error:
    size = f'{MAX_PICKLE:,} bytes'
    raise ValueError(f'its tree is cut off, or has more than {size}') from error


def _tensors(
    tree: Any, entry: str | None, report: Callable[[str], object]
) -> dict[str, _Tensor]:
  """Returns the dict of weights in what a file holds; see `weights.read`."""
  if isinstance(tree, _Named):
    raise ValueError(f'it holds {tree.name}, which is not run')
  if not isinstance(tree, dict):
    raise ValueError('it holds no dict')
  keys = [entry] if entry else [k for k in WRAPPINGS if k in tree]
  if keys and isinstance(tree.get(keys[0]), dict):
    beside = one_line(some(str(k) for k in tree if k != keys[0]))
    without = f', without {beside}' if beside else ''
    report(f'took the weights under {keys[0]!r}{without}')
    tree, entry = tree[keys[0]], None
  if entry:
    raise ValueError(f'it has no dict {entry!r}, but {some(map(str, tree))}')
  others = {str(k): v for k, v in tree.items() if not isinstance(v, _Tensor)}
  for value in others.values():
    if isinstance(value, _Named):
      raise ValueError(f'it holds {value.name}, which is not run')
  if others or not tree:
    raise ValueError(f'not tensors: {some(others) or "(it is empty)"}')
  return {str(name): tensor for name, tensor in tree.items()}


def _read_zip(file: BinaryIO) -> tuple[Any, Callable[[str], Any], bool]:
  """Returns the tree, what reads a storage, and if that is little-endian."""
  size = file.seek(0, os.SEEK_END)
  archive = zipfile.ZipFile(file)
  if sum(member.file_size for member in archive.infolist()) > size:
    raise ValueError('it unpacks to more than it is; torch packs nothing')
  names = archive.namelist()
  # All of it lies in one folder, of any name.
  root = names[0].partition('/')[0] if names else ''
  order = f'{root}/byteorder'
  little = order not in names or archive.read(order) == b'little'
  with archive.open(f'{root}/data.pkl') as pickled:
    tree, _ = _load(io.BytesIO(pickled.read(MAX_PICKLE)))
  return tree, lambda key: archive.read(f'{root}/data/{key}'), little


def _read_legacy(file: BinaryIO) -> tuple[Any, Callable[[str], Any], bool]:
  """Returns the same of a file that torch before 1.6 wrote."""
  size, _ = file.seek(0, os.SEEK_END), file.seek(0)
  head = io.BytesIO(file.read(MAX_PICKLE))
  _, _, (system, _) = (_load(head) for _ in range(3))
  (tree, known), (keys, _), storages = _load(head), _load(head), {}
  file.seek(head.tell())
  for key in keys:
    (count,) = struct.unpack('<q', file.read(8))
    wanted = count * known[key].dtype.itemsize
    if not 0 <= wanted <= size - file.tell():
      raise ValueError('its storages are more than it has')
    storages[key] = file.read(wanted)
  return tree, storages.__getitem__, system['little_endian']


def read(
    path: str | os.PathLike,
    entry: str | None,
    report: Callable[[str], object],
) -> tuple[dict[str, np.ndarray], list[Any], dict[str, Any]]:
  """Returns the arrays of a state dict, or of the one in a checkpoint, by name.

  They are read-only, in torch's layout and dtypes (bfloat16 as ml_dtypes').
  With them come the dicts where scripts say what network they are of, and none
  of `origin.untold`.

  Args:
    path: of a file that torch.save wrote.
    entry: of a checkpoint, its key with the weights; None for a usual one.
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
    tensors = _tensors(tree, entry, report)
    # Tensors may share a storage.
    keys = {tensor.storage.key for tensor in tensors.values()}
    data = {key: storage(key) for key in keys}
  arrays = {name: t.over(data[t.storage.key]) for name, t in tensors.items()}
  said = [tree, tree.get('args'), tree.get('hyper_parameters')]
  said = [p.state if isinstance(p, _Named) else p for p in said]
  return arrays, said, {}
