"""Reads what torch.save writes, without torch and without running its code.

A pickle holds the tree, with each tensor as (storage, offset, size, stride). In
a zip it is `data.pkl`, and `data/<key>` are the bytes of a storage; before
torch 1.6 it lay between two more pickles, and the storages behind. A pickle is
a program, of which only what builds trees is carried out here: functions that
it names are not called, but stand for records, and arrays are made afterwards,
of what is asked for. Nothing takes more memory or time than a file of that size
can need.
"""

from collections.abc import Callable, Iterable, Mapping
import io
import os
import pickletools
import struct
from typing import Any, BinaryIO, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import one_line

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
# Where scripts keep the weights beside epoch, optimizer and the like; and where
# the name of the network.
WRAPPINGS = ('state_dict', 'model', 'model_state_dict')
NETWORK = ('arch', 'architecture', 'model', 'model_name')


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


# Opcodes of a pickle that push a new value, and such as push their argument.
CONSTANTS = dict(
    NONE=lambda: None, NEWTRUE=lambda: True, NEWFALSE=lambda: False
)
CONSTANTS |= dict(EMPTY_DICT=dict, EMPTY_LIST=list, EMPTY_TUPLE=tuple)
PLAIN = (
    'BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE'.split()
)
PLAIN += ['BINSTRING', 'SHORT_BINSTRING']  # Of Python 2.


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
      # The hash of tuples of tuples could take for ever.
      if not isinstance(key, str | int | float | None):
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


def _load(file: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
  """Returns the tree of the pickle at a file's position, and its storages."""
  stack, marks, memo, storages = [], [], {}, {}

  def pop(count=None):
    """Takes so many of the last values, or those since the last mark."""
    first = marks.pop() if count is None else len(stack) - count
    if not 0 <= first <= len(stack):
      raise ValueError('its pickle takes more than it made')
    taken = stack[first:]
    del stack[first:]
    return taken

  start = file.tell()
  for opcode, argument, position in pickletools.genops(file):
    if (position or 0) - start > MAX_PICKLE:
      raise ValueError(f'its tree takes more than {MAX_PICKLE:,} bytes')
    match opcode.name:
      case 'PROTO' | 'FRAME' | 'STOP':
        pass
      case 'MARK':
        marks.append(len(stack))
      case name if name in CONSTANTS:
        stack.append(CONSTANTS[name]())
      case name if name in PLAIN:
        stack.append(argument)
      case 'TUPLE':
        stack.append(tuple(pop()))
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3' as name:
        stack.append(tuple(pop(int(name[-1]))))
      case 'APPEND' | 'APPENDS' as name:
        values = pop(1 if name == 'APPEND' else None)
        if isinstance(stack[-1], list):
          stack[-1] += values
      case 'SETITEM' | 'SETITEMS' as name:
        values = pop(2 if name == 'SETITEM' else None)
        _update(stack[-1], zip(values[::2], values[1::2], strict=True))
      case 'BINPUT' | 'LONG_BINPUT' | 'MEMOIZE':
        memo[len(memo) if argument is None else argument] = stack[-1]
      case 'BINGET' | 'LONG_BINGET':
        stack.append(memo[argument])
      case 'GLOBAL':
        stack.append(_Named(str(argument).replace(' ', '.')))
      case 'STACK_GLOBAL':
        stack.append(_Named('.'.join(part[:99] for part in pop(2))))
      case 'REDUCE' | 'NEWOBJ':
        function, arguments = pop(2)
        make = CALLS.get(function.name)
        stack.append(make(*arguments) if make else function)
      case 'BUILD':
        target, state = pop(2)
        # What torch keeps beside a dict's items (`_metadata`) is dropped.
        named = isinstance(target, _Named)
        stack.append(_Named(target.name, state) if named else target)
      case 'BINPERSID':
        _, kind, key, _, _, *view = stack.pop()
        if any(part is not None for part in view):  # Before torch 0.4.
          raise ValueError('it has storages within others')
        dtype = np.dtype(DTYPES[kind.name.removeprefix('torch.')])
        if not isinstance(key, str):
          raise ValueError('it has a storage without a name')
        storages[key] = _Storage(key, dtype)
        stack.append(storages[key])
      case name:
        raise ValueError(f'it has the opcode {name}, which no weights need')
  return stack.pop(), storages


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
    beside = one_line(', '.join(str(k) for k in tree if k != keys[0]))
    without = f', without {beside}' if beside else ''
    report(f'took the weights under {keys[0]!r}{without}')
    tree, entry = tree[keys[0]], None
  if entry:
    raise ValueError(
        f'it has no dict {entry!r}, but {", ".join(map(str, tree))}'
    )
  others = {str(k): v for k, v in tree.items() if not isinstance(v, _Tensor)}
  for value in others.values():
    if isinstance(value, _Named):
      raise ValueError(f'it holds {value.name}, which is not run')
  if others or not tree:
    raise ValueError(f'not tensors: {", ".join(others) or "(it is empty)"}')
  return {str(name): tensor for name, tensor in tree.items()}


def _said(tree: Any) -> dict[str, str]:
  """Returns the names of networks that a checkpoint has beside the weights."""
  found = {}
  for part in (*map(tree.get, ('args', 'hyper_parameters')), tree):
    part = part.state if isinstance(part, _Named) else part
    if isinstance(part, Mapping):
      found |= {k: part[k] for k in NETWORK if isinstance(part.get(k), str)}
      if isinstance(changed := part.get('model_kwargs'), dict):
        found |= {str(k): f'{k}=' for k in changed}
  return found


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
  tree, _ = _load(io.BytesIO(archive.read(f'{root}/data.pkl')))
  return tree, lambda key: archive.read(f'{root}/data/{key}'), little


def _read_legacy(file: BinaryIO) -> tuple[Any, Callable[[str], Any], bool]:
  """Returns the same of a file that torch before 1.6 wrote."""
  # Not from the file, of which a wrong length would take any memory.
  stream = io.BytesIO(file.read())
  _, _, (system, _) = (_load(stream) for _ in range(3))
  (tree, known), (keys, _), storages = _load(stream), _load(stream), {}
  for key in keys:
    (count,) = struct.unpack('<q', stream.read(8))
    start = stream.tell()
    size = count * known[key].dtype.itemsize
    if not 0 <= size <= len(stream.getbuffer()) - start:
      raise ValueError('its storages are more than it has')
    storages[key] = stream.getbuffer()[start : start + size]
    stream.seek(start + size)
  return tree, storages.__getitem__, system['little_endian']


def read(
    path: str | os.PathLike,
    entry: str | None,
    report: Callable[[str], object],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the arrays of a state dict, or of the one in a checkpoint, by name.

  They are read-only, in torch's layout and dtypes (bfloat16 as ml_dtypes').
  With them come the names of networks that stand beside them.

  Args:
    path: of a file that torch.save wrote.
    entry: of a checkpoint, its key with the weights; None for a usual one.
    report: called with one line for what was taken off around the weights.

  Raises:
    Exception: of any type and with one line, from zipfile, pickletools or here:
      it is damaged, or holds more than tensors in dicts.
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
  return arrays, _said(tree)
