"""Writes files as torch.save does, and as it did before torch 1.6.

Opcode by opcode, since what the pickles name is not installed here.
"""

from collections import namedtuple
import pickle
import struct
import zipfile

import numpy as np

KINDS = dict(float64='Double', float32='Float', float16='Half')
KINDS |= dict(bfloat16='BFloat16', int64='Long', uint8='Byte', bool='Bool')
# A function or class; a call of it.
Global = namedtuple('Global', 'module name')
Call = namedtuple('Call', 'function arguments')
# Bytes in a member of their own, and a tensor over them; strides are elements.
Storage = namedtuple('Storage', 'array')
View = namedtuple('View', 'storage offset size stride')
# Sets an object's state, or its items.
Build = namedtuple('Build', 'target state')
SetItems = namedtuple('SetItems', 'target items')
ORDERED_DICT = Global('collections', 'OrderedDict')


class Writer:
  """Pickles a tree, and keeps its storages."""

  def __init__(self, legacy=False):
    self.storages = []
    self.legacy = legacy  # Names of storages end with a view, then.

  def emit(self, value):
    """Returns the opcodes that leave a value on the stack."""
    return EMIT[type(value)](self, value)

  def _storage(self, storage):
    if not any(storage is known for known in self.storages):
      self.storages.append(storage)
    key = next(i for i, s in enumerate(self.storages) if s is storage)
    kind = Global('torch', KINDS[storage.array.dtype.name] + 'Storage')
    name = ('storage', kind, str(key), 'cpu', storage.array.size)
    name += (None,) * self.legacy
    return self.emit(name) + pickle.BINPERSID

  def _array(self, array):
    stride = tuple(s // array.itemsize for s in array.strides)
    return self._view((Storage(array), 0, array.shape, stride))

  def _view(self, view):
    function = Global('torch._utils', '_rebuild_tensor_v2')
    return self.emit(Call(function, (*view, False, Call(ORDERED_DICT, ()))))

  def _items(self, tree):
    items = b''.join(self.emit(k) + self.emit(v) for k, v in tree.items())
    return pickle.MARK + items + pickle.SETITEMS

  def _text(self, text):
    raw = text.encode()
    return pickle.BINUNICODE + struct.pack('<I', len(raw)) + raw

  def _tuple(self, values):
    return pickle.MARK + b''.join(map(self.emit, values)) + pickle.TUPLE


EMIT = {
    Storage: Writer._storage,
    View: Writer._view,
    np.ndarray: Writer._array,
    dict: lambda w, v: pickle.EMPTY_DICT + w._items(v),
    tuple: Writer._tuple,
    str: Writer._text,
    bool: lambda w, v: pickle.NEWTRUE if v else pickle.NEWFALSE,
    int: lambda w, v: pickle.BININT + struct.pack('<i', v),
    type(None): lambda w, v: pickle.NONE,
    Global: lambda w, v: pickle.GLOBAL + f'{v.module}\n{v.name}\n'.encode(),
    Build: lambda w, v: w.emit(v.target) + w.emit(v.state) + pickle.BUILD,
    SetItems: lambda w, v: w.emit(v.target) + w._items(v.items),
    Call: lambda w, v: w.emit(v.function) + w.emit(v.arguments) + pickle.REDUCE,
}


def save(path, tree, byteorder=b'little'):
  """Writes a tree of dicts, arrays, views and what else pickles hold."""
  writer = Writer()
  pickled = pickle.PROTO + b'\x02' + writer.emit(tree) + pickle.STOP
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr('archive/data.pkl', pickled)
    archive.writestr('archive/byteorder', byteorder)
    for key, storage in enumerate(writer.storages):
      # In the order of memory, whatever the strides.
      raw = storage.array.ravel('K').tobytes()
      archive.writestr(f'archive/data/{key}', raw)
    archive.writestr('archive/version', b'3\n')
  return path


def save_legacy(path, tree, little_endian=True):
  """Writes the same as torch before 1.6 did."""
  writer = Writer(legacy=True)

  def pickled(value):
    return pickle.PROTO + b'\x02' + writer.emit(value) + pickle.STOP

  parts = [
      pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
      pickled(1001),
      pickled({'protocol_version': 1001, 'little_endian': little_endian}),
      pickled(tree),
      pickled(tuple(map(str, range(len(writer.storages))))),
  ]
  for storage in writer.storages:
    raw = storage.array.ravel('K').tobytes()
    parts += [struct.pack('<q', storage.array.size), raw]
  path.write_bytes(b''.join(parts))
  return path
