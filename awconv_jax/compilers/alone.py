"""Compiles in a process of its own: compilers may crash, and dump files."""

from collections.abc import Callable, Mapping
import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from awconv_jax import errors
from awconv_jax.compilers import cuda, tpu

CHIPS = {**tpu.CHIPS, **cuda.CARDS}


def check_installed(chip: str) -> None:
  """Raises InputError unless there is a compiler for a chip."""
  for module in CHIPS[chip].modules:
    found = None
    with contextlib.suppress(ModuleNotFoundError):  # Of what it lies in.
      found = importlib.util.find_spec(module)
    if not found:
      raise errors.InputError(
          f'to compile for {chip!r} {module} has to be installed: '
          f"pip install 'awconv_jax[{CHIPS[chip].extra}]'; no device is needed"
      )


def environment(chip: str, folder: str) -> dict[str, str]:
  """Returns the environment in which the compiler of a chip has to be loaded.

  Args:
    chip: its name in `CHIPS`.
    folder: where the compiler dumps to.
  """
  return dict(
      JAX_PLATFORMS='cpu',
      JAX_ENABLE_COMPILATION_CACHE='0',  # Of what is in it, nothing is dumped.
      JAX_DISABLE_MOST_OPTIMIZATIONS='0',
      TF_CPP_MIN_LOG_LEVEL='2',
  ) | CHIPS[chip].environment(folder)


def run(
    module: str,
    chip: str,
    request: Mapping[str, Any],
    go_on: Callable[[str], bool] = lambda said: True,
) -> dict[str, Any]:
  """Returns what a module says of a request, or how it 'failed' and 'said' why.

  Args:
    module: is run with the request as JSON and the folder that the compiler
      dumps to, and prints the answer as its last line, as JSON.
    chip: a name in `CHIPS`, whose compiler it loads.
    request: of what to compile.
    go_on: is asked now and then, by what the module has printed so far; where
      it says no, the module is killed.
  """
  # Of a checkout, whatever the directory is.
  root = str(pathlib.Path(__file__).parents[2])
  with tempfile.TemporaryDirectory() as folder:
    paths = filter(None, [root, os.environ.get('PYTHONPATH')])
    process = subprocess.Popen(
        [sys.executable, '-m', module, json.dumps(request), folder],
        env=os.environ
        | environment(chip, folder)
        | {'PYTHONPATH': os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
      try:
        out, err = _wait(process, go_on)
      finally:
        process.kill()  # If it has not ended.
  lines = out.strip().splitlines()
  if process.returncode == 0 and lines:
    return json.loads(lines[-1])
  *_, said = ['', *err.strip().splitlines()]
  return dict(failed=process.returncode, said=said)


def _wait(process, go_on):
  """Returns what a process printed, once it has ended or was killed."""
  while True:
    try:
      return process.communicate(timeout=0.2)
    except subprocess.TimeoutExpired as waiting:
      if not go_on((waiting.output or b'').decode()):
        process.kill()
