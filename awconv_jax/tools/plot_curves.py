"""Draws the curves of one or more runs into a picture.

python -m awconv_jax.tools.plot_curves --output=curves.png runs/a runs/b
"""

from collections.abc import Sequence
import itertools
import pathlib

from absl import flags

from awconv_jax import command_line, errors
from awconv_jax.train import logging

# Titles and units, and the scalars of each panel, of which those are drawn that
# the runs have.
PANELS = {
    # That of training is of augmented images, and of labels as they are there.
    'loss': ('train/loss', 'eval/loss'),
    'top-1 (%)': ('train/top1', 'eval/top1'),
    'AP (%)': ('eval/AP',),
    'AP50 (%)': ('eval/AP50',),
    'learning rate': ('train/learning_rate',),
}


def _points(rows, name):
  """Returns steps and values; an AP of -1 is of a split without any object."""
  points = [(row['step'], row[name]) for row in rows if name in row]
  if name.startswith('eval/AP'):
    points = [(step, value) for step, value in points if value != -1]
  return list(zip(*points, strict=True))


def plot(workdirs: Sequence[str], output: str) -> str:
  """Draws loss, quality (such as top-1) and learning rate over the steps.

  Args:
    workdirs: directories of runs, each with a metrics.jsonl.
    output: path of the picture; its suffix gives the format.

  Returns:
    The path of the picture.

  Raises:
    InputError: a directory holds no metrics, or the picture cannot be written.
  """
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  paths = map(pathlib.Path, workdirs)
  runs = {path: logging.read(path / 'metrics.jsonl') for path in paths}
  known = {name for rows in runs.values() for row in rows for name in row}
  panels = {
      title: [name for name in names if name in known]
      for title, names in PANELS.items()
      if known & set(names)
  }
  number, entries = max(len(panels), 1), {}
  figure = pyplot.figure(figsize=(2 + 4 * number, 4), layout='constrained')
  axes = figure.subplots(1, number, squeeze=False)[0]
  for axis, (title, names) in zip(axes, panels.items(), strict=False):
    for (number, run), name in itertools.product(enumerate(runs), names):
      points, split = _points(runs[run], name), name.partition('/')[0]
      if not points:
        continue  # Nor is there an entry in the legend.
      steps, values = points
      (line,) = axis.plot(
          steps,
          [100 * v for v in values] if '%' in title else values,
          color=f'C{number}',
          alpha=1 if split == 'eval' or len(names) == 1 else 0.4,
          # A line of a single point is not to be seen.
          marker='.' if split == 'eval' or len(steps) == 1 else None,
          label=f'{run.name}, {split}',
      )
      entries.setdefault((run, split), line)
    axis.set(title=title, xlabel='step')
    axis.grid(alpha=0.3)
  axes[0].set_yscale('log')
  figure.legend(handles=entries.values(), loc='outside right upper')
  try:
    figure.savefig(output, dpi=120)
  except (OSError, ValueError) as error:
    raise errors.InputError(
        f'cannot write --output={output}: {error}'
    ) from error
  finally:
    pyplot.close(figure)
  return output


def main(workdirs: Sequence[str]) -> None:
  """Draws the runs that are named."""
  if not workdirs:
    raise errors.InputError('name at least one directory of a run')
  print(plot(workdirs, flags.FLAGS.output))


if __name__ == '__main__':
  flags.DEFINE_string('output', 'curves.png', 'Path of the picture.')
  command_line.run(main, positional=True)
