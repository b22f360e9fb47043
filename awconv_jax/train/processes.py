"""The processes of one run: they agree before they start, and end together.

Each is watched by a `watcher`, which tells the others what ends one of them. A
single process has none, and all of this does nothing.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import queue
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, NamedTuple, NoReturn
import warnings

from awconv_jax import errors, places
from awconv_jax.errors import InputError
from awconv_jax.train import watcher

# What makes other numbers of the same config, beside our own code.
LIBRARIES = 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain'
_SETTINGS = (
    *('jax_enable_x64', 'jax_default_matmul_precision'),
    *('jax_threefry_partitionable', 'jax_default_prng_impl'),
    *('jax_numpy_dtype_promotion',),
)
# In which launchers tell how many processes they started, or were to start.
_OF_SLURM = 'SLURM_NTASKS', 'SLURM_JOB_NUM_NODES'
_SAY_HOW_MANY = 'OMPI_COMM_WORLD_SIZE', *_OF_SLURM, 'PMI_SIZE'


class Place(NamedTuple):
  """Where the processes meet, how many there are, and which is this one."""

  coordinator: str
  number: int
  index: int
  local_devices: Any = None


def place(
    coordinator: str | None,
    number: int | None,
    index: int | None,
    join_seconds: int,
) -> Place | None:
  """Returns what the flags say, or what JAX finds; None if it is alone.

  Raises:
    InputError: only some of the three are given, or they cannot be right; or a
      launcher speaks of others that are not found.
  """
  given = (coordinator, number, index)
  if given == (None, None, None):
    found = _found(join_seconds)
    if (found.number or 1) == 1:
      return None
    if not _has_port(found.coordinator):
      fault = f'JAX found the coordinator {found.coordinator!r}, without a port'
      raise InputError(f'{fault}; see JAX_COORDINATOR_PORT')
    return found
  if given == (None, 1, None):
    return None
  right = _has_port(coordinator)
  if None in given or not (right and 0 <= index < number):
    raise InputError(
        f'several processes need --coordinator=host:port, not {coordinator!r}, '
        f'and --process_id={index} from 0 to below --num_processes={number}'
    )
  return Place(coordinator, number, index) if number > 1 else None


def _has_port(address: Any) -> bool:
  port = str(address).rpartition(':')[2]
  return port.isdecimal() and 0 < int(port) < 2**16


def _found(join_seconds: int) -> Place:
  """Returns what JAX finds, all of it None where that is nothing."""
  from jax._src.clusters import ClusterEnv  # There is no public name for it.

  env, alone = os.environ, '--num_processes=1 trains in this process alone'
  flags = 'give each --coordinator, --num_processes and --process_id'
  detect = ClusterEnv.auto_detect_unset_distributed_params
  try:
    with warnings.catch_warnings(action='ignore'):
      found = Place(*detect(None, None, None, None, None, join_seconds))
  except Exception as error:  # Whatever a server of metadata or a cluster says.
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    raise InputError(
        f'JAX cannot find the processes of this run: {reason}; {flags}; {alone}'
    ) from error
  said = next((name for name in _SAY_HOW_MANY if env.get(name)), None)
  there = str(found.number or 1)
  if said in _OF_SLURM and found.number:  # JAX takes the job's for the step's.
    there = env.get('SLURM_STEP_NUM_TASKS', '1')
  if said and env[said] != there:
    how = 'put srun before python' if said in _OF_SLURM else flags
    raise InputError(
        f'{said}={env[said]}, but only {there} process was started, as far as '
        f'JAX can see: {how}; {alone}'
    )
  if found.number is None and 'JOB_COMPLETION_INDEX' in env:
    raise InputError(
        'JOB_COMPLETION_INDEX is set, but JAX finds no other pods of this job: '
        f"pip install 'jax[k8s]', or {flags}; {alone}"
    )
  # JAX gives each process of SLURM and Open MPI the one device of its place on
  # the host, also where it has the host, or what is visible of it, for itself.
  here = env.get('OMPI_COMM_WORLD_LOCAL_SIZE')
  here = here or env.get('SLURM_STEP_TASKS_PER_NODE', '').partition('(')[0]
  one = ',' not in env.get('CUDA_VISIBLE_DEVICES', ',')
  if here == '1' or one or 'JAX_LOCAL_DEVICE_IDS' in env:  # JAX reads the last.
    found = found._replace(local_devices=None)
  return found


class _Watched:
  """This process, as its watcher hears of it."""

  def __init__(self, where: Place, join_seconds: int):
    self.where = where
    self._pair, its = socket.socketpair()
    words, mouth = os.pipe()
    with its:
      numbers = its.fileno(), words, os.getpid(), *where[2:0:-1], join_seconds
      self._watcher = subprocess.Popen(
          [sys.executable, '-I', '-S', watcher.__file__, where.coordinator]
          + list(map(str, numbers)),
          pass_fds=(its.fileno(), words),
          stdin=subprocess.DEVNULL,
          stdout=subprocess.DEVNULL,
          start_new_session=True,  # Signals to our group are not for it.
      )
    os.close(words)
    # What native code says goes by way of the watcher; what Python says, as
    # before.
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), 'w', buffering=1, errors='replace')
    os.dup2(mouth, 2)
    os.close(mouth)
    self._ports = queue.Queue()
    threading.Thread(target=self._listen, daemon=True).start()

  def _listen(self) -> None:
    with contextlib.suppress(OSError):
      for line in self._pair.makefile():
        message = json.loads(line)
        if 'end' in message:
          _end()
        self._ports.put(message['port'])
    print('error: the watcher of this process is gone', file=sys.stderr)
    _end()

  def _send(self, **message: Any) -> None:
    with contextlib.suppress(OSError):  # `_listen` notices.
      self._pair.sendall(json.dumps(message).encode() + b'\n')

  def agree(self, facts: Mapping[str, Any]) -> int:
    """Returns, once all gave the same facts, a free port of the first."""
    self._send(facts=facts)
    return self._ports.get()

  def tell(self, error: BaseException, *, through: bool) -> None:
    """Tells the watcher what ends this process, and whether it has ended."""
    line, text = errors.reported(error), {}
    if isinstance(error, KeyboardInterrupt):
      line = 'interrupted'
    if line is None:
      text = {'traceback': ''.join(traceback.format_exception(error))}
    first = (str(error).splitlines() or [''])[0]
    shown = line or f'{type(error).__name__}: {first[:300]}'
    # A status of XLA, as a save quotes it, too, may be the echo of an end.
    echo = line is None or re.search(r'\b[A-Z_]{6,}: ', line)
    self._send(failed=shown, cause=not echo, through=through, **text)

  def done(self) -> None:
    """Tells the watcher that this process ends as it should."""
    self._send(done=True)


_watched: _Watched | None = None


@contextlib.contextmanager
def joined(where: Place | None, join_seconds: int) -> Iterator[None]:
  """Has this process ended if another one ends, and the others if this does.

  Args:
    where: what `place` returned.
    join_seconds: so long processes wait for those that have not yet come.
  """
  global _watched
  if where is None:
    yield
    return
  _watched = _Watched(where, join_seconds)
  try:
    yield
  except SystemExit:
    _watched.done()
    raise
  except BaseException as error:
    _watched.tell(error, through=True)
    time.sleep(60)  # The watcher ends it long before.
    _end()
  _watched.done()


@contextlib.contextmanager
def telling() -> Iterator[None]:
  """Tells others of an error at once, before anything waits for them."""
  try:
    yield
  except BaseException as error:
    if _watched is not None:
      _watched.tell(error, through=False)
    raise


def agree(facts: Callable[[], Mapping[str, Any]] = dict) -> None:
  """Waits for all processes, and ends the run if one has other facts.

  Args:
    facts: gives what JSON can hold, by names to show; not called for a single
      process.
  """
  if _watched is not None:
    _watched.agree(facts())


def start(config: Any, workdir: str | None) -> None:
  """Joins JAX's processes once all agree on config, workdir and code.

  Raises:
    InputError: JAX cannot join them.
  """
  if _watched is None:
    return
  import flax.traverse_util
  import jax

  flat = flax.traverse_util.flatten_dict(config.to_dict(), sep='.')
  facts = {f'config.{key}': value for key, value in flat.items()}
  facts |= {name: getattr(jax.config, name) for name in _SETTINGS}
  facts |= {name: importlib.metadata.version(name) for name in LIBRARIES}
  facts['--workdir'] = str(workdir and places.whole(workdir))
  facts['Python'] = '.'.join(map(str, sys.version_info[:2]))
  facts['the code of awconv_jax'] = hash_of_code()
  port, where = _watched.agree(facts), _watched.where
  host = where.coordinator.rpartition(':')[0]
  try:
    jax.distributed.initialize(f'{host}:{port}', *where[1:])
  except (RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:300]
    raise InputError(f'JAX cannot join the processes: {reason}') from error
  devices = jax.local_devices()
  agree(lambda: {'devices': f'{len(devices)} of {devices[0].device_kind}'})


def hash_of_code() -> str:
  package = pathlib.Path(__file__).resolve().parent.parent
  digest = hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
  return digest.hexdigest()[:12]


def _end() -> NoReturn:
  for child in multiprocessing.active_children():
    child.kill()
  os._exit(1)  # Nothing is waited for: what it waits for may never come.
