"""Memory of processes as the kernel accounts it: proportional set size, PSS.

Of what several processes share, each is charged its part, so that the numbers
of a program and its workers may be added up.
"""

import ctypes
import gc
import multiprocessing
import os


def pss_mib(pid: int | None = None) -> float | None:
  """Returns the PSS of a process in MiB; None where nobody accounts it.

  Args:
    pid: of the process; None for this one.
  """
  try:
    with open(f'/proc/{pid or os.getpid()}/smaps_rollup') as file:
      for line in file:
        if line.startswith('Pss:'):
          return int(line.split()[1]) / 1024
  except OSError:
    pass
  return None


def workers_mib() -> list[float]:
  """Returns the PSS in MiB of each process that this one has started."""
  found = [pss_mib(p.pid) for p in multiprocessing.active_children()]
  return [mib for mib in found if mib is not None]


def total_mib() -> float | None:
  """Returns the memory of this process and its workers in MiB.

  Of this process alone it would shrink as workers come to share its libraries.
  """
  own = pss_mib()
  return None if own is None else own + sum(workers_mib())


def give_back() -> None:
  """Returns freed memory to the system, so that growth can be seen again."""
  gc.collect()
  try:
    ctypes.CDLL(None).malloc_trim(0)
  except (AttributeError, OSError, TypeError):
    pass  # Another C library.
