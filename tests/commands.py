"""Runs train.py and the tools as a user does: in processes of their own."""

import contextlib
import io
import os
import pathlib
import runpy
import socket
import subprocess
import sys
from unittest import mock

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = f'--config={ROOT}/tests/tiny.py'


def start(*arguments, devices=1, env=None):
  """Starts a Python command in the project's root; output is captured."""
  flags = os.environ['XLA_FLAGS'].replace('count=8', f'count={devices}')
  return subprocess.Popen(
      [sys.executable, *map(str, arguments)],
      cwd=ROOT,
      env={**os.environ, 'XLA_FLAGS': flags, **(env or {})},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
  )


def start_two(*arguments, devices=4):
  """Starts train.py as the two processes of one run."""
  joined = f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2'
  return [
      start(*arguments, *joined, f'--process_id={i}', devices=devices)
      for i in range(2)
  ]


def program(name):
  """Returns what follows `python` to start train.py, benchmarks or a tool."""
  tools = {'train': ('train.py',), 'benchmarks': ('-m', 'benchmarks')}
  return tools.get(name, ('-m', f'awconv_jax.tools.{name}'))


def run(*arguments, devices=1, env=None, timeout=300):
  """Runs a Python command; returns (exit code, stdout, stderr)."""
  process = start(*arguments, devices=devices, env=env)
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


def tool(name, *arguments):
  """Runs a tool as `run` does, but in this process, which saves its start."""
  places = {'train': 'train.py', 'benchmarks': 'benchmarks/__main__.py'}
  path = str(ROOT / places.get(name, f'awconv_jax/tools/{name}.py'))
  app.define_help_flags()
  known, out, err = set(flags.FLAGS), io.StringIO(), io.StringIO()
  with (
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
      mock.patch.object(sys, 'argv', [path, *map(str, arguments)]),
  ):
    try:
      runpy.run_path(path, run_name='__main__')
    except SystemExit as end:
      code = end.code
    finally:
      for flag in set(flags.FLAGS) - known:
        # Another can then have it; what libraries define stays.
        module = flags.FLAGS.find_module_defining_flag(flag)
        if module == path or 'awconv_jax' in module or flag[:7] == 'config.':
          delattr(flags.FLAGS, flag)
  if isinstance(code, str):
    code = print(code, file=err) or 1
  return code or 0, out.getvalue(), err.getvalue()


def free_port():
  """Returns a port of this machine that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def python_of_docs(name, block=0):
  """Returns a block of Python in the section 'In Python' of a page."""
  text = (ROOT / 'docs' / name).read_text()
  section = text.partition('## In Python')[2].partition('\n## ')[0]
  return section.split('```python\n')[block + 1].partition('```')[0]
