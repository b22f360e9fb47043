"""Measures AW-convolution beside the plain convolution, in one run.

  python -m awconv_jax.tools.benchmark op
  python -m awconv_jax.tools.benchmark model --batches=8,32

Every row is a ratio to the plain version, measured in the same run and in turn
with it; results are checked against the vmapped form. Writes the table as text
to the screen, and as JSON and a picture to --output.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import platform

from absl import flags
from clu import parameter_overview
import flax
import jax
import jaxlib

from awconv_jax import command_line, errors
from awconv_jax.ops import aw_conv
from awconv_jax.tools.benchmark import model, op

FLAGS = flags.FLAGS


def _run_op():
  return op.run(
      implementations=FLAGS.implementations,
      batches=[int(b) for b in FLAGS.batches],
      expansion=FLAGS.expansion,
      dtype=FLAGS.dtype,
      seconds=FLAGS.seconds,
  )


def _run_model():
  return model.run(
      name=FLAGS.model,
      variants=[f'aw:{name}' for name in FLAGS.implementations],
      batches=[int(b) for b in FLAGS.batches],
      side=FLAGS.side,
      dtype=FLAGS.dtype,
      seconds=FLAGS.seconds,
  )


SUBJECTS = {'op': _run_op, 'model': _run_model}


def environment() -> dict[str, str]:
  """Returns what the numbers depend on: device, processor and versions."""
  return {
      'device': jax.devices()[0].device_kind,
      'backend': jax.default_backend(),
      'machine': platform.machine(),
      'cores': str(os.cpu_count()),
      'jax': jax.__version__,
      'jaxlib': jaxlib.__version__,
      'flax': flax.__version__,
      'python': platform.python_version(),
  }


def _draw(rows, output):
  """Draws the ratio to plain as bars, one group for each shape."""
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  kind = 'implementation' if hasattr(rows[0], 'implementation') else 'variant'
  skip = (kind, 'milliseconds', 'ratio')
  groups = {}
  for row in rows:
    values = dataclasses.asdict(row)
    label = ' '.join(
        str(v)
        for k, v in values.items()
        if k not in skip and isinstance(v, int | str)
    )
    groups.setdefault(label, {})[values[kind]] = row.ratio
  names = list(dict.fromkeys(n for group in groups.values() for n in group))
  figure, axis = pyplot.subplots(figsize=(2 + len(groups), 5))
  width = 0.8 / len(names)
  for i, name in enumerate(names):
    heights = [group.get(name, float('nan')) for group in groups.values()]
    places = [p + i * width for p in range(len(groups))]
    axis.bar(places, heights, width, label=name)
  axis.axhline(1, color='black', linewidth=0.8)
  axis.set_yscale('log')
  axis.set_ylabel('time, ratio to plain')
  axis.set_xticks(range(len(groups)), groups, rotation=30, ha='right')
  axis.legend()
  figure.tight_layout()
  figure.savefig(f'{output}.png', dpi=120)


def _format(value):
  if isinstance(value, float):
    return f'{value:.3g}' if abs(value) < 100 else f'{value:,.0f}'
  return str(value)


def main(arguments: Sequence[str]) -> None:
  """Measures the subject that is named, and shows and saves the table."""
  if len(arguments) != 1 or arguments[0] not in SUBJECTS:
    raise errors.unknown_name('subject', ' '.join(arguments), SUBJECTS)
  known = ('auto', *aw_conv.IMPLEMENTATIONS)
  for name in FLAGS.implementations:
    if name not in known:
      raise errors.unknown_name('implementation', name, known)
  if FLAGS.dtype not in op.TOLERANCES:
    raise errors.unknown_name('dtype', FLAGS.dtype, op.TOLERANCES)
  if not all(b.isdigit() and int(b) for b in FLAGS.batches):
    raise errors.InputError(f'--batches={FLAGS.batches}: want numbers above 0')
  print(json.dumps(environment()), flush=True)
  rows = []
  for row in SUBJECTS[arguments[0]]():
    rows.append(row)
    print(*map(_format, dataclasses.astuple(row)), flush=True)
  print(parameter_overview.make_table(rows, value_formatter=_format))
  saved = {
      'environment': environment(),
      'rows': [dataclasses.asdict(row) for row in rows],
  }
  with open(f'{FLAGS.output}.json', 'w') as file:
    json.dump(saved, file, indent=1)
  _draw(rows, FLAGS.output)
  print(f'written: {FLAGS.output}.json, {FLAGS.output}.png')


if __name__ == '__main__':
  flags.DEFINE_list(
      'implementations',
      ['auto', *(n for n in aw_conv.IMPLEMENTATIONS if n != 'vmap')],
      'Which to measure, beside plain and (op) the vmapped form.',
  )
  flags.DEFINE_list('batches', ['8'], 'Batch sizes.')
  flags.DEFINE_integer('expansion', 16, 'Input channels that share a value.')
  flags.DEFINE_string('dtype', 'float32', 'Of the computation.')
  flags.DEFINE_float('seconds', 1.0, 'Time for each measurement.')
  flags.DEFINE_string('model', 'resnet50', 'Network (subject model).')
  flags.DEFINE_integer('side', 224, 'Height and width of images (model).')
  flags.DEFINE_string('output', 'benchmark', 'Path of the files, no suffix.')
  command_line.run(main)
