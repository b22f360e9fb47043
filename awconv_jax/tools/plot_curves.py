"""Draws the curves of one or more runs into a picture.

python -m awconv_jax.tools.plot_curves --output=curves.png runs/a runs/b
"""

from collections.abc import Sequence
import itertools
import pathlib
import warnings

from absl import flags
import numpy as np

from awconv_jax import command_line, errors, places
from awconv_jax.options import any_path
from awconv_jax.train import logging

# Titles and units of the panels, and the scalars that they show of each run.
PANELS = {
    # That of training is of augmented images, and of labels as they are there.
    'loss': ('train/loss', 'eval/loss'),
    'top-1 (%)': ('train/top1', 'eval/top1'),
    'AP (%)': ('eval/AP',),
    'AP50 (%)': ('eval/AP50',),
    'learning rate': ('train/learning_rate',),
    'images/s': ('train/images_per_second',),
    'model FLOP/s utilization (%)': ('train/mfu',),
}


def plot(workdirs: Sequence[str], output: str) -> str:
  """Draws `PANELS` over the steps, and returns the path of the picture.

  Args:
    workdirs: directories of runs, each with a metrics.jsonl.
    output: path of the picture; its suffix gives the format.

  Raises:
    InputError: a directory holds no metrics, or the picture cannot be written.
  """
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  paths = [places.at(any_path(path)) for path in workdirs]
  runs = [logging.read(path / 'metrics.jsonl') for path in paths]
  for path, rows in zip(paths, runs, strict=True):
    if not rows:
      raise errors.InputError(f'{path}/metrics.jsonl has no rows yet')
  panels, entries, labels = {}, {}, _labels(paths)
  for title, names in PANELS.items():
    for (number, rows), name in itertools.product(enumerate(runs), names):
      points = [(row['step'], row[name]) for row in rows if name in row]
      # It is -1 of a split without any object.
      points = [p for p in points if p[1] != -1 or 'eval/AP' not in name]
      if points:
        split = name.partition('/')[0]
        panels.setdefault(title, []).append((number, split, np.array(points)))
  count = max(len(panels), 1)
  figure = pyplot.figure(figsize=(2 + 4 * count, 4), layout='constrained')
  axes = figure.subplots(1, count, squeeze=False)[0]
  for axis, (title, curves) in zip(axes, panels.items(), strict=False):
    both = len({split for _, split, _ in curves}) > 1
    for number, split, points in curves:
      (line,) = axis.plot(
          points[:, 0],
          points[:, 1] * (100 if '%' in title else 1),
          color=f'C{number}',
          alpha=0.4 if both and split == 'train' else 1,
          # A line of a single point is not to be seen.
          marker='.' if split == 'eval' or len(points) == 1 else None,
          label=f'{labels[number]}, {split}',
      )
      entries.setdefault((number, split), line)
    axis.set(title=title, xlabel='step')
    axis.grid(alpha=0.3)
  axes[0].set_yscale('log')
  legend = figure.legend(handles=entries.values(), loc='outside right upper')
  for text in legend.get_texts():
    text.set_parse_math(False)  # A $ is one.
  try:
    with warnings.catch_warnings():
      # A name may have letters that the font has not.
      warnings.filterwarnings('ignore', 'Glyph')
      with places.for_writing(output) as file:
        # Named, or a suffix would be added, and that file replaced.
        figure.savefig(file, dpi=120, format=pathlib.Path(output).suffix[1:])
  except (OSError, ValueError) as error:
    reason = f'cannot write --output={output!r}: {error}'
    raise errors.InputError(reason) from error
  finally:
    pyplot.close(figure)
  return output


def _labels(paths: Sequence[pathlib.Path]) -> list[str]:
  """Returns the ends of paths that tell them apart."""
  parts = [path.absolute().parts for path in paths]
  for length in range(1, max(map(len, parts)) + 1):
    labels = ['/'.join(names[-length:]) for names in parts]
    if len(set(labels)) == len(set(parts)):
      break
  # Longer ones would leave no room for the curves.
  short = [n if len(n) < 40 else f'{n[:18]}...{n[-18:]}' for n in labels]
  labels = short if len(set(short)) == len(set(labels)) else labels
  # Matplotlib leaves out what begins with _.
  return [f'./{label}' if label[:1] == '_' else label for label in labels]


def main(workdirs: Sequence[str]) -> None:
  """Draws the runs that are named."""
  if not workdirs:
    raise errors.InputError('name at least one directory of a run')
  print(plot(workdirs, flags.FLAGS.output))


if __name__ == '__main__':
  command_line.define_path('output', 'Path of the picture.', 'curves.png')
  command_line.run(main, positional=True)
