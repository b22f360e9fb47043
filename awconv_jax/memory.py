"""How much memory there is for this process, and what a program takes."""

import contextlib
import os
import pathlib
from typing import Any

_GROUPS = pathlib.Path('/proc/self/cgroup')
_LIMITS = pathlib.Path('/sys/fs/cgroup')


def limit() -> int:
  """Returns bytes: of the machine, or of a container that gets less.

  See https://docs.kernel.org/admin-guide/cgroup-v2.html, and v1.
  """
  limits = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  with contextlib.suppress(OSError):  # There are groups on Linux alone.
    for line in _GROUPS.read_text().splitlines():
      _, kinds, path = line.split(':', 2)
      root, name = _LIMITS, 'memory.max'
      if kinds:
        root, name = _LIMITS / 'memory', 'memory.limit_in_bytes'
      folder = root / path.lstrip('/')
      # In a container, the path may be that of the machine.
      for place in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # Of 'max'.
          limits.append(int((place / name).read_text()))
  return min(limits)


def of_program(compiled: Any) -> tuple[dict[str, int], int]:
  """Returns what a compiled program takes of a device, by kind, and at once.

  All in bytes, by the compiler's own analysis. 'alias' is what of the outputs
  lies in the place of arguments.
  """
  analysis = compiled.memory_analysis()
  kinds = 'argument', 'output', 'alias', 'temp', 'generated_code'
  sizes = {kind: getattr(analysis, f'{kind}_size_in_bytes') for kind in kinds}
  return sizes, sum(sizes.values()) - 2 * sizes['alias']
