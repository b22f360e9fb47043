"""What was compiled is kept, so that a run that starts again starts soon.

JAX keeps compiled programs by what they compute, and has to trace a function to
know that, which takes longer than to read its program. So those of the first
step are kept a second time, by all that they are made from.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import hashlib
import json
import os
import pathlib
import pickle
import sys
import sysconfig
from typing import Any
import warnings
import zlib

import jax
from jax.experimental import serialize_executable

from awconv_jax import places
from awconv_jax.train import logging, processes

_DIRECTORY = 'jax_compilation_cache_dir'
# Compiled in less, a program is not worth a file [s].
_LEAST = 0.1
_HIT = '/jax/compilation_cache/cache_hits'  # What JAX calls it.
# Variables of the environment that change programs begin so.
_VARIABLES = 'XLA', 'LIBTPU', 'TPU', 'JAX', 'NVIDIA'

# Of a name and a jitted function, one that does the same.
Prepare = Callable[[str, Any], Callable[..., Any]]


@contextlib.contextmanager
def kept(workdir: pathlib.Path) -> Iterator[None]:
  """Has JAX keep programs in `.jax_cache` beside a run's directory.

  Or where JAX_COMPILATION_CACHE_DIR says; JAX_ENABLE_COMPILATION_CACHE=false
  has it keep none. That they cannot be kept is told, and ends nothing.
  """
  if not getattr(jax.config, _DIRECTORY):
    jax.config.update(_DIRECTORY, str(workdir.parent / '.jax_cache'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _LEAST)
  shown, told = warnings.showwarning, []

  def show(message, *args, **kwargs):
    if 'persistent compilation cache' not in str(message):
      shown(message, *args, **kwargs)
    elif not told:
      told.append(message)
      reason = str(message).rpartition(': ')[2]
      logging.info(
          f'warning: compiled programs in {getattr(jax.config, _DIRECTORY)} '
          f'cannot all be used or kept: {reason}; the run goes on, and '
          'compiles them each time. The directory may be removed'
      )

  warnings.showwarning = show
  try:
    yield
  finally:
    warnings.showwarning = shown


def prepared(code: Sequence[str] | None, *made_from: Any) -> Prepare:
  """Returns a function of names and jitted functions that are called once more.

  What it returns takes the program of an earlier start, if that was made from
  the same. Several processes have none of their own.

  Args:
    code: files of the code that runs, beside the package, and modules outside
      of Python's own directories; None if that cannot be told, and every
      function is traced.
    *made_from: what JSON can hold, that the functions have bound.
  """
  off = not getattr(jax.config, 'jax_enable_compilation_cache')  # noqa: B009
  if code is None or off or jax.process_count() > 1:
    return lambda name, function: function
  surroundings = _surroundings(code)

  def prepare(name, function):
    ready = []

    def call(*args):
      if ready:
        return ready[0](*args)
      about = name, made_from, _shapes(args)
      program, path, make = _program(function, args, about, surroundings)
      out = jax.block_until_ready(program(*args))
      ready.append(program)
      try:  # Once it has run; one that does not is gone at the next start.
        if data := make():
          path.parent.mkdir(parents=True, exist_ok=True)
          path.write_bytes(data)
      except Exception as error:  # It is of use to later starts alone.
        line = f'Error writing persistent compilation cache: {error}'
        warnings.warn(line, stacklevel=2)
      return out

    return call

  return prepare


def _program(function, args, about, surroundings):
  """Returns a compiled function, its file, and what gives the file's bytes."""
  folder = places.at(getattr(jax.config, _DIRECTORY))
  # One file, whatever it is made in: that of code since changed is replaced.
  path = folder / f'{about[0]}-{_digest(about).hex()}-program'
  made_in = _digest(surroundings)
  tree = jax.tree.structure((args, {}))
  with contextlib.suppress(Exception):  # What there is may be of any kind.
    found = path.read_bytes()
    data = found[len(made_in) :]
    if found[: len(made_in)] == _digest([made_in.hex(), data.hex()]):
      path.unlink()
      payload, out_tree = pickle.loads(zlib.decompress(data))
      load = serialize_executable.deserialize_and_load
      return load(payload, tree, out_tree), path, lambda: found
  seen = []

  def note(event, **_):
    seen.append(event)

  jax.monitoring.register_event_listener(note)
  try:
    compiled = function.lower(*args).compile()
  finally:
    jax.monitoring.unregister_event_listener(note)

  def make():
    if _HIT in seen:  # What XLA for CPUs has read it does not write whole.
      return b''
    payload, _, out_tree = serialize_executable.serialize(compiled)
    data = zlib.compress(pickle.dumps((payload, out_tree)), 1)
    return _digest([made_in.hex(), data.hex()]) + data

  return compiled, path, make


def _shapes(args):
  leaves = [str(jax.typeof(leaf)) for leaf in jax.tree.leaves(args)]
  return [str(jax.tree.structure(args)), *leaves]


def _digest(facts: Any) -> bytes:
  return hashlib.sha256(json.dumps(facts, default=str).encode()).digest()


def _surroundings(code: Sequence[str]) -> list[Any]:
  """Returns, as JSON, what makes other programs of the same config."""
  own = pathlib.Path(__file__).parents[1]
  kinds = 'stdlib', 'platstdlib', 'purelib', 'platlib'
  known = (str(own), *map(sysconfig.get_path, kinds))
  files = {getattr(m, '__file__', None) or '' for m in [*sys.modules.values()]}
  files = {f for f in files if os.path.isfile(f) and not f.startswith(known)}
  read = [
      pathlib.Path(f).read_bytes() for f in sorted({*files, *map(str, code)})
  ]
  device = jax.devices()[0]
  with contextlib.suppress(OSError):  # Programs for CPUs are of their kind.
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    read += [line.encode() for line in lines if line.startswith('flags')][:1]
  return [
      processes.code_and_versions(),
      hashlib.sha256(b'\0'.join(read)).hexdigest(),
      {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES)},
      {k: str(v) for k, v in jax.config.values.items()},
      [d.device_kind for d in jax.devices()],
      [device.platform, device.client.platform_version],
  ]
