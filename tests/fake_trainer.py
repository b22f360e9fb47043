"""Stands in for train.py in a study: writes what a run leaves, in no time.

The config comes from <workdir>.config, and what to do from <workdir>.does: the
metric that is to come out, 'fail' or 'vanish'. A pipe <workdir>.wait is read
first.
"""

import json
import os
import pathlib
import sys

*_, workdir = (a.partition('=')[2] for a in sys.argv if '--workdir=' in a)
run = pathlib.Path(workdir)
does = run.with_name(f'{run.name}.does').read_text()
with run.with_name(f'{run.name}.starts').open('a') as file:
  print(' '.join(sys.argv[1:]), file=file)
if (wait := run.with_name(f'{run.name}.wait')).exists():
  wait.read_text()
if does == 'vanish':
  sys.exit(3)
if does == 'fail':
  print('error: it cannot be', file=sys.stderr)
  sys.exit(1)
config = json.loads(run.with_name(f'{run.name}.config').read_text())
run.mkdir(exist_ok=True)
rows = [{'step': n, 'eval/top1': float(does) * n / 3} for n in (1, 2, 3)]
lines = ''.join(json.dumps(row) + '\n' for row in rows)
(run / 'metrics.jsonl').write_text(lines)
(run / 'config.json').write_text(json.dumps(config))
start = dict(commit='abc', code='123', device='tpu v9', devices=4)
start |= dict(jax=os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', '1'))
start |= dict(python='3.14')
told = dict(
    metrics={'top1': float(does)},
    parameters=1000 + config['model']['width'],
    multiply_adds=2_000_000,
    starts=[start],
    host=dict(platform='Linux', cores=8),
    config=config,
)
(run / 'finished.json').write_text(json.dumps(told))
