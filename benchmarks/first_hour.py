"""The first minutes on a device: are the forms right, and how fast are they?

  python -m benchmarks.first_hour gpu --output=h100
  python -m benchmarks.first_hour tpu --output=v5e check time

Each part is a command of `python -m benchmarks` in a process of its own, that
takes less than 10 minutes or is ended. Its rows are in <output>_<part>.json as
they come. What is done is not done again, so after an interruption the same
line goes on; to repeat a part remove <output>_<part>.done. With --tiny small
shapes show on any machine that all parts run.
"""

import argparse
from collections.abc import Sequence
import pathlib
import subprocess
import sys
import time

SECONDS = 600.0
_FORMS = '--implementations=fused,im2col,vmap'
_TIME = ['op', '--dtype=bfloat16', '--seconds=0.3', _FORMS]
_STEP = ['network', '--dtype=bfloat16', '--seconds=3']
# By kind of device, the parts in their order: what matters most comes first,
# and correctness before any time.
PARTS = {
    'gpu': {
        'check': ['check'],
        'time': [*_TIME, '--batches=128'],
        'strided': [*_TIME, '--batches=128', '--kinds=strided'],
        'step': [*_STEP, '--batches=128', '--implementations=auto,fused,vmap'],
        'attentions': [*_STEP, '--batches=128', '--attentions=se,cbam'],
        'small': [*_TIME, '--batches=32'],
        'float32': ['op', '--batches=128', '--seconds=0.3', _FORMS],
        'resnet101': [*_STEP, '--batches=128', '--model=resnet101'],
    },
    'tpu': {
        'check': ['check'],
        'time': [*_TIME, '--batches=64'],
        'strided': [*_TIME, '--batches=64', '--kinds=strided'],
        'step': [*_STEP, '--batches=64', '--implementations=auto,vmap'],
        'large': [*_STEP, '--batches=128'],
        'attentions': [*_STEP, '--batches=64', '--attentions=se,cbam'],
        'many': [*_TIME, '--batches=256'],
        'resnet101': [*_STEP, '--batches=64', '--model=resnet101'],
    },
}
# Instead of the shapes and the networks.
_TINY = """
import functools
import sys
from benchmarks import __main__ as command, network, op
small = dict(stage_sizes=(1,), width=8, aw_stages=(1,), stem='cifar')
network.models.create = functools.partial(network.models.create, **small)
shape = op.Shape(16, 16, 7)
op.SHAPES |= dict(dense=[shape], strided=[shape._replace(stride=2)])
command.main(sys.argv[1:])
"""
_SMALLER = {
    'check': [
        *('--batches=2', '--dtypes=float32'),
        '--implementations=fused,im2col',
    ],
    'op': ['--batches=2', '--seconds=0', '--implementations=im2col'],
    'network': [
        *('--batches=1', '--seconds=0', '--side=32', '--model=resnet18'),
        *('--implementations=im2col', '--cpu_devices=1'),
    ],
}


def command(arguments: Sequence[str], output: str, tiny: bool) -> list[str]:
  """Returns the command line of a part."""
  line = [sys.executable, '-m', 'benchmarks']
  more = []
  if tiny:
    line, more = [sys.executable, '-c', _TINY], _SMALLER[arguments[0]]
  return [*line, *arguments, *more, f'--output={output}']


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Returns what the arguments say."""
  form = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
  parser.add_argument('device', choices=PARTS)
  parser.add_argument('parts', nargs='*', help='all in their order, if none')
  parser.add_argument('--output', default='first_hour', help='path, no suffix')
  parser.add_argument('--tiny', action='store_true')
  flags = parser.parse_intermixed_args(arguments)
  known = PARTS[flags.device]
  for part in flags.parts:
    if part not in known:
      parser.error(f'no part {part!r}; there are {", ".join(known)}')
  return flags


def main(arguments: Sequence[str]) -> int:
  """Runs the parts that are not done; returns how many failed."""
  flags = parse(arguments)
  known, failed = PARTS[flags.device], 0
  for part in flags.parts or known:
    output = f'{flags.output}_{part}'
    done = pathlib.Path(f'{output}.done')
    if done.exists():
      print(f'{part}: done before', flush=True)
      continue
    line = command(known[part], output, flags.tiny)
    print(f'{part}: {" ".join(known[part])}', flush=True)
    start = time.monotonic()
    try:
      code = subprocess.run(line, timeout=SECONDS).returncode
    except subprocess.TimeoutExpired:
      code = 'no end'
    took = time.monotonic() - start
    print(f'{part}: {took:.0f} seconds, exit code {code}', flush=True)
    if code == 0:
      done.touch()
    failed += code != 0
  return failed


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
