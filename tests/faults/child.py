"""Runs a program of ours, and has a fault befall it.

  python child.py SIGKILL@17 train.py --workdir=/tmp/run ...

The fault is a signal or an error of the system, and after the @ stands at which
act on the files of the run: the 17th that opens a file to write, makes, renames
or removes something. With '17+' all later ones fail, too. `fsize@20000` lets no
file grow beyond so many bytes. When it befalls, `<workdir>.befell` is written.
"""

import errno
import itertools
import os
import pathlib
import resource
import runpy
import signal
import sys

_ACTS = {'open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.utime'}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def befall(fault: str, workdir: str) -> None:
  """Prepares the fault."""
  kind, _, place = fault.partition('@')
  told = pathlib.Path(f'{workdir}.befell')
  if kind == 'fsize':
    limit = resource.RLIMIT_FSIZE
    resource.setrlimit(limit, (int(place), resource.getrlimit(limit)[1]))
    return told.touch()
  first, stays = int(place.rstrip('+')), place.endswith('+')
  number = itertools.count(1)

  def watch(event, arguments):
    if event not in _ACTS or f'{workdir}/' not in f'{arguments[0]}/':
      return
    if event == 'open' and not (arguments[2] or 0) & _WRITES:
      return
    now = next(number)
    if not (now == first or (stays and now > first)):
      return
    if now == first:
      told.touch()
    if kind.startswith('SIG'):
      os.kill(os.getpid(), getattr(signal, kind))
    else:
      code = getattr(errno, kind)
      raise OSError(code, os.strerror(code), str(arguments[0]))

  sys.addaudithook(watch)


if __name__ == '__main__':
  fault, *sys.argv = sys.argv[1:]
  places = [a.partition('=')[2] for a in sys.argv if a.startswith('--workdir=')]
  os.setpgid(0, 0)  # Signals to all of it reach nobody else.
  befall(fault, *places)
  sys.path[0] = os.getcwd()
  runpy.run_path(sys.argv[0], run_name='__main__')
